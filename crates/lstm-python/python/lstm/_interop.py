"""Arrays of other libraries: conversion to NumPy without copies, and of results to the kind that was given."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ._lstm import LSTM

Convert = Callable[[NDArray[np.float32]], Any]

# The device types of DLPack whose memory the CPU can read: CPU, CUDA's and ROCm's pinned memory.
_HOST_MEMORY = {1, 3, 11}


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns, as in PyTorch."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def describe(value: object) -> str:
    """The type of a value, and its length if it is a tuple or a list."""
    kind = type(value).__name__
    return f"a {kind} of length {len(value)}" if isinstance(value, (tuple, list)) else f"the type {kind}"


def _same(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array


def _torch_of(value: object) -> Any:
    """The module torch, if the value is one of its tensors; else None."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return torch if tensor is not None and isinstance(value, tensor) else None


def _from_torch(torch: Any, value: Any, name: str) -> NDArray[Any]:
    """The memory of a tensor as an array."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"{name}: the outputs would become constants of the trace; trace or export a model with torch.nn.LSTM instead, "
            f"which can load the state_dict"
        )
    if torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(f"{name}: its tangent would be dropped; use torch.nn.LSTM for derivatives of forward mode")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: it requires a gradient, which lstm.LSTM does not record; use lstm.torch.LSTM, "
            f"or call under torch.no_grad()"
        )
    if value.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor in host memory, got one on {value.device}; copy it with .cpu()")
    array: NDArray[Any] = value.detach().numpy()
    return array


def import_array(value: Any, name: str) -> tuple[NDArray[np.float32], Convert]:
    """The array of any library as an array of NumPy, and the function that converts a result to its kind."""
    if isinstance(value, np.ndarray):
        return value, _same
    torch = _torch_of(value)
    if torch is not None:
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32, got {value.dtype}; convert it with .float()")
        return _from_torch(torch, value, name), torch.from_numpy
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        device = value.__dlpack_device__()
        if int(device[0]) not in _HOST_MEMORY:
            raise ValueError(f"{name}: expected an array in host memory, got one on the DLPack device {device}")
        return _from_dlpack(value, name), _converter(value)
    if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        # `asanyarray` keeps the class of a masked array, which is an error.
        return np.asanyarray(value), _converter(value)
    kind = type(value).__name__
    raise TypeError(
        f"{name}: expected an array of NumPy, a tensor, or an object with __dlpack__ or __array__, got {kind}; "
        "np.asarray(value, np.float32) makes an array"
    )


def import_input(value: Any, reads_tokens: bool) -> tuple[NDArray[Any], Convert]:
    """The input of a model, tokens or features, and the function that converts its outputs to the input's kind."""
    if not reads_tokens:
        return import_array(value, "x")
    torch = _torch_of(value)
    return to_tokens(value), _same if torch is None else torch.from_numpy


def import_output(value: Any) -> NDArray[np.float32]:
    """The memory of an output argument as an array, which must not be a copy."""
    if isinstance(value, np.ndarray):
        return value
    torch = _torch_of(value)
    if torch is not None and value.dtype == torch.float32:
        return _from_torch(torch, value, "out")
    raise TypeError(f"out: expected a float32 array of NumPy or a float32 tensor, got {type(value).__name__}")


def _from_dlpack(value: Any, name: str) -> NDArray[Any]:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        # Older versions of NumPy refuse memory that is read-only.
        if hasattr(value, "__array__"):
            return np.asanyarray(value)
        raise TypeError(f"{name}: NumPy can't read it through DLPack: {error}") from error


def _converter(value: Any) -> Convert:
    """The function of the value's own library that makes one of its arrays; without it, results stay NumPy's."""
    namespace = value.__array_namespace__() if hasattr(value, "__array_namespace__") else None
    if namespace is None:
        namespace = sys.modules.get(type(value).__module__.partition(".")[0])
    convert = getattr(namespace, "from_dlpack", None)
    return convert if callable(convert) else _same


def call(lstm: LSTM, x: Any, hx: Any, lengths: Any) -> tuple[Any, tuple[Any, Any]]:
    """Calls an LSTM with arrays of any library, or with a packed sequence of PyTorch."""
    if isinstance(x, tuple) and hasattr(x, "batch_sizes"):
        return call_packed(partial(call, lstm), lstm.batch_first, x, _import_state(hx), lengths)
    array, convert = import_array(x, "input")
    y, (h, c) = lstm(array, _import_state(hx), lengths=lengths)
    return convert(y), (convert(h), convert(c))


def _import_state(hx: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    if hx is None:
        return None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"hx: expected the tuple (h0, c0), got {describe(hx)}")
    return import_array(hx[0], "hx: h")[0], import_array(hx[1], "hx: c")[0]


def call_packed(run: Callable[..., Any], batch_first: bool, x: Any, hx: Any, lengths: Any) -> tuple[Any, tuple[Any, Any]]:
    """Calls `run(padded, hx, lengths)` for a `torch.nn.utils.rnn.PackedSequence` and a tuple of arrays or tensors."""
    if lengths is not None:
        raise ValueError("lengths: a packed sequence has its own lengths; expected None")
    from torch.nn.utils import rnn

    # In the order of the packed sequence: longest first.
    padded, sorted_lengths = rnn.pad_packed_sequence(rnn.PackedSequence(x.data, x.batch_sizes), batch_first=batch_first)
    if hx is not None and x.sorted_indices is not None:
        order = x.sorted_indices.tolist()
        # `run` rejects states of another batch, of which these indices would take a part.
        hx = tuple(state[:, order] if state.ndim == 3 and state.shape[1] == len(order) else state for state in hx)
    y, (h, c) = run(padded, hx, sorted_lengths.tolist())
    packed = rnn.pack_padded_sequence(y, sorted_lengths, batch_first=batch_first)
    y = rnn.PackedSequence(packed.data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    if x.unsorted_indices is not None:
        h, c = (state.index_select(1, x.unsorted_indices) for state in (h, c))
    return y, (h, c)


def to_float32(value: Any, name: str) -> NDArray[np.float32]:
    """A parameter of any floating-point type as float32, as `load_state_dict` of PyTorch converts it."""
    torch = _torch_of(value)
    if torch is not None:
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = value if isinstance(value, np.ndarray) else import_array(value, name)[0]
    if array.dtype == np.float32:
        return array
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if np.isinf(converted).sum() != np.isinf(array).sum():
        raise ValueError(f"{name}: a value of {array.dtype} is too large for float32")
    return converted


def to_tokens(value: Any) -> NDArray[np.int64]:
    """Tokens of any integer type."""
    return to_integers(value, "x", "the model reads tokens, expected integers")


def to_integers(value: Any, name: str, expected: str = "expected integers") -> NDArray[np.int64]:
    """An array of any integer type as int64."""
    torch = _torch_of(value)
    if torch is not None:
        array = _from_torch(torch, value, name)
    else:
        try:
            array = np.asanyarray(value)
        except ValueError as error:
            # Such as lists of different lengths.
            raise ValueError(f"{name}: {expected}: {error}") from error
    if array.size == 0 and isinstance(value, (list, tuple)):
        # NumPy takes an empty list for floats.
        array = array.astype(np.int64)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array can't be used; fill it first, with .filled(0)")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: {expected}, got {array.dtype}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {array.max()} is too large for int64")
    return array.astype(np.int64, copy=False)
