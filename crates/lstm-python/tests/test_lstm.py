"""The class LSTM: calls, states, weights, arrays of all kinds, errors."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm

F32 = NDArray[np.float32]


def noise(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def model(*args: Any, **kwargs: Any) -> lstm.LSTM:
    return lstm.LSTM(*args, **{"seed": 1, "threads": 1, **kwargs})


def test_shapes_of_all_layouts() -> None:
    net = model(3, 5, num_layers=2, bidirectional=True, proj_size=4)
    y, (h, c) = net(noise(7, 2, 3))
    assert (y.shape, h.shape, c.shape) == ((7, 2, 8), (4, 2, 4), (4, 2, 5))
    y, (h, c) = net(noise(7, 3))
    assert (y.shape, h.shape, c.shape) == ((7, 8), (4, 4), (4, 5))
    first = model(3, 5, num_layers=2, bidirectional=True, proj_size=4, batch_first=True)
    y, (h, c) = first(noise(2, 7, 3))
    assert (y.shape, h.shape, c.shape) == ((2, 7, 8), (4, 2, 4), (4, 2, 5))
    assert all(array.dtype == np.float32 for array in (y, h, c))


def test_layouts_give_the_same_bits() -> None:
    x = noise(7, 2, 3)
    net, first = model(3, 5, num_layers=2), model(3, 5, num_layers=2, batch_first=True)
    y, (h, c) = net(x)
    y_first, (h_first, c_first) = first(np.ascontiguousarray(x.swapaxes(0, 1)))
    np.testing.assert_array_equal(y, y_first.swapaxes(0, 1))
    np.testing.assert_array_equal(h, h_first)
    np.testing.assert_array_equal(c, c_first)
    y_one, (h_one, c_one) = net(x[:, 1])
    np.testing.assert_array_equal(y[:, 1], y_one)
    np.testing.assert_array_equal(h[:, 1], h_one)
    np.testing.assert_array_equal(c[:, 1], c_one)


@pytest.mark.parametrize("batched", [True, False])
def test_a_state_continues_a_sequence(batched: bool) -> None:
    net = model(3, 5, num_layers=2)
    x = noise(7, 2, 3) if batched else noise(7, 3)
    y, (h, c) = net(x)
    first, state = net(x[:4])
    second, (h_end, c_end) = net(x[4:], state)
    np.testing.assert_array_equal(y, np.concatenate([first, second]))
    np.testing.assert_array_equal(h, h_end)
    np.testing.assert_array_equal(c, c_end)


def test_lengths_are_those_of_shorter_sequences() -> None:
    net = model(3, 5, bidirectional=True)
    x = noise(7, 3, 3)
    for lengths in ([2, 7, 0], np.array([2, 7, 0]), np.array([2, 7, 0], np.uint8)):
        y, (h, _) = net(x, lengths=lengths)
        short, (h_short, _) = net(x[:2, 0])
        np.testing.assert_array_equal(y[:2, 0], short)
        np.testing.assert_array_equal(h[:, 0], h_short)
        assert not y[2:, 0].any() and not y[:, 2].any() and not h[:, 2].any()


@pytest.mark.parametrize(
    ("lengths", "error", "part"),
    [
        ([1.0, 2.0], TypeError, "expected integers"),
        ([1, -1], ValueError, "got -1"),
        ([1, 8], ValueError, "at most 7 steps"),
        ([1], ValueError, "lengths"),
        ([[1, 2]], ValueError, "one length for each sequence"),
    ],
)
def test_wrong_lengths(lengths: Any, error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        model(3, 5)(noise(7, 2, 3), lengths=lengths)


def test_a_single_sequence_takes_a_length() -> None:
    x = noise(7, 3)
    for net in (model(3, 5), model(3, 5, batch_first=True)):
        y, (h, c) = net(x, lengths=[4])
        short, (h_short, c_short) = net(x[:4])
        np.testing.assert_array_equal(y[:4], short)
        np.testing.assert_array_equal(h, h_short)
        np.testing.assert_array_equal(c, c_short)
        assert y.shape == (7, 5) and not y[4:].any()
        with pytest.raises(ValueError, match=r"lengths: expected the shape \[1\], one length for each sequence"):
            net(x, lengths=[4, 4])


def test_keywords_are_those_of_pytorch() -> None:
    net, x = model(input_size=3, hidden_size=5, num_layers=2), noise(7, 2, 3)
    _, hx = net(x)
    for call in (net, net.forward):
        np.testing.assert_array_equal(call(input=x, hx=hx)[0], net(x, hx)[0])
    net.flatten_parameters()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: model(3, 5, bias=1), TypeError, "bias: expected True or False, got 1 (int)"),
        (lambda: model(3, 5, batch_first=0), TypeError, "batch_first: expected True or False, got 0 (int)"),
        (lambda: model(3, 5, bidirectional="yes"), TypeError, "bidirectional: expected True or False, got 'yes' (str)"),
        (lambda: model(3, 5.0), TypeError, "hidden_size: expected an integer, got 5.0 (float)"),
        (lambda: model(3, 10**50), ValueError, "hidden_size: expected a number from 0 to 2^64 - 1, got 1000"),
        (lambda: model(3, 5, dropout=[0.5]), TypeError, "dropout: expected a number, got [0.5] (list)"),
        (lambda: model(3, 5, device=0), TypeError, "device: expected a str, got 0 (int)"),
        (lambda: model(3, 5, cell=noise(9, 9)), TypeError, "cell: expected a str, got a value of the type ndarray"),
        (lambda: model(3, 5).train(1), TypeError, "mode: expected True or False, got 1 (int)"),  # type: ignore[arg-type]
        (lambda: model(3, 5).stream(1.5), TypeError, "batch: expected an integer, got 1.5"),  # type: ignore[arg-type]
        (lambda: lstm.Model.open("x", name=3), TypeError, "name: expected a str"),  # type: ignore[arg-type]
        (lambda: lstm.Model.open("x", cell=3), TypeError, "cell: expected a str, got 3"),  # type: ignore[arg-type]
        (lambda: model(3, 5).load_state_dict([]), TypeError, "state_dict: expected a dict"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_the_argument(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        call()


def test_numpy_booleans_and_integers_are_options() -> None:
    options: dict[str, Any] = {"bias": np.False_, "num_layers": np.int64(2)}
    assert model(3, 5, **options).digest() == model(3, 5, bias=False, num_layers=2).digest()


def test_load_state_dict_that_is_not_strict() -> None:
    net, other = model(3, 5), model(3, 5, seed=2)
    weights, before = other.state_dict(), net.state_dict()
    del weights["bias_hh_l0"]
    with pytest.raises(ValueError, match="missing: bias_hh_l0; unexpected: more"):
        net.load_state_dict({**weights, "more": weights["bias_ih_l0"]})
    keys = net.load_state_dict({**weights, "more": weights["bias_ih_l0"]}, strict=False)
    assert keys.missing_keys == ["bias_hh_l0"] and keys.unexpected_keys == ["more"]
    after = net.state_dict()
    np.testing.assert_array_equal(after["bias_hh_l0"], before["bias_hh_l0"])
    np.testing.assert_array_equal(after["weight_hh_l0"], weights["weight_hh_l0"])
    with pytest.raises(ValueError, match="wrong shape: bias_ih_l0"):
        net.load_state_dict({"bias_ih_l0": noise(3)}, strict=False)
    with pytest.raises(ValueError, match="missing: bias_hh_l0$"):
        model(3, 5, precision="int8").load_state_dict(weights, strict=False)
    assert other.load_state_dict(other.state_dict()) == ([], [])


def variants() -> dict[str, tuple[NDArray[Any], F32]]:
    """Arrays of unusual memory, and what they hold."""
    base = noise(8, 4, 6)
    record = np.zeros((7, 2, 3), np.dtype([("a", np.int8), ("x", np.float32)]))
    record["x"] = base[:7, :2, :3]
    unaligned = np.zeros(7 * 2 * 3 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(7, 2, 3)
    unaligned[:] = base[:7, :2, :3]
    readonly = base[:7, :2, :3].copy()
    readonly.flags.writeable = False
    plain = base[:7, :2, :3].copy()
    return {
        "fortran": (np.asfortranarray(plain), plain),
        "reversed": (base[:7, :2, :3][::-1, ::-1, ::-1], plain[::-1, ::-1, ::-1].copy()),
        "strided": (base[::2, ::2, ::2], base[::2, ::2, ::2].copy()),
        "broadcast": (np.broadcast_to(base[0, :2, :3], (7, 2, 3)), np.repeat(base[:1, :2, :3], 7, 0)),
        "packed record": (record["x"], plain),
        "unaligned": (unaligned, plain),
        "read-only": (readonly, plain),
        "memory map": (np.asarray(plain).view(np.memmap), plain),
    }


@pytest.mark.parametrize("name", variants())
def test_any_memory_layout(name: str) -> None:
    array, plain = variants()[name]
    net = model(3, 5)
    before = array.copy()
    y, (h, c) = net(array)
    expected, state = net(plain)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(array, before)
    again, _ = net(array, (np.asfortranarray(h), c[:, ::-1][:, ::-1]))
    np.testing.assert_array_equal(again, net(plain, state)[0])


@pytest.mark.parametrize("shape", [(0, 2, 3), (7, 0, 3), (0, 0, 3), (0, 3)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    net = model(3, 5)
    y, (h, c) = net(np.zeros(shape, np.float32))
    assert y.shape == (*shape[:-1], 5) and h.shape == c.shape == ((1, shape[1], 5) if len(shape) == 3 else (1, 5))
    y, _ = net(np.zeros(shape, np.float32)[::-1])
    assert y.shape == (*shape[:-1], 5)


def test_nan_stays_in_its_sequence() -> None:
    x = noise(7, 2, 3)
    x[3, 0, 0] = np.nan
    y, _ = model(3, 5)(x)
    assert np.isnan(y[3:, 0]).all() and np.isfinite(y[:3, 0]).all() and np.isfinite(y[:, 1]).all()


class Masked(np.ma.MaskedArray[Any, Any]):
    pass


@pytest.mark.parametrize(
    ("x", "error", "part"),
    [
        (np.zeros((7, 2, 3)), TypeError, r"input: expected float32, got float64; convert it with .astype\(np.float32\)"),
        (np.zeros((7, 2, 3), np.int64), TypeError, "got int64"),
        (np.zeros((7, 2, 3), ">f4"), TypeError, "got >f4"),
        (np.zeros((7, 2, 3), object), TypeError, "got object"),
        ([[1.0]], TypeError, "expected an array of NumPy, a tensor"),
        (None, TypeError, "got NoneType"),
        (np.zeros(3, np.float32), ValueError, r"input: expected the shape \(steps, batch, 3\) or \(steps, 3\)"),
        (np.zeros((1, 1, 1, 3), np.float32), ValueError, r"got the shape \[1, 1, 1, 3\]"),
        (np.zeros((7, 2, 4), np.float32), ValueError, r"input: expected .*, got the shape \[7, 2, 4\]"),
        (np.ma.masked_array(np.zeros((7, 2, 3), np.float32)), TypeError, "masked array"),
        (Masked(np.zeros((7, 2, 3), np.float32)), TypeError, "masked array"),
    ],
)
def test_wrong_inputs(x: Any, error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        model(3, 5)(x)


def test_wrong_states() -> None:
    net, x = model(3, 5), noise(7, 2, 3)
    zeros = np.zeros((1, 2, 5), np.float32)
    for hx, error, part in [
        ((zeros, zeros[:, :1]), ValueError, r"hx: c: expected the shape \[1, 2, 5\], got \[1, 1, 5\]"),
        ((zeros[0], zeros[0]), ValueError, "hx: h: expected 3 dimensions"),
        ((zeros, zeros.astype(np.float64)), TypeError, "hx: c: expected float32, got float64"),
        (zeros, TypeError, r"expected the tuple \(h0, c0\), got the type ndarray"),
        ((zeros,), TypeError, "hx"),
    ]:
        with pytest.raises(error, match=part):
            net(x, hx)
    with pytest.raises(ValueError, match="one sequence without a batch axis"):
        net(x[:, 0], (zeros, zeros))


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": -5}, "hidden_size: expected a number from 0"),
        ({"num_layers": 0}, "num_layers"),
        ({"proj_size": 5}, "proj_size"),
        ({"dropout": 1.5}, "dropout"),
        ({"clip": 0.0}, "clip"),
        ({"cell": "gru"}, "cell: expected one of fused"),
        ({"precision": "int4"}, "precision: expected one of f32, int8, int12, got `int4`"),
        ({"device": "tpu"}, "device: expected one of cpu"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options(kwargs: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        lstm.LSTM(**{"input_size": 3, "hidden_size": 5, **kwargs})


class Foreign:
    """An array of a library that has `__dlpack__` only."""

    def __init__(self, array: F32) -> None:
        self.array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnlyInterface:
    """An array of a library that has `__array_interface__` only."""

    def __init__(self, array: F32) -> None:
        self.__array_interface__ = array.__array_interface__
        self.array = array


class OnDevice(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class Namespaced(Foreign):
    """An array of a library with the array API."""

    def __array_namespace__(self) -> Any:
        return types.SimpleNamespace(from_dlpack=Namespaced)


def test_arrays_of_other_libraries() -> None:
    x, net = noise(7, 2, 3), model(3, 5)
    expected, (h, c) = net(x)
    for kind in (Foreign, OnlyInterface):
        y, _ = net(kind(x), (kind(np.zeros_like(h)), kind(np.zeros_like(c))))
        np.testing.assert_array_equal(y, expected)
    y, (h_other, _) = net(Namespaced(x))
    assert isinstance(y, Namespaced) and isinstance(h_other, Namespaced), "results are of the kind that was given"
    np.testing.assert_array_equal(y.array, expected)
    with pytest.raises(ValueError, match="host memory"):
        net(OnDevice(x))


class TestStateDict:
    @pytest.mark.parametrize("cell", ["fused", "unfused", "peephole-dense", "peephole-diagonal"])
    @pytest.mark.parametrize("precision", ["f32", "int8", "int12"])
    def test_round_trip(self, cell: str, precision: str) -> None:
        net = model(3, 5, num_layers=2, bidirectional=True, cell=cell, precision=precision)
        other = model(3, 5, num_layers=2, bidirectional=True, cell=cell, precision=precision, seed=2)
        assert net.digest() != other.digest()
        other.load_state_dict(net.state_dict())
        assert net.digest() == other.digest()
        np.testing.assert_array_equal(net(noise(7, 2, 3))[0], other(noise(7, 2, 3))[0])

    def test_names_are_those_of_pytorch(self) -> None:
        shapes = {name: value.shape for name, value in model(3, 5, proj_size=2, bidirectional=True).state_dict().items()}
        assert shapes == {
            f"{name}_l0{reverse}": shape
            for reverse in ("", "_reverse")
            for name, shape in [
                ("weight_ih", (20, 3)),
                ("weight_hh", (20, 2)),
                ("bias_ih", (20,)),
                ("bias_hh", (20,)),
                ("weight_hr", (2, 5)),
            ]
        }
        assert [*model(3, 5, bias=False).state_dict()] == ["weight_ih_l0", "weight_hh_l0"]

    def test_errors_list_everything(self) -> None:
        net = model(3, 5)
        state_dict: dict[str, Any] = net.state_dict()
        digest = net.digest()
        del state_dict["weight_hh_l0"], state_dict["bias_hh_l0"]
        state_dict |= {"weight_ih_l1": noise(1), "weight_ih_l0": noise(20, 4)}
        with pytest.raises(ValueError) as info:
            net.load_state_dict(state_dict)
        assert str(info.value) == (
            "load_state_dict: missing: weight_hh_l0, bias_hh_l0; unexpected: weight_ih_l1; "
            "wrong shape: weight_ih_l0 (expected [20, 3], got [20, 4])"
        )
        assert net.digest() == digest

    def test_types(self) -> None:
        net = model(3, 5)
        state_dict = net.state_dict()
        net.load_state_dict({name: value.astype(np.float64) for name, value in state_dict.items()})
        with pytest.raises(TypeError, match="bias_ih_l0: expected floating-point numbers, got int64"):
            net.load_state_dict({**state_dict, "bias_ih_l0": np.zeros(20, np.int64)})
        with pytest.raises(ValueError, match="bias_ih_l0: a value of float64 is too large"):
            net.load_state_dict({**state_dict, "bias_ih_l0": np.full(20, 1e300)})
        with pytest.raises(TypeError):
            net.load_state_dict(3)  # type: ignore[arg-type]

    def test_is_a_copy(self) -> None:
        net = model(3, 5)
        digest = net.digest()
        for value in net.state_dict().values():
            value[:] = 0
        assert net.digest() == digest


def test_dropout_acts_in_training_only() -> None:
    net, x = model(3, 50, num_layers=2, dropout=0.5), noise(7, 2, 3)
    assert net.training
    a, b = net(x)[0], net(x)[0]
    assert (a != b).any(), "each pass has a mask of its own"
    same = model(3, 50, num_layers=2, dropout=0.5)
    np.testing.assert_array_equal(a, same(x)[0])
    assert net.eval() is net and not net.training
    plain = model(3, 50, num_layers=2)
    np.testing.assert_array_equal(net(x)[0], plain(x)[0])
    assert net.train().training


@pytest.mark.parametrize("number", [-1, 1 << 64, 1 << 70])
def test_numbers_out_of_range(number: int, tmp_path: Any) -> None:
    net = model(3, 5)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: lstm.LSTM(number, 5), "input_size"),
        (lambda: lstm.LSTM(3, number), "hidden_size"),
        (lambda: lstm.LSTM(3, 5, number), "num_layers"),
        (lambda: lstm.LSTM(3, 5, proj_size=number), "proj_size"),
        (lambda: lstm.LSTM(3, 5, threads=number), "threads"),
        (lambda: lstm.LSTM(3, 5, seed=number), "seed"),
        (lambda: net.stream(number), "batch"),
        (lambda: lstm.Trainer(net, number), "output_size"),
        (lambda: lstm.Trainer(net, seed=number), "seed"),
        (lambda: lstm.Trainer.resume(tmp_path / "run", threads=number), "threads"),
        (lambda: lstm.Model.open(tmp_path / "model", threads=number), "threads"),
    ]
    for make, name in cases:
        with pytest.raises(ValueError, match=rf"{name}: expected a number from 0 to 2\^64 - 1, got {number}"):
            make()


def test_a_failed_pass_does_not_count() -> None:
    net, other = (model(3, 50, num_layers=2, dropout=0.5) for _ in range(2))
    x = noise(7, 2, 3)
    for wrong in ({"input": x[..., :2]}, {"input": x, "lengths": [8, 1]}):
        with pytest.raises(ValueError):
            net(**wrong)
        np.testing.assert_array_equal(net(x)[0], other(x)[0])


def test_masks_of_other_seeds_are_others() -> None:
    x, weights = noise(7, 2, 3), model(3, 50, num_layers=2).state_dict()
    first, second = (model(3, 50, num_layers=2, dropout=0.5, seed=seed) for seed in (1, 2))
    first.load_state_dict(weights)
    second.load_state_dict(weights)
    first(x)
    assert not np.array_equal(first(x)[0], second(x)[0])


def test_masks_of_arrays_are_errors() -> None:
    net, x = model(3, 5), noise(7, 2, 3)

    class Wrapper:
        def __init__(self, array: NDArray[Any]) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
            return self.array

    for masked in (np.ma.masked_greater(x, 0), Wrapper(np.ma.masked_greater(x, 0))):
        with pytest.raises(TypeError, match="input: a masked array"):
            net(masked)
    lengths = np.ma.masked_greater([3, 7], 5)
    with pytest.raises(TypeError, match="lengths: a masked array"):
        net(x, lengths=lengths)
    with pytest.raises(TypeError, match="target: a masked array"):
        lstm.Trainer(net).step(x, np.ma.masked_equal(np.zeros((7, 2), int), 0), loss="cross_entropy")


def test_dropout_of_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="no effect"):
        net = model(3, 5, dropout=0.5)
    assert net.dropout == 0.5
    np.testing.assert_array_equal(net(noise(7, 2, 3))[0], model(3, 5)(noise(7, 2, 3))[0])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25, "proj_size": 2},
    {"bias": False, "cell": "unfused", "clip": 1.5},
    {"cell": "peephole-dense", "coupled": True},
    {"cell": "peephole-diagonal", "precision": "int8"},
    {"precision": "int12", "threads": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make_copy", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies(options: dict[str, Any], make_copy: Any) -> None:
    net = model(3, 5, **options)
    net(noise(7, 2, 3))
    net.eval()
    other = make_copy(net)
    assert repr(other) == repr(net) and other.digest() == net.digest()
    assert (other.seed, other.training, other.threads) == (net.seed, False, net.threads)
    np.testing.assert_array_equal(net(noise(7, 2, 3))[0], other(noise(7, 2, 3))[0])
    net.train(), other.train()
    np.testing.assert_array_equal(net(noise(7, 2, 3))[0], other(noise(7, 2, 3))[0])
    other.load_state_dict(model(3, 5, **options, seed=9).state_dict())
    assert other.digest() != net.digest(), "a copy has weights of its own"


def test_repr_lists_layers() -> None:
    text = repr(model(3, 5, num_layers=2, bidirectional=True, dropout=0.25, clip=1.5)).splitlines()
    assert text[0] == "LSTM(3, 5, num_layers=2, bidirectional=True, dropout=0.25, clip=1.5, device='cpu', threads=1)"
    assert text[1].startswith("  layer 0: 3 -> 5, 200 parameters, ")
    assert text[4].startswith("  layer 1 reverse: 10 -> 5, 340 parameters, ")
    assert len(text) == 5


def test_attributes() -> None:
    net = model(3, 5, 2, False, True, 0.25, True, 4, cell="unfused", clip=1.5, coupled=True, precision="int8", seed=7)
    assert (net.input_size, net.hidden_size, net.num_layers, net.bias, net.batch_first) == (3, 5, 2, False, True)
    assert (net.dropout, net.bidirectional, net.proj_size, net.cell, net.clip) == (0.25, True, 4, "unfused", 1.5)
    assert (net.coupled, net.precision, net.device, net.threads, net.seed) == (True, "int8", "cpu", 1, 7)
    assert net.path
    assert lstm.LSTM(3, 5).digest() != lstm.LSTM(3, 5).digest(), "without a seed, weights differ"


def test_threads_share_a_model() -> None:
    net, x = model(64, 128, threads=2), noise(50, 4, 64)
    expected = lstm.digest(net(x)[0])
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(lstm.digest(net(x)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_other_threads_run_during_a_pass() -> None:
    net, x = model(256, 512), noise(400, 8, 256)
    net(x[:2])
    count, done = 0, threading.Event()

    def run() -> None:
        net(x)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.wait(0.001):
        count += 1
    thread.join()
    assert count > 3, "the pass held the GIL"


_inherited: lstm.LSTM | None = None


def _digest_in_child(seed: int) -> str:
    assert _inherited is not None
    return lstm.digest(_inherited(noise(20, 8, 64, seed=seed))[0])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork() -> None:
    global _inherited
    _inherited = model(64, 128, threads=2)
    expected = [_digest_in_child(seed) for seed in range(8)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_digest_in_child, range(8)) == expected
    assert _digest_in_child(0) == expected[0]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    net = model(64, 96, num_layers=2, bidirectional=True, threads=threads)
    # Exact in float32, so that it is the same on every machine.
    x = ((np.arange(20 * 8 * 64) * 37 % 101 - 50) / 64).astype(np.float32).reshape(20, 8, 64)
    assert lstm.digest(net(x)[0]) == "c007ec75a8eb017b"


def test_digest() -> None:
    assert lstm.digest() == "cbf29ce484222325"
    x = noise(3, 4)
    assert lstm.digest(x, x[0]) == lstm.digest(np.concatenate([x.reshape(-1), x[0]]))
    assert lstm.digest(np.asfortranarray(x)) == lstm.digest(x)
    with pytest.raises(TypeError, match=r"arrays\[1\]: expected float32"):
        lstm.digest(x, np.zeros(3))


def test_devices() -> None:
    rows = {row["name"]: row for row in lstm.devices()}
    assert rows["cpu"]["available"] and rows["cpu"]["exact"] and "Cpu" in str(rows["cpu"]["description"])
    for row in rows.values():
        assert row["available"] == (row["why_not"] is None)


def test_devices_give_the_same_bits() -> None:
    x = ((np.arange(20 * 8 * 64) * 37 % 101 - 50) / 64).astype(np.float32).reshape(20, 8, 64)
    names = [row["name"] for row in lstm.devices() if row["exact"]]
    assert "cpu" in names
    for name in names:
        net = lstm.LSTM(64, 96, num_layers=2, bidirectional=True, seed=1, device=name)
        assert lstm.digest(net(x)[0]) == "c007ec75a8eb017b", name
