"""`lstm.torch`: gradients compared with PyTorch's in float64, bits of training, conversion of modules."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

import lstm

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to run inside")
prune: Any = pytest.importorskip("torch.nn.utils.prune")
rnn: Any = pytest.importorskip("torch.nn.utils.rnn")
torch.set_num_threads(1)
Module: Any = torch.nn.Module
TorchLSTM: Any = torch.nn.LSTM

import lstm.torch  # noqa: E402

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False},
    {"batch_first": True, "bidirectional": True, "num_layers": 2},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True},
]


def pair(options: dict[str, Any]) -> tuple[Any, Any]:
    """PyTorch's module in float64, and ours with the same parameters."""
    torch.manual_seed(0)
    ours = lstm.torch.LSTM(4, 6, **options, threads=1)
    theirs = torch.nn.LSTM(4, 6, **options)
    theirs.load_state_dict(ours.state_dict())
    return theirs.double(), ours


def close(ours: Any, theirs: Any) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-6)


def gradients(net: Any, x: Any, hx: Any, weights: Any, **kwargs: Any) -> list[Any]:
    """Outputs, and gradients of a weighted sum of them with respect to everything."""
    net.zero_grad()
    x = x.detach().clone().requires_grad_()
    hx = None if hx is None else tuple(state.detach().clone().requires_grad_() for state in hx)
    y, (h, c) = net(x, hx, **kwargs)
    loss = sum((a * b.to(a.dtype)).sum() for a, b in zip((y, h, c), weights, strict=True) if b is not None)
    loss.backward()
    inputs = [x.grad, *(() if hx is None else (state.grad for state in hx))]
    return [y, h, c, *inputs, *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_gradients(options: dict[str, Any], batched: bool, with_state: bool) -> None:
    theirs, ours = pair(options)
    x = torch.randn(5, 2, 4) if batched else torch.randn(5, 4)
    y, (h, c) = ours(x)
    hx = (torch.randn_like(h), torch.randn_like(c)) if with_state else None
    for parts in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        weights = [torch.randn_like(a) if part else None for a, part in zip((y, h, c), parts, strict=True)]
        hx64 = None if hx is None else tuple(state.double() for state in hx)
        for a, b in zip(gradients(ours, x, hx, weights), gradients(theirs, x.double(), hx64, weights), strict=True):
            close(a, torch.zeros_like(a).double() if b is None else b)


@pytest.mark.parametrize("lengths", [[5, 3, 1], [1, 5, 3]])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_of_packed_sequences(options: dict[str, Any], lengths: list[int]) -> None:
    theirs, ours = pair(options)
    is_first = options.get("batch_first", False)
    x = torch.randn(3, 5, 4) if is_first else torch.randn(5, 3, 4)
    results = []
    for net, value in [(ours, x), (theirs, x.double())]:
        value = value.clone().requires_grad_()
        h0 = torch.linspace(-1, 1, 1).to(value.dtype)
        packed = rnn.pack_padded_sequence(
            value, lengths, batch_first=is_first, enforce_sorted=lengths == sorted(lengths, reverse=True)
        )
        y, (h, c) = net(packed)
        assert isinstance(y, rnn.PackedSequence)
        (y.data.sin().sum() + h.cos().sum() + (c * c).sum() + h0.sum()).backward()
        results.append([y.data, h, c, value.grad, *(parameter.grad for parameter in net.parameters())])
    for a, b in zip(*results, strict=True):
        close(a, b)


def test_states_of_packed_sequences_have_their_batch() -> None:
    _, net = pair({})
    packed = rnn.pack_padded_sequence(torch.randn(5, 3, 4), [1, 5, 3], enforce_sorted=False)
    h, c = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    for hx in [(torch.randn(1, 5, 6), torch.randn(1, 5, 6)), (h, torch.randn(1, 4, 6))]:
        with pytest.raises(ValueError, match=r"expected the shape \[1, 3, 6\]"):
            net(packed, hx)
    with pytest.raises(TypeError, match="hx: h: expected a tensor, got ndarray"):
        net(packed, (h.numpy(), c.numpy()))


def test_cells_that_pytorch_does_not_have() -> None:
    """Against finite differences."""
    for options in ({"cell": "peephole-diagonal"}, {"cell": "peephole-dense"}, {"coupled": True}, {"clip": 2.0}):
        torch.manual_seed(0)
        net: Any = lstm.torch.LSTM(3, 4, **options, threads=1)
        x = torch.randn(6, 2, 3)
        net(x)[0].square().sum().backward()
        for parameter in net.parameters():
            k = int(parameter.grad.abs().argmax())
            change = 2e-3
            with torch.no_grad():
                losses = []
                for sign in (1, -1):
                    parameter.view(-1)[k] += sign * change
                    losses.append(float(net(x)[0].double().square().sum()))
                    parameter.view(-1)[k] -= sign * change
            expected = (losses[0] - losses[1]) / (2 * change)
            assert float(parameter.grad.view(-1)[k]) == pytest.approx(expected, rel=0.03, abs=1e-4)


def train(threads: int, steps: int = 5) -> tuple[str, list[float]]:
    """A training loop of which the LSTM is the only module."""
    torch.manual_seed(0)
    net = lstm.torch.LSTM(8, 16, num_layers=2, bidirectional=True, dropout=0.25, threads=threads)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x, target = torch.randn(40, 8, 8), torch.randn(40, 8, 32)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        # The loss in NumPy, in float64: its order of additions does not depend on threads of PyTorch.
        y, _ = net(x)
        dy = (2.0 / y.numel()) * (y.detach() - target)
        losses.append(float(np.square((y.detach() - target).numpy().astype(np.float64)).mean()))
        y.backward(dy)
        optimizer.step()
    return lstm.digest(*(parameter.detach().numpy() for parameter in net.parameters())), losses


def test_training_has_the_same_bits_for_any_number_of_threads() -> None:
    digest, losses = train(1)
    assert losses[-1] < losses[0]
    assert train(2) == (digest, losses)
    assert train(4) == (digest, losses)


def test_parameters_are_those_of_pytorch() -> None:
    torch.manual_seed(3)
    ours = lstm.torch.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
    torch.manual_seed(3)
    theirs = torch.nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("options", OPTIONS)
def test_other_attributes_are_those_of_pytorch(options: dict[str, Any]) -> None:
    theirs, ours = pair(options)
    assert ours.mode == theirs.mode and ours.flatten_parameters() is None
    for a, b in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(x.double(), y) for x, y in zip(a, b, strict=True))


def test_the_module_is_imported_at_its_first_use() -> None:
    code = "import lstm, sys; assert 'torch' not in sys.modules; lstm.torch.LSTM(3, 4); assert not hasattr(lstm, 'other')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arguments_of_other_modules_of_pytorch() -> None:
    skipped: Any = torch.nn.utils.skip_init(lstm.torch.LSTM, 4, 6, num_layers=2)
    assert skipped.device == "cpu" and skipped.weight_ih_l1.device.type == "cpu"
    _, net = pair({"num_layers": 2})
    skipped.load_state_dict(net.state_dict())
    x = torch.randn(5, 2, 4)
    assert torch.equal(skipped(x)[0], net(x)[0])
    for device in (None, "cpu", torch.device("cpu")):
        assert lstm.torch.LSTM(4, 6, device=device, dtype=torch.float32).device == "cpu"
    meta: Any = lstm.torch.LSTM(4, 6, device="meta")
    with pytest.raises(ValueError, match="weight_ih_l0: expected a tensor in host memory, got one on meta"):
        meta(x)
    with pytest.raises(TypeError, match="dtype: expected torch.float32, got torch.float64"):
        lstm.torch.LSTM(4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"device: expected a name of lstm.devices\(\).*got torch.device\('cuda'\)"):
        lstm.torch.LSTM(4, 6, device=torch.device("cuda"))
    with pytest.raises(ValueError, match="expected one of cpu, .*, got `tpu`"):
        lstm.torch.LSTM(4, 6, device="tpu")
    with pytest.raises(ValueError, match="device: expected a name of lstm.devices"):
        lstm.torch.convert(torch.nn.LSTM(4, 6), device="meta")


def test_every_change_of_a_parameter_is_seen() -> None:
    """Also one that PyTorch does not count as a change."""
    _, net = pair({})
    x = torch.randn(5, 2, 4)
    with torch.no_grad():
        before = net(x)[0]
        net.weight_hh_l0.data[0, 0] += 1
        assert not torch.equal(net(x)[0], before)
        net.weight_hh_l0.detach().numpy()[0, 0] -= 1
        torch.testing.assert_close(net(x)[0], before)


def test_inference_has_the_bits_of_training() -> None:
    _, net = pair({"num_layers": 2, "bidirectional": True})
    x = torch.randn(5, 2, 4)
    y, state = net(x)
    assert y.requires_grad and y.grad_fn is not None
    with torch.inference_mode():
        y_other, state_other = net(x)
    assert not y_other.requires_grad
    assert torch.equal(y, y_other) and all(map(torch.equal, state, state_other))


def test_dropout_follows_the_seed_of_pytorch() -> None:
    net = lstm.torch.LSTM(4, 50, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 4)
    torch.manual_seed(1)
    a, b = net(x)[0], net(x)[0]
    torch.manual_seed(1)
    assert torch.equal(net(x)[0], a) and not torch.equal(a, b)
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_options_can_be_changed_or_are_an_error() -> None:
    net: Any = lstm.torch.LSTM(4, 50, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 4)
    modules: list[Any] = [*net.modules()]
    for module in modules:
        module.dropout = 0.0
    assert net.dropout == 0 and torch.equal(net(x)[0], net.eval()(x)[0]), "there is no dropout in training mode"
    net.train().dropout = 0.25
    assert net.dropout == 0.25 and "dropout=0.25" in repr(net) and not torch.equal(net(x)[0], net.eval()(x)[0])
    y, _ = net(x)
    net.batch_first = True
    assert net.batch_first and torch.equal(net(x.transpose(0, 1))[0].transpose(0, 1), y)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size", "cell", "clip", "coupled",
                 "device", "threads", "path"):  # fmt: skip
        with pytest.raises(AttributeError, match=f"{name}: it can't be changed; make a new lstm.torch.LSTM"):
            setattr(net, name, getattr(net, name))
    with pytest.raises(ValueError, match="dropout"):
        net.dropout = 1.5
    assert net.dropout == 0.25
    one = lstm.torch.LSTM(4, 6)
    one.dropout = 0.5
    assert copy.deepcopy(one).dropout == 0.5, "without a warning"
    assert one.dropout == 0.5 and torch.equal(one(x)[0], one(x)[0])


def test_partial_gradients() -> None:
    _, net = pair({})
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(5, 2, 4)
    assert not net(x)[0].requires_grad
    net.weight_ih_l0.requires_grad_()
    net(x)[0].sum().backward()
    assert net.weight_ih_l0.grad is not None and net.weight_hh_l0.grad is None


def test_second_derivatives_are_an_error() -> None:
    _, net = pair({})
    x = torch.randn(5, 2, 4, requires_grad=True)
    y, _ = net(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of first order only"):
        (y.sum() + gradient.square().sum()).backward()


@pytest.mark.parametrize("of", ["before", "x", "h", "parameter", "upstream"])
def test_second_derivatives_with_respect_to_one_tensor_are_an_error(of: str) -> None:
    """PyTorch then runs only the nodes that lead to this tensor."""
    _, net = pair({})
    before = torch.nn.Linear(4, 4)
    x, h = (torch.randn(shape, requires_grad=True) for shape in [(5, 2, 4), (1, 2, 6)])
    y, _ = net(before(x), (h, torch.zeros(1, 2, 6)))
    upstream = torch.randn(5, 2, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    tensors = {"before": before.weight, "x": x, "h": h, "parameter": net.bias_hh_l0, "upstream": upstream}
    with pytest.raises(RuntimeError, match="gradients of first order only"):
        torch.autograd.grad(gradient.square().sum(), tensors[of])


def test_hessians_are_an_error() -> None:
    _, net = pair({})
    x = torch.randn(5, 2, 4)
    functional = torch.autograd.functional
    for call in (functional.hessian, lambda f, x: functional.hvp(f, x, x), lambda f, x: functional.jvp(f, x, x)):
        with pytest.raises(RuntimeError, match="gradients of first order only"):
            call(lambda x: net(x)[0].square().sum(), x)


def test_a_second_backward_pass_needs_retain_graph() -> None:
    _, net = pair({})
    y, _ = net(torch.randn(5, 2, 4))
    y.sum().backward(retain_graph=True)
    gradient = net.weight_ih_l0.grad.clone()
    y.sum().backward()
    assert torch.equal(net.weight_ih_l0.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_checkpointed_passes_have_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    net = lstm.torch.LSTM(4, 6, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 4)
    results = []
    for is_checkpointed in (False, True):
        torch.manual_seed(1)
        net.zero_grad()
        y = checkpoint(net, x, use_reentrant=False)[0] if is_checkpointed else net(x)[0]
        y.square().sum().backward()
        results.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *results))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("mode", ["grad", "no_grad", "frozen"])
@pytest.mark.parametrize("which", ["x", "h", "parameter"])
def test_derivatives_of_forward_mode_are_an_error(mode: str, which: str) -> None:
    forward_ad: Any = torch.autograd.forward_ad
    _, net = pair({})
    net.requires_grad_(mode != "frozen")
    x, h, c = torch.randn(5, 2, 4), torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    with torch.set_grad_enabled(mode != "no_grad"), forward_ad.dual_level():
        if which == "x":
            x = forward_ad.make_dual(x, torch.ones_like(x))
        elif which == "h":
            h = forward_ad.make_dual(h, torch.ones_like(h))
        else:
            value = net.weight_hh_l0.detach()
            del net.weight_hh_l0
            net.weight_hh_l0 = forward_ad.make_dual(value, torch.ones_like(value))
        with pytest.raises(NotImplementedError, match="no derivatives of forward mode"):
            net(x, (h, c))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_packed", [False, True])
def test_traces_are_an_error(is_packed: bool) -> None:
    _, net = pair({})
    x = torch.randn(5, 2, 4)

    def run(x: Any) -> Any:
        return net(rnn.pack_padded_sequence(x, [5, 3]))[0].data if is_packed else net(x)[0]

    with pytest.raises(RuntimeError, match="can't be traced, scripted or exported.*before lstm.torch.convert"):
        torch.jit.trace(run, (x,))
    if not is_packed and hasattr(torch.compiler, "is_exporting"):
        with pytest.raises(RuntimeError, match="can't be traced, scripted or exported.*before lstm.torch.convert"):
            torch.export.export(net, (x,))
    with pytest.raises(RuntimeError, match="can't be traced, scripted or exported.*before lstm.torch.convert"):
        torch.jit.script(torch.nn.Sequential(net))


def test_transforms_of_functions_are_an_error() -> None:
    _, net = pair({})
    x = torch.randn(5, 2, 4)
    for transform in (torch.func.grad, torch.func.jacrev, torch.vmap):
        with pytest.raises(NotImplementedError, match=r"does not run under torch.func .*; use backward\(\)"):
            transform(lambda x: net(x)[0].sum())(x if transform is not torch.vmap else x[None])
    # What the text advises.
    (gradient,) = torch.autograd.grad(net(x.requires_grad_())[0].sum(), x)
    assert gradient.shape == x.shape


def test_empty_batches() -> None:
    _, net = pair({})
    y, (h, _) = net(torch.zeros(5, 0, 4, requires_grad=True))
    (y.sum() + h.sum()).backward()
    assert net.weight_ih_l0.grad.abs().max() == 0


def test_copies() -> None:
    _, net = pair({"num_layers": 2, "dropout": 0.25})
    net.eval()
    x = torch.randn(5, 2, 4)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert repr(other) == repr(net) and not other.training
        assert torch.equal(other(x)[0], net(x)[0])
        with torch.no_grad():
            other.bias_ih_l0 += 1
        assert not torch.equal(other(x)[0], net(x)[0])
    assert len(pickle.dumps(lstm.torch.LSTM(100, 100))) < 1.1 * 4 * sum(p.numel() for p in torch.nn.LSTM(100, 100).parameters())
    assert "num_layers=2" in repr(net) and "layer 1: 6 -> 6" in repr(net)
    assert (net.hidden_size, net.num_layers, net.batch_first, net.path) == (6, 2, False, net._lstm.path)


def test_a_single_sequence_takes_a_length() -> None:
    net = lstm.torch.LSTM(4, 6)
    x, short = (torch.ones(5, 4, requires_grad=True) for _ in range(2))
    y, (h, _) = net(x, lengths=[3])
    y_short, (h_short, _) = net(short[:3])
    assert torch.equal(y[:3], y_short) and torch.equal(h, h_short) and not y[3:].any()
    (y.sum() + h.sum()).backward()
    (y_short.sum() + h_short.sum()).backward()
    assert torch.equal(x.grad, short.grad)


def test_errors() -> None:
    _, net = pair({})
    with pytest.raises(TypeError, match=r"input: expected float32, got torch.float64"):
        net(torch.zeros(5, 2, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match="input: expected a tensor or a PackedSequence, got ndarray"):
        net(np.zeros((5, 2, 4), np.float32))
    with pytest.raises(TypeError, match=r"hx: expected the tuple \(h0, c0\)"):
        net(torch.zeros(5, 2, 4), torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match=r"input: expected .*, got the shape \[5, 2, 3\]"):
        net(torch.zeros(5, 2, 3))
    with pytest.raises(ValueError, match="host memory"):
        net(torch.zeros(5, 2, 4, device="meta"))
    net.weight_ih_l0 = torch.nn.Parameter(torch.zeros(24, 5))
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected the shape \[24, 4\], got \[24, 5\]"):
        net(torch.zeros(5, 2, 4))
    with pytest.raises(TypeError, match="weight_ih_l0: expected float32"):
        net.double()(torch.zeros(5, 2, 4))


class Net(Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(4, 6, num_layers=2, dropout=0.25)
        self.rest = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LSTM(4, 6, batch_first=True, bidirectional=True))
        self.again = self.first
        self.cell = torch.nn.LSTMCell(4, 6)

    def forward(self, x: Any) -> Any:
        return self.rest(self.again(self.first(x)[0][..., :4])[0])[0]


def test_convert() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(5, 2, 4)
    state = torch.get_rng_state()
    converted: Any = lstm.torch.convert(net, threads=1)
    assert torch.equal(torch.get_rng_state(), state), "random numbers are as without the conversion"
    torch.testing.assert_close(converted(x), net(x), rtol=1e-4, atol=1e-5)
    assert isinstance(net.first, torch.nn.LSTM) and isinstance(converted.first, lstm.torch.LSTM)
    assert converted.again is converted.first and isinstance(converted.rest[1], lstm.torch.LSTM)
    assert converted.rest[1].batch_first and not converted.first.training and converted.first.dropout == 0.25
    assert [*converted.state_dict()] == [*net.state_dict()]
    assert isinstance(converted.cell, torch.nn.LSTMCell)
    parameters = list(net.parameters())
    assert lstm.torch.convert(net, inplace=True) is net
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True)), "an optimizer continues"
    single = lstm.torch.convert(torch.nn.LSTM(4, 6))
    assert isinstance(single, lstm.torch.LSTM)


class Special(TorchLSTM):  # type: ignore[misc]
    pass


def test_convert_lists_what_it_cannot_replace() -> None:
    with pytest.raises(ValueError, match="no torch.nn.LSTM in Linear"):
        lstm.torch.convert(torch.nn.Linear(3, 4))
    net = torch.nn.Sequential(torch.nn.LSTM(4, 6), Special(4, 6), torch.nn.LSTM(4, 6).half(), torch.nn.LSTM(4, 6))
    net[3].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"`1`: it is a subclass, Special.*`2`: weight_ih_l0 is torch.float16.*`3`: it has hooks"):
        lstm.torch.convert(net, inplace=True)
    assert type(net[0]) is torch.nn.LSTM, "nothing was replaced"
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(4, 6), "weight_hh_l0")
    with pytest.raises(ValueError, match="the module: it has parametrizations; remove them"):
        lstm.torch.convert(normed)
    number: Any = 3
    with pytest.raises(TypeError, match="convert: expected a torch.nn.Module, got int"):
        lstm.torch.convert(number)


def changed_forward(net: Any) -> None:
    net.forward = types.MethodType(lambda self, x: x, net)


CHANGES: list[tuple[Any, str]] = [
    (changed_forward, "it has an attribute `forward` of its own"),
    (lambda net: setattr(net, "activation", abs), "it has an attribute `activation` of its own"),
    (lambda net: setattr(net, "clip", 3.0), "it has an attribute `clip` of its own"),
    (lambda net: net.register_buffer("mean", torch.zeros(3)), "it has the buffer `mean`"),
    (lambda net: setattr(net, "extra", torch.nn.Linear(1, 1)), "it has the submodule `extra`"),
    (lambda net: net.register_parameter("scale", torch.nn.Parameter(torch.zeros(3))), "it has the parameter `scale`, unlike"),
    (lambda net: net.register_parameter("bias_ih_l0", None), "it does not have the parameter `bias_ih_l0`, unlike"),
    (lambda net: setattr(net, "hidden_size", 7), r"weight_ih_l0 has the shape \[24, 4\]; expected \[28, 4\] for its options"),
    (lambda net: net.register_state_dict_pre_hook(lambda *args: None), r"it has hooks \(_state_dict_pre_hooks\)"),
    (lambda net: torch.nn.utils.weight_norm(net, "weight_hh_l0"), "weight_hh_l0: computed from other tensors"),
    (lambda net: prune.l1_unstructured(net, "weight_hh_l0", 0.5), "weight_hh_l0: computed from other tensors"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_convert_replaces_no_module_that_was_changed(change: Any, why: str) -> None:
    net = torch.nn.Sequential(torch.nn.LSTM(4, 6))
    change(net[0])
    for inplace in (False, True):
        with pytest.raises(ValueError, match=f"can't replace .*`0`: .*{why}"):
            lstm.torch.convert(net, inplace=inplace)
        assert type(net[0]) is torch.nn.LSTM


def test_convert_keeps_attributes_and_ties() -> None:
    net: Any = torch.nn.LSTM(6, 6, num_layers=2)
    net.weight_ih_l1 = net.weight_ih_l0
    net.mark = {"a": 1}
    converted: Any = lstm.torch.convert(net)
    assert converted.mark == {"a": 1} and converted.weight_ih_l1 is converted.weight_ih_l0
    x = torch.randn(5, 2, 6)
    results = []
    for module in (net, converted):
        y, _ = module(x)
        y.square().sum().backward()
        results.append([y, *(parameter.grad for parameter in module.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
