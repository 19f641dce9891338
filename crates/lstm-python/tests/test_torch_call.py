"""The call of LSTM compared with torch.nn.LSTM, where PyTorch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
rnn: Any = pytest.importorskip("torch.nn.utils.rnn")
torch.set_num_threads(1)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False},
    {"batch_first": True, "bidirectional": True, "num_layers": 2},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True},
]


def pair(options: dict[str, Any]) -> tuple[Any, lstm.LSTM]:
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(4, 6, **options)
    ours = lstm.LSTM(4, 6, **options, threads=1)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def check(ours: Any, theirs: Any) -> None:
    y, (h, c) = ours
    y_torch, (h_torch, c_torch) = theirs
    for a, b in [(y, y_torch), (h, h_torch), (c, c_torch)]:
        assert type(a) is type(b)
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_tensors(options: dict[str, Any], batched: bool, with_state: bool) -> None:
    theirs, ours = pair(options)
    x = torch.randn(5, 2, 4) if batched else torch.randn(5, 4)
    _, (h, c) = theirs(x)
    hx = (torch.randn_like(h), torch.randn_like(c)) if with_state else None
    check(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[5, 3, 1], [1, 5, 3], [3, 3, 5]])
@pytest.mark.parametrize("with_state", [True, False])
def test_packed_sequences(options: dict[str, Any], lengths: list[int], with_state: bool) -> None:
    theirs, ours = pair(options)
    is_first = options.get("batch_first", False)
    x = torch.randn(3, 5, 4) if is_first else torch.randn(5, 3, 4)
    is_sorted = lengths == sorted(lengths, reverse=True)
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=is_first, enforce_sorted=is_sorted)
    y_torch, (h_torch, c_torch) = theirs(packed)
    hx = (torch.randn_like(h_torch), torch.randn_like(c_torch)) if with_state else None
    y_torch, state_torch = theirs(packed, hx)
    y, state = ours(packed, hx)
    assert isinstance(y, rnn.PackedSequence)
    torch.testing.assert_close(y.batch_sizes, y_torch.batch_sizes)
    for a, b in [(y.sorted_indices, y_torch.sorted_indices), (y.unsorted_indices, y_torch.unsorted_indices)]:
        assert (a is None and b is None) or torch.equal(a, b)
    check((y.data, state), (y_torch.data, state_torch))
    if hx is not None:
        y_numpy, state_numpy = ours(packed, tuple(state.numpy() for state in hx))
        assert torch.equal(y_numpy.data, y.data) and all(map(torch.equal, state_numpy, state))
        with pytest.raises(ValueError, match=r"expected the shape \[\d, 3, \d\]"):
            ours(packed, tuple(torch.cat([state, state], 1) for state in hx))
    # The same with lengths.
    padded, _ = rnn.pad_packed_sequence(y, batch_first=is_first)
    y_lengths, state_lengths = ours(x, hx, lengths=lengths)
    assert torch.equal(y_lengths, padded) and all(map(torch.equal, state_lengths, state))


def test_memory_is_shared() -> None:
    x = torch.zeros(5, 2, 4)
    _, ours = pair({})
    array = x.numpy()
    assert torch.equal(ours(x)[0], torch.from_numpy(ours(array)[0]))
    for tensor in (x.transpose(0, 1), x[::2], x.expand(5, 2, 4)):
        assert torch.equal(ours(tensor)[0], torch.from_numpy(ours(tensor.numpy().copy())[0]))


def test_streams_of_tensors() -> None:
    _, ours = pair({})
    x, out = torch.randn(4), torch.empty(6)
    y = ours.stream().step(x)
    assert isinstance(y, torch.Tensor) and y.shape == (6,)
    assert ours.stream().step(x, out) is out and torch.equal(y, out)
    with pytest.raises(ValueError, match="overlaps"):
        ours.stream().step(out[:4], out)


def test_errors() -> None:
    _, ours = pair({})
    with pytest.raises(TypeError, match=r"expected float32, got torch.float64; convert it with .float\(\)"):
        ours(torch.zeros(5, 2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"requires a gradient.*use lstm.torch.LSTM"):
        ours(torch.zeros(5, 2, 4, requires_grad=True))
    with torch.no_grad():
        ours(torch.zeros(5, 2, 4, requires_grad=True))
    with pytest.raises(ValueError, match="expected a tensor in host memory, got one on meta"):
        ours(torch.zeros(5, 2, 4, device="meta"))
    with pytest.raises(ValueError, match="lengths"):
        ours(rnn.pack_padded_sequence(torch.zeros(5, 2, 4), [5, 5]), lengths=[5, 5])


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_traces_and_tangents_are_an_error() -> None:
    _, ours = pair({})
    x = torch.randn(5, 2, 4)
    calls: list[Any] = [lambda x: ours(x)[0], lambda x: ours.stream(2).run(x)]
    for call in calls:
        with pytest.raises(RuntimeError, match="(x|input): the outputs would become constants of the trace"):
            torch.jit.trace(call, (x,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match="(x|input): its tangent would be dropped"):
                call(dual)


def test_state_dicts_go_both_ways() -> None:
    theirs, ours = pair({"num_layers": 2, "bidirectional": True})
    other = lstm.LSTM(4, 6, num_layers=2, bidirectional=True)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    other.load_state_dict(theirs.state_dict())
    assert other.digest() == ours.digest()
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    ours.load_state_dict({name: value.bfloat16() for name, value in theirs.state_dict().items()})
    np.testing.assert_array_equal(
        ours.state_dict()["bias_ih_l0"], theirs.state_dict()["bias_ih_l0"].bfloat16().float().numpy()
    )


def test_tensors_of_tokens() -> None:
    path = Path(__file__).resolve().parents[3] / "tests/data/models/keras-embedding.keras"
    model, tokens = lstm.Model.open(path), torch.tensor([[1, 2, 0], [3, 1, 1]])
    y = model.run(tokens)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), model.run(tokens.numpy()))
    np.testing.assert_array_equal(y.numpy(), model.run(tokens.int().tolist()))
    assert torch.equal(model.stream(2).run(tokens), y)
