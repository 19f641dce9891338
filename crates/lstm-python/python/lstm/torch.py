"""LSTMs inside PyTorch: modules whose forward and backward passes are this library's.

The outputs and gradients of `LSTM` are the same, bit for bit, for any number of threads and on any device. This holds for
this module only: other operators of PyTorch may give other bits with another number of threads.
"""

from __future__ import annotations

import copy as _copy
import math
import warnings
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from . import _interop, _lstm

__all__ = ["LSTM", "convert"]

# These have no types in PyTorch.
_jit: Any = torch.jit
_compiler: Any = torch.compiler
_forward_ad: Any = torch.autograd.forward_ad

_NOT_TRACED = (
    "lstm.torch.LSTM can't be traced, scripted or exported: it is not made of PyTorch's operators. Export the module before "
    "lstm.torch.convert, or load the state_dict into one with torch.nn.LSTM"
)


def _array(tensor: torch.Tensor, name: str) -> Any:
    """The memory of a tensor as an array of NumPy."""
    if tensor.dtype != torch.float32:
        what = "the module" if isinstance(tensor, torch.nn.Parameter) else "it"
        raise TypeError(f"{name}: expected float32, got {tensor.dtype}; convert {what} with .float()")
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: expected a tensor in host memory, got one on {tensor.device}; parameters and inputs stay on PyTorch's "
            f"device cpu, and the argument `device` of lstm.torch.LSTM says where they are computed"
        )
    return tensor.detach().numpy()


class _Pass(torch.autograd.Function):
    """A recorded pass."""

    @staticmethod
    def forward(ctx: Any, module: LSTM, lengths: Any, seed: int | None, x: Any, h: Any, c: Any, *parameters: Any) -> Any:
        ctx.set_materialize_grads(False)
        # The tape has what `backward` reads. PyTorch frees these after it, so that a second `backward` is an error.
        ctx.save_for_backward(x, h, c, *parameters)
        y, (h, c), ctx.tape = module._run(x, h, c, lengths, seed, parameters, record=True)
        return y, h, c

    @staticmethod
    def backward(ctx: Any, dy: Any, dh: Any, dc: Any) -> Any:
        _, _, _, needs_x, needs_h, needs_c, *needs_parameters = ctx.needs_input_grad
        inputs = ctx.saved_tensors
        given = [None if d is None else _array(d, name) for d, name in [(dy, "dy"), (dh, "dh"), (dc, "dc")]]
        if all(d is None for d in given):
            return (None,) * len(ctx.needs_input_grad)
        x, h, c, parameters = ctx.tape.backward(*given, needs_x)
        needed = zip([x, h, c, *parameters], [needs_x, needs_h, needs_c, *needs_parameters])
        gradients = [torch.from_numpy(array) if needs else None for array, needs in needed]
        if torch.is_grad_enabled():
            # With `create_graph`. Without a node that depends on all they depend on, second derivatives would be wrong.
            gradients = [None if d is None else _FirstOrder.apply(d, dy, dh, dc, *inputs) for d in gradients]
        return (None, None, None, *gradients)


class _FirstOrder(torch.autograd.Function):
    """The identity, whose derivative with respect to anything is an error."""

    @staticmethod
    def forward(ctx: Any, gradient: Any, *dependencies: Any) -> Any:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        raise RuntimeError(
            "lstm.torch.LSTM has gradients of first order only; expected a loss that does not depend on its gradients. "
            "Use torch.nn.LSTM for a gradient penalty, or call autograd without create_graph"
        )


def _make(options: dict[str, Any]) -> _lstm.LSTM:
    """An LSTM for options that an LSTM had before."""
    with warnings.catch_warnings():
        # The user was warned already that dropout has no effect with one layer.
        warnings.simplefilter("ignore", UserWarning)
        return _lstm.LSTM(**options, seed=0)


class LSTM(torch.nn.Module):
    """An LSTM with the arguments, the parameters and the call of `torch.nn.LSTM`, whose passes are this library's.

    The parameters have PyTorch's names and are float32 tensors in host memory. With the same `torch.manual_seed`, they are
    those of `torch.nn.LSTM`. Gradients of first order exist for the input, the initial states and all parameters.

    Args:
        device: Where passes are computed: a name of `lstm.devices()`. Tensors stay in host memory. With `meta`, as
            `torch.nn.utils.skip_init` gives it, the parameters have no memory yet, and the CPU computes.
        dtype: None or `torch.float32`.
        threads: Number of threads of the CPU; None for all cores. Results do not depend on it.

    The other arguments are those of `lstm.LSTM`. Dropout draws its seeds from PyTorch's generator. The attributes `dropout` and
    `batch_first` can be changed; the other options can't.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        cell: str = "fused",
        clip: float | None = None,
        coupled: bool = False,
        device: str | torch.device | None = "cpu",
        dtype: torch.dtype | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in (None, torch.float32):
            raise TypeError(f"dtype: expected torch.float32, got {dtype}")
        if isinstance(device, torch.device) and device.type not in ("cpu", "meta"):
            raise ValueError(
                f"device: expected a name of lstm.devices(), such as 'cuda', got torch.device('{device}'); tensors stay in "
                f"host memory"
            )
        is_meta = str(device) == "meta"
        self._lstm = _lstm.LSTM(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            cell=cell,
            clip=clip,
            coupled=coupled,
            device="cpu" if device is None or is_meta else str(device),
            threads=threads,
            seed=0,
        )
        self._names = list(self._lstm.state_dict())
        for name, value in self._lstm.state_dict().items():
            tensor = torch.from_numpy(value)
            self.register_parameter(name, torch.nn.Parameter(tensor.to("meta") if is_meta else tensor))
        self.reset_parameters()

    def __getattr__(self, name: str) -> Any:
        # The options, such as `hidden_size`.
        if name in _OPTIONS:
            return getattr(self._lstm, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("batch_first", "dropout"):
            self._lstm = _make({**self._options(), name: value})
        elif name in _OPTIONS:
            raise AttributeError(f"{name}: it can't be changed; make a new lstm.torch.LSTM with other options")
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        # Without the weights of `_lstm`, which are those of the parameters.
        return {**self.__dict__, "_lstm": self._options()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        module: Any = super()
        module.__setstate__({**state, "_lstm": _make(state["_lstm"])})

    def _options(self) -> dict[str, Any]:
        """The arguments that make this module."""
        return {name: getattr(self._lstm, name) for name in _OPTIONS - {"path"}}

    def reset_parameters(self) -> None:
        """Draws the parameters as `torch.nn.LSTM` does."""
        bound = 1.0 / math.sqrt(self._lstm.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def __prepare_scriptable__(self) -> None:
        # `torch.jit.script` calls it.
        raise RuntimeError(_NOT_TRACED)

    def flatten_parameters(self) -> None:
        """Does nothing. It exists for code that calls it, as `torch.nn.LSTM` has it for GPUs."""

    @property
    def mode(self) -> str:
        """`LSTM`, as in PyTorch."""
        return "LSTM"

    @property
    def all_weights(self) -> list[list[Any]]:
        """The parameters of each layer and direction."""
        layers: dict[str, list[Any]] = {}
        for name in self._names:
            layers.setdefault(name.rpartition("_l")[2], []).append(getattr(self, name))
        return list(layers.values())

    def extra_repr(self) -> str:
        """The options and the layers, for `repr`."""
        return repr(self._lstm).removeprefix("LSTM(").replace(")\n", "\n", 1)

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> tuple[Any, tuple[Any, Any]]:
        """The same as `lstm.LSTM.__call__` for tensors and packed sequences, with gradients."""
        if _jit.is_tracing() or (hasattr(_compiler, "is_exporting") and _compiler.is_exporting()):
            raise RuntimeError(_NOT_TRACED)
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"hx: expected the tuple (h0, c0), got {_interop.describe(hx)}")
        for value, name in [] if hx is None else zip(hx, ["hx: h", "hx: c"], strict=True):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if isinstance(input, PackedSequence):
            return _interop.call_packed(self._forward_padded, self._lstm.batch_first, input, hx, lengths)
        if not isinstance(input, torch.Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence, got {type(input).__name__}")
        return self._forward_padded(input, hx, lengths)

    def _forward_padded(self, input: Any, hx: Any, lengths: Any) -> tuple[Any, tuple[Any, Any]]:
        h, c = (None, None) if hx is None else hx
        parameters = [getattr(self, name) for name in self._names]
        has_dropout = self.training and self._lstm.dropout > 0 and self._lstm.num_layers > 1
        seed = int(torch.randint(2**62, ())) if has_dropout else None
        inputs = [tensor for tensor in (input, h, c, *parameters) if tensor is not None]
        if any(_forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
            raise NotImplementedError(
                "lstm.torch.LSTM has no derivatives of forward mode; use backward(), or torch.nn.LSTM for tangents"
            )
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            try:
                y, h, c = _Pass.apply(self, lengths, seed, input, h, c, *parameters)
            except RuntimeError as error:
                if "setup_context" not in str(error):
                    raise
                # What PyTorch says of a function without this method.
                raise NotImplementedError(
                    "lstm.torch.LSTM does not run under torch.func (vmap, grad, jacrev); use backward() or "
                    "torch.autograd.grad, or torch.nn.LSTM"
                ) from error
            return y, (h, c)
        y, state, _ = self._run(input, h, c, lengths, seed, parameters, record=False)
        return y, state

    def _run(self, x: Any, h: Any, c: Any, lengths: Any, seed: int | None, parameters: Any, record: bool) -> Any:
        arrays = [_array(parameter, name) for parameter, name in zip(parameters, self._names, strict=True)]
        hx = None if h is None else (_array(h, "hx: h"), _array(c, "hx: c"))
        y, (h, c), tape = _lstm.run_module(self._lstm, arrays, _array(x, "input"), hx, lengths, seed, record)
        return torch.from_numpy(y), (torch.from_numpy(h), torch.from_numpy(c)), tape


_OPTIONS = {
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size", "cell", "clip",
    "coupled", "device", "threads", "path",
}  # fmt: skip


def convert(
    module: torch.nn.Module, *, device: str = "cpu", threads: int | None = None, inplace: bool = False
) -> torch.nn.Module:
    """Replaces each `torch.nn.LSTM` inside a module, or the module itself, by an `LSTM` with the same options.

    Args:
        module: A module with at least one `torch.nn.LSTM`.
        device: Where the passes are computed; see `LSTM`.
        threads: Number of threads of the CPU; None for all cores.
        inplace: Whether to change `module` instead of a copy. Its `Parameter` objects then stay the same, so that an
            optimizer which has them continues.

    Returns:
        The module with the replacements. Other modules, such as `LSTMCell`, are as before.

    Raises:
        ValueError: there is no `torch.nn.LSTM`, or one that can't be replaced; the text lists each with the reason. The module
            is then unchanged.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"convert: expected a torch.nn.Module, got {type(module).__name__}")
    if str(device) == "meta":
        raise ValueError("device: expected a name of lstm.devices(), got meta, which has no memory for the weights")
    found = {name: child for name, child in module.named_modules() if isinstance(child, torch.nn.LSTM)}
    if not found:
        raise ValueError(f"convert: no torch.nn.LSTM in {type(module).__name__}")
    problems = [f"{f'`{name}`' if name else 'the module'}: {why}" for name, child in found.items() for why in _problems(child)]
    if problems:
        raise ValueError(f"convert: can't replace {'; '.join(problems)}")
    if not inplace:
        module = _copy.deepcopy(module)
        found = {name: child for name, child in module.named_modules() if isinstance(child, torch.nn.LSTM)}
    replacements = {id(child): _replacement(child, device, threads) for child in found.values()}
    if isinstance(module, torch.nn.LSTM):
        return replacements[id(module)]
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
        # `named_children` lists a module once, also if it has several names.
        for name, shared in parent._modules.items():
            if shared is not None and id(shared) in replacements:
                setattr(parent, name, replacements[id(shared)])
    return module


def _problems(module: torch.nn.LSTM) -> list[str]:
    """Why a module can't be replaced."""
    if hasattr(module, "parametrizations"):
        return ["it has parametrizations; remove them with torch.nn.utils.parametrize.remove_parametrizations"]
    plain = _plain(module)
    computed = [name for name in plain._parameters if name in vars(module)]
    if computed:
        how = "make them parameters with torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove"
        return [f"{', '.join(computed)}: computed from other tensors; {how}"]
    problems = []
    if type(module) is not torch.nn.LSTM:
        problems.append(f"it is a subclass, {type(module).__name__}, which may compute something else")
    hooks = [name for name, hooks in vars(module).items() if name.endswith("_hooks") and hooks]
    if hooks:
        how = "remove them, or load its state_dict into a new torch.nn.LSTM; then add them to the result"
        problems.append(f"it has hooks ({', '.join(hooks)}); {how}")
    if module.dropout == 1.0 and module.num_layers > 1:
        problems.append("its dropout is 1; expected less")
    for name, value in _own_attributes(module, plain).items():
        if callable(value) or hasattr(plain, name) or hasattr(LSTM, name) or name in {*_OPTIONS, "_lstm", "_names"}:
            problems.append(f"it has an attribute `{name}` of its own, which would be lost; delete it")
    problems += [f"it has the buffer `{name}`, unlike a torch.nn.LSTM" for name in module._buffers]
    problems += [f"it has the submodule `{name}`, unlike a torch.nn.LSTM" for name in module._modules]
    parameters = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name in parameters | plain._parameters:
        given, expected = parameters.get(name), plain._parameters.get(name)
        if given is None or expected is None:
            problem = "does not have" if given is None else "has"
            problems.append(f"it {problem} the parameter `{name}`, unlike a torch.nn.LSTM with its options")
        elif given.shape != expected.shape:
            problems.append(f"{name} has the shape {[*given.shape]}; expected {[*expected.shape]} for its options")
        elif given.dtype != torch.float32:
            problems.append(f"{name} is {given.dtype}; expected float32, as after .float()")
        elif given.device.type != "cpu":
            problems.append(f"{name} is on {given.device}; expected host memory, as after .cpu()")
    return problems


def _plain(module: torch.nn.LSTM) -> torch.nn.LSTM:
    """A `torch.nn.LSTM` with the options of a module, and nothing else."""
    with warnings.catch_warnings():
        # PyTorch warned already that dropout has no effect with one layer.
        warnings.simplefilter("ignore", UserWarning)
        return torch.nn.LSTM(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            module.bias,
            module.batch_first,
            module.dropout,
            module.bidirectional,
            module.proj_size,
            device="meta",
        )


def _own_attributes(module: torch.nn.LSTM, plain: torch.nn.LSTM) -> dict[str, Any]:
    """Attributes that the user or another library has set, such as a mark."""
    return {name: value for name, value in vars(module).items() if name not in vars(plain)}


def _replacement(module: torch.nn.LSTM, device: str, threads: int | None) -> LSTM:
    """An LSTM with the options and the `Parameter` objects of a module."""
    generator_state = torch.get_rng_state()
    with warnings.catch_warnings():
        # PyTorch warned already that dropout has no effect with one layer.
        warnings.simplefilter("ignore", UserWarning)
        new = LSTM(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            module.bias,
            module.batch_first,
            float(module.dropout),
            module.bidirectional,
            module.proj_size,
            device=device,
            threads=threads,
        )
    torch.set_rng_state(generator_state)
    # With both names of a parameter that has two.
    for name, parameter in module.named_parameters(remove_duplicate=False):
        new.register_parameter(name, parameter)
    new.train(module.training)
    for name, value in _own_attributes(module, _plain(module)).items():
        setattr(new, name, value)
    return new
