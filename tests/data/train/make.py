#!/usr/bin/env python3
"""Writes the results of PyTorch's losses, optimizers, clipping and schedules, for crates/lstm-core/tests/train.rs, and of a
training step, for crates/lstm-cpu/tests/train/shards.rs.

  make.py       needs torch, numpy and safetensors; writes to its own folder

Options are rounded to float32, as in the library, before they are passed to PyTorch. The names of tensors start with the
name of the case, which is the text form of the options that the library parses.

  optimizers.safetensors   rates [STEPS], start.NAME and gradients.NAME [STEPS, ...], float32, shared by all cases;
                           "OPTIMIZER: values.NAME" after each step, "OPTIMIZER: exp_avg.NAME", ... after the last
  schedules.safetensors    "SCHEDULE": the rate of each step, float64
  losses.safetensors       p, t and mse.loss, mse.gradient; x, targets and cross_entropy.loss, .gradient; p, probabilities
                           and binary_cross_entropy.loss, .gradient; results float64, computed in float64
  clips.safetensors        gradient.NAME and norm; "norm BOUND: NAME" and "value BOUND: NAME", the clipped gradients;
                           float32, the norm float64
  shards.safetensors       x, t, lengths, lstm.NAME and head.NAME, float32; loss and gradient.NAME, float64
"""
import pathlib
import numpy, torch
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
gen = torch.Generator().manual_seed(20)
def nrm(*shape): return torch.randn(*shape, generator=gen)
def f32(x): return float(numpy.float32(x))

STEPS = 20
SHAPES = {"weight": (3, 4), "bias": (5,), "scale": (1,)}

# Optimizers. The gradients are fixed, so that they do not depend on rounding errors of previous steps.
start = {name: nrm(*shape) for name, shape in SHAPES.items()}
gradients = {name: nrm(STEPS, *shape) for name, shape in SHAPES.items()}
rates = torch.linspace(0.1, 0.01, STEPS)
tensors = {"rates": rates}
tensors |= {f"start.{name}": v for name, v in start.items()} | {f"gradients.{name}": v for name, v in gradients.items()}

def optimizer(kind, **options):
    text = " ".join([kind] + [f"{k}={str(v).lower()}" for k, v in options.items()])
    options = {k: v if isinstance(v, bool) else f32(v) for k, v in options.items()}
    if kind != "sgd":
        options["betas"] = options.pop("beta1", f32(0.9)), options.pop("beta2", f32(0.999))
        options.setdefault("eps", f32(1e-8))
    if kind == "adamw":
        options.setdefault("weight_decay", f32(0.01))
    params = {name: torch.nn.Parameter(v.clone()) for name, v in start.items()}
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    opt = make(params.values(), lr=1.0, foreach=False, **options)
    values = {name: [] for name in params}
    for step in range(STEPS):
        opt.param_groups[0]["lr"] = float(rates[step])
        for name, p in params.items():
            p.grad = gradients[name][step].clone()
        opt.step()
        for name, p in params.items():
            values[name].append(p.detach().clone())
    for name, p in params.items():
        tensors[f"{text}: values.{name}"] = torch.stack(values[name])
        for key, slot in [("momentum_buffer", "momentum"), ("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")]:
            if opt.state[p].get(key) is not None:
                tensors[f"{text}: {slot}.{name}"] = opt.state[p][key].clone()

optimizer("sgd")
optimizer("sgd", weight_decay=0.1)
optimizer("sgd", momentum=0.9)
optimizer("sgd", momentum=0.9, dampening=0.3)
optimizer("sgd", momentum=0.9, nesterov=True)
optimizer("sgd", momentum=0.7, dampening=0.5, weight_decay=0.05)
optimizer("sgd", momentum=0.7, nesterov=True, weight_decay=0.05)
for kind in ["adam", "adamw"]:
    optimizer(kind)
    optimizer(kind, weight_decay=0.1)
    optimizer(kind, weight_decay=0.0)
    optimizer(kind, beta1=0.8, beta2=0.95, eps=0.001)
    optimizer(kind, beta1=0.3, beta2=0.0, eps=0.1, weight_decay=0.2)
save_file(tensors, here / "optimizers.safetensors")

# Schedules, up to the end of the cosine: PyTorch's cosine rises again after it.
tensors = {}
def schedule(text, length, make):
    words = text.split()
    options = {k: f32(v) if k in ("rate", "factor", "min") else int(v) for k, v in (w.split("=") for w in words[1:])}
    warmup = options.get("warmup", 0)
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=options["rate"])
    after = make(opt, options)
    if warmup:
        up = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1 / warmup, total_iters=warmup - 1)
        after = torch.optim.lr_scheduler.SequentialLR(opt, [up, after], milestones=[warmup])
    got = []
    for _ in range(warmup + length):
        got.append(opt.param_groups[0]["lr"])
        opt.step()
        after.step()
    tensors[text] = torch.tensor(got, dtype=torch.float64)

lrs = torch.optim.lr_scheduler
def constant(opt, o): return lrs.ConstantLR(opt, factor=1.0)
def step(opt, o): return lrs.StepLR(opt, o["every"], o["factor"])
def cosine(opt, o): return lrs.CosineAnnealingLR(opt, o["steps"], o.get("min", 0.0))
for warmup in ["", " warmup=1", " warmup=7"]:
    schedule("constant rate=0.3" + warmup, 5, constant)
    schedule("step rate=0.3 every=4 factor=0.7" + warmup, 25, step)
    schedule("cosine rate=0.3 steps=20 min=0.01" + warmup, 21, cosine)
    schedule("cosine rate=0.05 steps=9" + warmup, 10, cosine)
save_file(tensors, here / "schedules.safetensors")

# Losses; cross entropy ignores some rows.
p, t, x = nrm(4, 3, 2), nrm(4, 3, 2), 3 * nrm(4, 3, 5)
targets = torch.randint(0, 5, (4, 3), generator=gen)
targets[1, 2] = targets[3, 0] = -100
tensors = {"p": p, "t": t, "x": x, "targets": targets}
def loss(name, of, value):
    leaf = of.double().requires_grad_()
    result = value(leaf)
    result.backward()
    tensors[f"{name}.loss"], tensors[f"{name}.gradient"] = result.detach().reshape(1), leaf.grad
loss("mse", p, lambda p: torch.nn.MSELoss()(p, t.double()))
loss("cross_entropy", x, lambda x: torch.nn.CrossEntropyLoss()(x.reshape(12, 5), targets.reshape(12)))
tensors["probabilities"] = torch.sigmoid(2 * t)
loss("binary_cross_entropy", p, lambda p: torch.nn.BCEWithLogitsLoss()(p, tensors["probabilities"].double()))
save_file(tensors, here / "losses.safetensors")

# Clipping with a bound that changes the gradients and one that does not.
tensors = {f"gradient.{name}": nrm(*shape) for name, shape in SHAPES.items()}
grads = {name: tensors[f"gradient.{name}"] for name in SHAPES}
def clip(kind, bound, function):
    params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, p in params.items():
        p.grad = grads[name].clone()
    function(params.values(), f32(bound))
    for name, p in params.items():
        tensors[f"{kind} {bound}: {name}"] = p.grad
for bound in [0.7, 100.0]:
    clip("norm", bound, torch.nn.utils.clip_grad_norm_)
    clip("value", bound, torch.nn.utils.clip_grad_value_)
tensors["norm"] = torch.cat([g.double().flatten() for g in grads.values()]).norm().reshape(1)
save_file(tensors, here / "clips.safetensors")

# A training step on sequences of different lengths: the mean over all time steps within them, in float64.
gen = torch.Generator().manual_seed(21)
lengths = torch.tensor([6, 1, 4, 0, 6, 2, 3])
lstm, head = torch.nn.LSTM(2, 3, batch_first=True).double(), torch.nn.Linear(3, 2).double()
params = {f"lstm.{name}": p for name, p in lstm.named_parameters()} | {f"head.{name}": p for name, p in head.named_parameters()}
x, t = nrm(7, 6, 2), nrm(7, 6, 2)
tensors = {"x": x, "t": t, "lengths": lengths}
with torch.no_grad():
    for name, p in params.items():
        tensors[name] = 0.5 * nrm(*p.shape)
        p.copy_(tensors[name])
# Steps after the end of a sequence come later, so that they have no effect on those before.
is_within = torch.arange(6) < lengths[:, None]
result = (head(lstm(x.double())[0]) - t.double()).square()[is_within].mean()
result.backward()
tensors["loss"] = result.detach().reshape(1)
tensors |= {f"gradient.{name}": p.grad for name, p in params.items()}
save_file(tensors, here / "shards.safetensors")
