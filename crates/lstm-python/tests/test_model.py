"""Model files of every format: outputs of the programs that wrote them, streams, copies, errors."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm
import onnx_file

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "tests/data/models"


def load_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    dtypes = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4"}
    return {
        name: np.frombuffer(
            data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]], dtypes[entry["dtype"]]
        ).reshape(entry["shape"])
        for name, entry in json.loads(data[8 : 8 + size]).items()
        if name != "__metadata__"
    }


CASES = sorted(path.name.removesuffix(".expected.safetensors") for path in MODELS.glob("*.expected.safetensors"))


def path_of(name: str) -> Path:
    return next(path for path in sorted(MODELS.glob(f"{name}.*")) if ".expected." not in path.name)


def input_of(expected: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return expected["tokens"] if "tokens" in expected else expected["x"].astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_program(name: str) -> None:
    expected = load_safetensors(MODELS / f"{name}.expected.safetensors")
    model = lstm.Model.open(path_of(name), threads=1)
    x = input_of(expected)
    state = [expected[name].astype(np.float32) for name in ("state.h", "state.c") if name in expected]
    states = [(state[0], state[1])] if state else None
    y, final = model.run(x, states=states, return_states=True)
    right = expected["y"] if "y" in expected else expected["last"]
    np.testing.assert_allclose(y, right.reshape(y.shape), rtol=1e-4, atol=1e-5)
    assert y.shape == ((len(x), model.output_size) if model.returns_last_step else (*x.shape[:2], model.output_size))
    # One sequence needs no batch axis.
    one = model.run(x[0], states=states and [(h[:, :1], c[:, :1]) for h, c in states])
    np.testing.assert_array_equal(one, y[0])
    assert len(final) == sum("lstm" in layer for layer in model.layers)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (repr(other), other.digest(), other.metadata) == (repr(model), model.digest(), model.metadata)
        np.testing.assert_array_equal(other.run(x, states=states), y)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("keras-last", "cells"))])
def test_streams_are_those_of_the_sequence(name: str) -> None:
    expected = load_safetensors(MODELS / f"{name}.expected.safetensors")
    model = lstm.Model.open(path_of(name), threads=1)
    x = input_of(expected)
    try:
        stream = model.stream(len(x))
    except ValueError as error:
        assert "direction" in str(error) or "fixes the lengths" in str(error)
        return
    y = model.run(x)
    steps = [np.atleast_2d(stream.step(np.ascontiguousarray(x[:, t]))) for t in range(x.shape[1])]
    if model.returns_last_step:
        np.testing.assert_array_equal(steps[-1], y)
    else:
        np.testing.assert_array_equal(np.stack(steps, 1), y)
    saved = stream.state
    stream.reset()
    np.testing.assert_array_equal(stream.run(x), y)
    for (h, c), (h_saved, c_saved) in zip(stream.state, saved, strict=True):
        np.testing.assert_array_equal(h, h_saved)
        np.testing.assert_array_equal(c, c_saved)
    stream.state = saved


def test_formats() -> None:
    assert {lstm.Model.open(path_of(name)).format for name in CASES} >= {"aida-x", "guitarml", "keras", "nam", "safetensors"}
    onnx = lstm.Model.open(MODELS / "act_hs.onnx")
    expected = load_safetensors(MODELS / "act_hs.safetensors")
    (x,) = (value for name, value in expected.items() if name.startswith("in."))
    assert onnx.format == "onnx" and x.dtype == np.float32


def test_description() -> None:
    model = lstm.Model.open(path_of("nam"), threads=1)
    assert repr(model).startswith(f"Model(nam, 1 -> 1, {model.num_parameters} parameters, precision='f32', device='cpu')\n")
    assert "  layer 0: lstm `" in repr(model)
    assert model.dtypes and model.unused == [] and model.steps is None and model.path
    assert (model.input_size, model.reads_tokens, model.threads) == (1, False, 1)


def test_precision() -> None:
    path = path_of("nam")
    x = np.sin(np.arange(100, dtype=np.float32)).reshape(100, 1)
    f32, int8 = lstm.Model.open(path), lstm.Model.open(path, precision="int8")
    assert int8.precision == "int8" and f32.precision == "f32"
    difference = np.abs(f32.run(x) - int8.run(x)).max()
    assert 0 < difference < 0.1
    again = pickle.loads(pickle.dumps(int8))
    np.testing.assert_array_equal(again.run(x), int8.run(x))


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.nam"):
        lstm.Model.open(tmp_path / "absent.nam")
    with pytest.raises(OSError, match="directory"):
        lstm.Model.open(tmp_path)
    (tmp_path / "text.nam").write_text("hello")
    with pytest.raises(ValueError, match="text.nam"):
        lstm.Model.open(tmp_path / "text.nam")
    (tmp_path / "damaged.nam").write_bytes(path_of("nam").read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged.nam"):
        lstm.Model.open(tmp_path / "damaged.nam")
    with pytest.raises(ValueError, match="DynamicQuantizeLSTM"):
        lstm.Model.open(MODELS / "quant.onnx")


@pytest.mark.parametrize("name", ["nam", "aidax", "guitarml", "keras-last", "act_hs"])
@pytest.mark.parametrize("options", [{"layers": "rec"}, {"cell": "fused"}, {"clip": 1.0}, {"coupled": True}])
def test_options_without_effect(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*(omit the arguments|the option)"):
        lstm.Model.open(path_of(name), **options)


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("cell", {"set": {"sr": 16000.0}}, "sr"),
        ("nam", {"set": {"sr": 16000.0}}, "omit the arguments"),
        ("nam", {"name": ["rec"]}, "omit the arguments"),
        ("nam", {"precision": "f16"}, "precision: expected one of"),
        ("nam", {"device": "tpu"}, "device: expected one of"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        lstm.Model.open(path_of(name), **options)


def test_wrong_inputs() -> None:
    model = lstm.Model.open(path_of("nam"))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        model.run(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"x: expected the shape \(batch, steps, 1\) or \(steps, 1\)"):
        model.run(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"x: expected .*, got the shape \[3, 2\]"):
        model.run(np.zeros((3, 2), np.float32))
    with pytest.raises(TypeError, match=r"states\[0\]: expected the tuple"):
        model.run(np.zeros((3, 1), np.float32), states=[1])
    tokens = lstm.Model.open(path_of("keras-embedding"))
    with pytest.raises(TypeError, match="reads tokens, expected integers, got float32"):
        tokens.run(np.zeros((1, 3), np.float32))
    with pytest.raises(TypeError, match="x: a masked array"):
        tokens.run(np.ma.masked_equal([[0, 1]], 1))
    with pytest.raises(ValueError, match="a token from 0 to"):
        tokens.run([[0, -1]])


def test_states_of_other_libraries() -> None:
    class Other:
        def __init__(self, array: NDArray[Any]) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
            return self.array

    model, x = lstm.Model.open(path_of("nam")), np.ones((9, 1), np.float32)
    y, ((h, c),) = model.run(x, return_states=True)
    expected, others = model.run(x, states=[(h, c)]), [(Other(h), Other(c))]
    np.testing.assert_array_equal(model.run(x, states=others), expected)
    stream = model.stream()
    stream.state = others
    np.testing.assert_array_equal(stream.run(x), expected)


def test_lengths() -> None:
    model, x = lstm.Model.open(path_of("nam")), np.random.default_rng(0).standard_normal((2, 9, 1), dtype=np.float32)
    y = model.run(x, lengths=[4, 9])
    np.testing.assert_array_equal(y[0, :4], model.run(x[0, :4]))
    assert not y[0, 4:].any()


def test_a_stream_is_reset_to_the_states_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    h, c = (rng.standard_normal((1, 2, 3), dtype=np.float32) for _ in range(2))
    (tmp_path / "states.onnx").write_bytes(onnx_file.write(3, ["Y"], states=(h, c)))
    x = rng.standard_normal((2, 7, 2), dtype=np.float32)
    model = lstm.Model.open(tmp_path / "states.onnx", threads=1)
    for model in (model, pickle.loads(pickle.dumps(model))):
        y = model.run(x)
        np.testing.assert_array_equal(model.run(x, states=[(h, c)]), y)
        assert not np.array_equal(model.run(x, states=[(0 * h, 0 * c)]), y)
        stream = model.stream(2)
        for _ in range(2):
            np.testing.assert_array_equal(stream.run(x), y)
            stream.reset()
        np.testing.assert_array_equal(stream.state[0][0], h)
        with pytest.raises(ValueError, match="batch|expected"):
            model.stream(3)


def test_graphs_that_are_not_the_model_alone(tmp_path: Path) -> None:
    path = MODELS / "gobw.onnx"
    with pytest.raises(ValueError, match=r"gobw.onnx: .*`out` has another order.*select its LSTM nodes with the argument name: `lstm`"):
        lstm.Model.open(path)
    assert lstm.Model.open(path, name="lstm").output_size > 0
    path = tmp_path / "states.onnx"
    path.write_bytes(onnx_file.write(3, ["Y_h", "Y_c"]))
    with pytest.raises(ValueError, match=r"states.onnx: .*all its outputs are final states.*argument name: `rec`"):
        lstm.Model.open(path)
    x = np.ones((7, 2), np.float32)
    y, ((h, _),) = lstm.Model.open(path, name="rec").run(x, return_states=True)
    np.testing.assert_array_equal(y, h[0, 0])


@pytest.mark.parametrize("name", [None, "rec"])
def test_constants_of_a_graph_are_applied(tmp_path: Path, name: str | None) -> None:
    path, lengths = tmp_path / "constants.onnx", np.array([4, 7], np.int32)
    states = np.full((1, 2, 3), 0.5, np.float32), np.full((1, 2, 3), -0.5, np.float32)
    path.write_bytes(onnx_file.write(3, ["Y"], states, lengths))
    model, x = lstm.Model.open(path, name=name, threads=1), np.ones((2, 7, 2), np.float32)
    y = model.run(x)
    np.testing.assert_array_equal(model.run(x, lengths=lengths, states=[states]), y)
    assert not y[0, 4:].any() and y[0, :4].all()
    with pytest.raises(ValueError, match="fixes the lengths"):
        model.stream(2)


def test_a_single_sequence_takes_a_length() -> None:
    model = lstm.Model.open(path_of("nam"))
    x = np.sin(np.arange(20, dtype=np.float32)).reshape(-1, 1)
    y = model.run(x, lengths=[12])
    np.testing.assert_array_equal(y[:12], model.run(x[:12]))
    assert y.shape == model.run(x).shape and not y[12:].any()
