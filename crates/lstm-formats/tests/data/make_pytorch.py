"""Writes small files of torch.save and of safetensors, and the weights in them.

    python make_pytorch.py [OUT]        (pip: torch numpy safetensors; OUT is the folder `pytorch` beside this file)

`expected.safetensors` has each weight as f32 under `FILE/NAME`, where NAME is the name in the model that is read.
"""
import io, os, pickle, struct, sys, tarfile
import torch
from safetensors.torch import save_file, save_model

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "pytorch")
os.makedirs(OUT, exist_ok=True)
torch.manual_seed(5)
nn = torch.nn
expected = {}


def expect(file, state):
    for name, value in state.items():
        expected[f"{file}/{name}"] = value.detach().float().contiguous().clone()


def save(file, value, state, **options):
    torch.save(value, os.path.join(OUT, file), **options)
    expect(file, state)


class Net(torch.nn.Module):
    def __init__(self, i=3, h=4, o=2, **options):
        super().__init__()
        self.rec = torch.nn.LSTM(i, h, batch_first=True, **options)
        self.lin = torch.nn.Linear(h * (2 if options.get("bidirectional") else 1), o)


class Bare(torch.nn.Module):
    """A module with the given children."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def state(**children):
    return Bare(**children).state_dict()


def prefixed(prefix, values):
    return {prefix + name: value for name, value in values.items()}


# Containers and element types.
s = Net(num_layers=2).state_dict()
save("legacy.pt", s, s, _use_new_zipfile_serialization=False)
save("protocol4.pt", s, s, pickle_protocol=4)
net = Net().half()
save("half.pt", net.state_dict(), net.state_dict())
net = Net().bfloat16()
save("bfloat16.pt", net.state_dict(), net.state_dict())
net = Net().double()
save("double.pt", net.state_dict(), net.state_dict())

# The tensors of an LSTM in one storage, with offsets; and weights that are stored transposed.
s = Net().state_dict()
parts = [name for name in s if name.startswith("rec.")]
flat, at = torch.cat([s[name].reshape(-1) for name in parts]), 0
for name in parts:
    n = s[name].numel()
    s[name], at = flat[at : at + n].view(s[name].shape), at + n
save("shared_storage.pt", s, s)
s = Net().state_dict()
save("transposed.pt", {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in s.items()}, s)

# Training checkpoints, wrappers, whole modules.
net = Net()
optimizer = torch.optim.Adam(net.parameters())
net.lin(net.rec(torch.zeros(1, 2, 3))[0]).sum().backward()
optimizer.step()
save(
    "checkpoint.ckpt",
    {"epoch": 3, "state_dict": prefixed("model.", net.state_dict()), "optimizer_states": [optimizer.state_dict()],
     "hyper_parameters": {"hidden": 4}, "rng_state": torch.get_rng_state()[:16].clone(), "best": torch.float32},
    net.state_dict(),
)
save(
    "values.pt",
    {"model_state": net.state_dict(), "loss": torch.tensor(0.5), "callbacks": {"best": {"score": torch.tensor([0.25])}},
     "opt": optimizer.state_dict()},
    net.state_dict(),
)
save("statistics.pt", {"model_state": net.state_dict(), "mean": torch.zeros(3), "std": torch.ones(3)}, net.state_dict())
s = Bare(lstm=nn.LSTM(3, 4), linear=nn.Linear(4, 2)).state_dict()
save("scale.pt", {**s, "similarity_weight": torch.tensor([10.0])}, {})
save("nested_scale.pt", {"step": 7, "model_state": {**s, "similarity_weight": torch.tensor([10.0])}}, s)
save("wrapped.pth", prefixed("module._orig_mod.", net.state_dict()), net.state_dict())
save("module.pt", Net(num_layers=2), {})
save("two_models.pt", {"model": net.state_dict(), "ema": Net().state_dict()}, net.state_dict())
lstm = nn.LSTM(3, 4)
save("bare_lstm.pt", lstm.state_dict(), prefixed("lstm.", lstm.state_dict()))
torch.jit.script(nn.Linear(2, 1)).save(os.path.join(OUT, "script.pt"))

# Weight norm, old and new.
net = Net()
plain = {name: value.clone() for name, value in net.state_dict().items()}
old = nn.utils.weight_norm(nn.utils.weight_norm(net.rec, "weight_ih_l0"), "weight_hh_l0")
nn.utils.weight_norm(net.lin)
with torch.no_grad():
    net.lin.weight_g.mul_(3)
plain["lin.weight"] = plain["lin.weight"] * 3
save("weight_norm_old.pt", net.state_dict(), plain)
net = Net()
plain = {name: value.clone() for name, value in net.state_dict().items()}
nn.utils.parametrizations.weight_norm(net.lin)
save("weight_norm.pt", net.state_dict(), plain)
net = Net()
nn.utils.parametrizations.weight_norm(net.lin, dim=1)
save("weight_norm_dim1.pt", net.state_dict(), {})
net = Net()
nn.utils.parametrizations.spectral_norm(net.lin)
save("spectral_norm.pt", net.state_dict(), {})

# Cells, embeddings, several layers.
s = state(cells=nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 4), nn.LSTMCell(4, 2)]))
save("cells.pt", s, s)
s = state(embedding=nn.Embedding(7, 3), rec=nn.LSTM(3, 4, bidirectional=True), out=nn.Linear(8, 7, bias=False))
save("embedding.pt", s, s)
s = state(rec=nn.LSTM(3, 4), fc1=nn.Linear(4, 5), fc2=nn.Linear(5, 2))
save("two_linear.pt", s, s)
s = state(rec=nn.LSTM(3, 4), lin=nn.Linear(4, 3), prenet=nn.Linear(6, 3))
save("linear_before.pt", s, s)
s = state(forward_cell=nn.LSTMCell(4, 4), backward_cell=nn.LSTMCell(4, 4))
save("two_cells.pt", s, s)
rec = nn.LSTM(3, 4)
module = Bare(encoder=Bare(rec=rec), rec=rec, lin=nn.Linear(4, 2))
s = module.state_dict()
save("tied.pt", s, {name: value for name, value in s.items() if not name.startswith("rec.")})
save_model(module, os.path.join(OUT, "tied.safetensors"))
expect("tied.safetensors", {name: value for name, value in s.items() if not name.startswith("rec.")})

# Layers that are not supported.
for file, children in [
    ("gru.pt", dict(gru=nn.GRU(3, 8), lin=nn.Linear(8, 2))),
    ("rnn_beside.pt", dict(rnn=nn.RNN(3, 8), rec=nn.LSTM(8, 4))),
    ("batch_norm.pt", dict(bn=nn.BatchNorm1d(3), rec=nn.LSTM(3, 4))),
    ("layer_norm.pt", dict(rec=nn.LSTM(3, 4), norm=nn.LayerNorm(4))),
    ("conv.pt", dict(conv=nn.Conv1d(2, 3, 5), rec=nn.LSTM(3, 4))),
    ("linear_only.pt", dict(a=nn.Linear(2, 3), b=nn.Linear(3, 1))),
]:
    save(file, state(**children), {})
save("integer.pt", {**Net().state_dict(), "steps": torch.tensor([3])}, {})
save("expanded.pt", {"rec.weight_ih_l0": torch.zeros(1).expand(1 << 16, 1 << 16)}, {})
save("list.pt", [torch.zeros(2)], {})


# The tar archive of PyTorch before 0.1.10, which no current version writes.
def tar_file(values):
    storages, tensors, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(len(values), storages, 2)
    pickle.dump(len(values), tensors, 2)
    keys = {name: str(100 + k) for k, name in enumerate(values)}
    for name, value in values.items():
        key = int(keys[name])
        pickle.dump((key, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", value.numel()) + value.numpy().tobytes())
        pickle.dump((key + 50, key, torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<ii", value.ndim, 0))
        tensors.write(struct.pack(f"<{value.ndim}q", *value.shape) + struct.pack(f"<{value.ndim}q", *value.stride()))
        tensors.write(struct.pack("<q", 0))
    pickle.dump([], storages, 2)

    class Reference(str):
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return str(value) if isinstance(value, Reference) else None

    Pickler(pickled, 2).dump({name: Reference(int(key) + 50) for name, key in keys.items()})
    sys_info = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4}}, 2)
    with tarfile.open(os.path.join(OUT, "tar.pth"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [("sys_info", sys_info), ("pickle", pickled.getvalue()), ("tensors", tensors.getvalue()),
                           ("storages", storages.getvalue())]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# What would be lost or taken for something else: a module used twice, an activation in a whole module, a parameter that is
# a NumPy array. The entries of the last file have names of the length at which the crate `zip` misreads the directory.
module = nn.ModuleList([nn.LSTMCell(4, 4)] * 2)
torch.save(module.state_dict(), os.path.join(OUT, "used_twice.pt"))
torch.save(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), os.path.join(OUT, "whole_module.pt"))
state = Net().state_dict()
torch.save({**state, "lin.weight": state["lin.weight"].numpy()}, os.path.join(OUT, "numpy.pt"))
torch.save(state, os.path.join(OUT, "lstm_best_model_final.pt"))

values = {name: value.contiguous() for name, value in Net().state_dict().items()}
tar_file(values)
expect("tar.pth", values)
save_file(expected, os.path.join(OUT, "expected.safetensors"))
