"""Writes small ONNX files with one LSTM node, for graphs that no program at hand writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value // 128)


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message of Protocol Buffers."""
    if isinstance(value, int):
        return _varint(number * 8) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number * 8 + 2) + _varint(len(data)) + data


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    data_type = {"float32": 1, "int32": 6}[str(array.dtype)]
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, data_type) + _field(8, name) + _field(9, array.tobytes())


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """The declaration of a float32 input or output."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def write(
    hidden: int,
    outputs: Sequence[str],
    states: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    lengths: NDArray[np.int32] | None = None,
) -> bytes:
    """A file with the node `rec` that reads `x`, `(steps, batch, 2)`, with constant initial states and lengths. The `outputs`
    are some of `Y`, `Y_h`, `Y_c`.
    """
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        "W": rng.standard_normal((1, 4 * hidden, 2), dtype=np.float32),
        "R": rng.standard_normal((1, 4 * hidden, hidden), dtype=np.float32),
    }
    inputs = ["x", "W", "R", "", "", "", ""]
    if lengths is not None:
        tensors["lengths"], inputs[4] = lengths, "lengths"
    if states is not None:
        tensors["h"], tensors["c"] = states
        inputs[5:] = ["h", "c"]
    batch = "batch" if states is None else states[0].shape[1]
    shapes: dict[str, list[int | str]] = {
        "Y": ["steps", 1, batch, hidden],
        "Y_h": [1, batch, hidden],
        "Y_c": [1, batch, hidden],
    }
    size = _field(1, "hidden_size") + _field(3, hidden) + _field(20, 2)
    node = b"".join(_field(1, name) for name in inputs)
    node += b"".join(_field(2, name if name in outputs else "") for name in shapes)
    node += _field(3, "rec") + _field(4, "LSTM") + _field(5, size)
    graph = _field(1, node) + _field(2, "graph")
    graph += b"".join(_field(5, _tensor(name, array)) for name, array in tensors.items())
    graph += _field(11, _value("x", ["steps", batch, 2]))
    graph += b"".join(_field(12, _value(name, shapes[name])) for name in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))
