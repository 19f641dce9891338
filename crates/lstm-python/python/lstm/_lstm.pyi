"""The compiled module. Import its names from `lstm`."""

# `build.rs` gives the docstrings below to the compiled module, so that `help` shows them.

import os
from collections.abc import Callable, Mapping, Sequence
from types import GenericAlias
from typing import Any, Generic, Literal, SupportsFloat, SupportsInt, TypedDict, final, overload, type_check_only

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Required, Self, TypeVar

from ._interop import IncompatibleKeys

__all__ = [
    "LSTM",
    "Loss",
    "Model",
    "Stream",
    "Tape",
    "Trainer",
    "__version__",
    "devices",
    "digest",
    "restore_lstm",
    "restore_model",
    "run_module",
]

__version__: str

_F32 = NDArray[np.float32]

@type_check_only
class StepReport(TypedDict):
    """The report of a training step."""

    step: int
    """Number of the step, counted from 1."""
    loss: float
    """The loss before the update."""
    gradient_norm: float
    """The norm of all gradients before clipping."""
    learning_rate: float

@type_check_only
class ParameterGroup(TypedDict, total=False):
    """Options of the optimizer for some of the parameters of a `Trainer`."""

    parameters: Required[str]
    """The names of the parameters, in which `*` stands for any text, such as `head.*` or `*bias*`."""
    rate_factor: float
    """Factor of the learning rate; 1 by default."""
    weight_decay: float | None
    """Weight decay; that of the optimizer by default."""
    frozen: bool
    """Whether the parameters stay as they are; False by default."""

@type_check_only
class DeviceInfo(TypedDict):
    """A device that this build knows."""

    name: str
    """The name that `device=` takes."""
    available: bool
    """Whether the device can be used."""
    description: str | None
    """What it is, such as `Cpu(avx2, 8 threads)`; None if it is not available."""
    exact: bool | None
    """Whether its results are those of all other exact devices, bit for bit; None if it is not available."""
    why_not: str | None
    """Why it is not available; None if it is."""

def devices() -> list[DeviceInfo]:
    """Opens and describes every device that this build knows.

    Each has a `name`, which `device=` takes; `available`; `description`, such as `Cpu(avx2, 8 threads)`; `exact`, whether its
    results are those of all other exact devices, bit for bit; and `why_not`, the reason if it is not available. What is not
    known is None.
    """

def digest(*arrays: Any) -> str:
    """A 64-bit hash of the bits of float32 arrays, in row-major order, as 16 hexadecimal digits.

    Two results are identical, bit for bit, if their digests are equal. The shapes do not matter.

    Raises:
        TypeError: an array is not float32.
    """

@final
class LSTM:
    """Layers of LSTMs, with the arguments and the call of `torch.nn.LSTM`.

    A new object has random weights, from `U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))` as in PyTorch. Calling it is
    `forward`. Computation releases the GIL, and several threads may call one object. It can be pickled and copied.

    Differences from PyTorch:

    - The weights are arrays of NumPy inside the object: `state_dict` copies them. No gradient is recorded; for training
      inside PyTorch, use `lstm.torch.LSTM`.
    - `dropout` is less than 1. It acts in training mode, which is the mode of a new object, as in PyTorch. Its masks depend
      on `seed` and on the number of passes with dropout so far.

    Args:
        input_size: Number of features of the input at each time step.
        hidden_size: Number of features of the cell state.
        num_layers: Number of stacked layers.
        bias: Whether the layers have biases.
        batch_first: Whether inputs and outputs are `(batch, steps, features)` instead of `(steps, batch, features)`. States are
            `(layers * directions, batch, features)` in either case.
        dropout: Probability with which an element that one layer passes to the next becomes 0, in training mode.
        bidirectional: Whether a second set of layers runs from the last time step to the first.
        proj_size: Number of features to which the hidden state is projected; 0 for no projection.
        cell: `fused` (the standard cell), `unfused` (the same results), `peephole-dense` or `peephole-diagonal`.
        clip: Bound on the inputs of the gate activations, as ONNX's `clip`; None for no bound.
        coupled: Whether the forget gate is `1 - i`, as ONNX's `input_forget`.
        device: A name of `lstm.devices()`, or `auto` for a GPU if there is one, else the CPU.
        precision: `f32`, or `int8` or `int12` for quantized weights.
        threads: Number of threads of the CPU, 1 to 1024; None for all cores. Results do not depend on it.
        seed: Seed of the weights and of dropout. The same seed gives the same weights everywhere. None for one of the
            operating system; the attribute `seed` tells it.

    Raises:
        ValueError: an option is not valid.
        RuntimeError: the device is not available.
    """

    def __new__(
        cls,
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
        device: str = "cpu",
        precision: str = "f32",
        threads: int | None = None,
        seed: int | None = None,
    ) -> Self: ...

    @overload
    def __call__(
        self, input: _F32, hx: tuple[_F32, _F32] | None = None, *, lengths: Sequence[SupportsInt] | NDArray[Any] | None = None
    ) -> tuple[_F32, tuple[_F32, _F32]]: ...
    @overload
    def __call__(
        self, input: Any, hx: Any = None, *, lengths: Sequence[SupportsInt] | NDArray[Any] | None = None
    ) -> tuple[Any, tuple[Any, Any]]:
        """The same as `forward`."""

    @overload
    def forward(
        self, input: _F32, hx: tuple[_F32, _F32] | None = None, *, lengths: Sequence[SupportsInt] | NDArray[Any] | None = None
    ) -> tuple[_F32, tuple[_F32, _F32]]: ...
    @overload
    def forward(
        self, input: Any, hx: Any = None, *, lengths: Sequence[SupportsInt] | NDArray[Any] | None = None
    ) -> tuple[Any, tuple[Any, Any]]:
        """Runs the layers over a batch of sequences, or over one.

        Args:
            input: float32, `(steps, batch, input_size)`, or `(batch, steps, input_size)` with `batch_first`, or
                `(steps, input_size)` for one sequence. Any strides. An array of NumPy, a tensor of PyTorch in host memory, an
                array with `__dlpack__`, `__array_interface__` or `__array__`, or a `PackedSequence` of PyTorch. It is read
                without a copy, unless it is unaligned; `hx` is copied.
            hx: `(h0, c0)`: `(layers * directions, batch, proj_size or hidden_size)` and
                `(layers * directions, batch, hidden_size)`, without `batch` for one sequence. None for zeros.
            lengths: Number of time steps of each sequence, in any order. Outputs beyond it are 0, and the final state of a
                sequence is that after its last time step.

        Returns:
            `(y, (h, c))`: the outputs of the last layer at all time steps, of `proj_size or hidden_size` features for each
            direction, and the final states, in the layouts of `input` and `hx`. They are of the kind of `input`.

        Raises:
            TypeError: an array is not float32, is masked, or is no array.
            ValueError: a shape or a length is wrong; a tensor requires a gradient or is not in host memory.
        """

    def stream(self, batch: int = 1) -> Stream:
        """A stream that runs `batch` sequences time step by time step, from zero states. It keeps the weights of this time,
        and has no dropout.

        Raises:
            ValueError: the layers are bidirectional, or `batch` is 0.
        """

    def state_dict(self) -> dict[str, _F32]:
        """Copies of the weights, under PyTorch's names and in its order: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`,
        `bias_hh_l0`, `weight_hr_l0`, then those with `_reverse`, then the next layer.

        Quantized weights are the float32 values that the integers stand for.
        """

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Replaces all weights by arrays or tensors of any floating-point type. Rounds them to float32, and quantizes them
        to the `precision` of this object. The weights are unchanged after an error.

        Args:
            state_dict: The weights by name, as `state_dict` returns them.
            strict: With False, weights that are missing stay as they are, and other names are ignored, as in PyTorch.
                Quantized weights must all be there.

        Returns:
            `missing_keys` and `unexpected_keys`, as in PyTorch.

        Raises:
            ValueError: lists the names that are missing, the names that are unexpected, and the wrong shapes; or a value is
                too large for float32.
            TypeError: an array is not of a floating-point type.
        """

    def flatten_parameters(self) -> None:
        """Does nothing. It exists for code that calls it, as `torch.nn.LSTM` has it for GPUs."""

    def train(self, mode: bool = True) -> Self:
        """Turns dropout on, or off with `mode=False`. Returns the object."""

    def eval(self) -> Self:
        """Turns dropout off. Returns the object."""

    def digest(self) -> str:
        """The digest of all weights, in the order of `state_dict`."""

    @property
    def input_size(self) -> int:
        """Number of features of the input at each time step."""

    @property
    def hidden_size(self) -> int:
        """Number of features of the cell state."""

    @property
    def num_layers(self) -> int:
        """Number of stacked layers."""

    @property
    def bias(self) -> bool:
        """Whether the layers have biases."""

    @property
    def batch_first(self) -> bool:
        """Whether inputs and outputs are `(batch, steps, features)`."""

    @property
    def dropout(self) -> float:
        """The probability of dropout between layers, as given, also for one layer, where it has no effect."""

    @property
    def bidirectional(self) -> bool:
        """Whether a second set of layers runs from the last time step to the first."""

    @property
    def proj_size(self) -> int:
        """Number of features to which the hidden state is projected; 0 for no projection."""

    @property
    def cell(self) -> str:
        """The kind of cell, such as `fused`."""

    @property
    def clip(self) -> float | None:
        """The bound on the inputs of the gate activations; None for no bound."""

    @property
    def coupled(self) -> bool:
        """Whether the forget gate is `1 - i`."""

    @property
    def precision(self) -> str:
        """The precision of the weights: `f32`, `int8` or `int12`."""

    @property
    def device(self) -> str:
        """The name of the device, as given."""

    @property
    def threads(self) -> int | None:
        """Number of threads of the CPU, as given; None for all cores."""

    @property
    def seed(self) -> int:
        """The seed of the weights and of dropout."""

    @property
    def training(self) -> bool:
        """Whether dropout is on; see `train` and `eval`."""

    @property
    def path(self) -> str:
        """The code that runs the layers: the name of a kernel, or `reference`."""

@final
class Stream:
    """Runs `batch` sequences whose samples arrive over time. The states of the layers are kept between calls, and results
    are those of the whole sequences, bit for bit. One thread may use it at a time. `LSTM.stream` and `Model.stream` make it.
    """

    @overload
    def step(self, x: _F32, out: None = None) -> _F32: ...
    @overload
    def step(self, x: Any, out: Any = None) -> Any:
        """Runs one time step.

        Args:
            x: float32, `(batch, input_size)`, or `(input_size,)` for a batch of 1. For a model that reads tokens: integers
                `(batch,)`, or an integer for a batch of 1.
            out: float32, `(batch, output_size)`, or `(output_size,)` for a batch of 1; row-major. It must not overlap `x`.

        Returns:
            `out`, or a new array of the kind of `x`.

        Raises:
            TypeError: an array is not float32.
            ValueError: a shape is wrong; `out` overlaps `x`, is read-only or not row-major. The states are then unchanged.
        """

    @overload
    def run(self, x: _F32) -> _F32: ...
    @overload
    def run(self, x: Any) -> Any:
        """Runs several time steps with the kernels for whole sequences.

        Args:
            x: float32, `(batch, steps, input_size)`, or `(steps, input_size)` for a batch of 1; without the last axis for
                tokens. `(steps, batch, input_size)` for an LSTM without `batch_first`.

        Returns:
            The outputs in the layout of `x`; without `steps` for a model that returns the last step.

        Raises:
            TypeError: the array is not float32, or tokens are not integers.
            ValueError: a shape or a token is wrong.
            RuntimeError: another thread uses the stream.
        """

    def reset(self) -> None:
        """Sets the states to the initial ones: zeros, or those of the model."""

    @property
    def batch(self) -> int:
        """Number of sequences."""

    @property
    def state(self) -> Any:
        """A copy of the states: `(h, c)` of an LSTM, each `(layers, batch, features)`; a list of such pairs, one for each LSTM,
        of a model. The states can be replaced by assigning the same, also as arrays of other libraries."""

    @state.setter
    def state(self, state: Any) -> None: ...

@final
class Model:
    """A whole model from a file: embedding, LSTMs, linear layers, activations. `Model.open` makes it.

    Computation releases the GIL, and several threads may call one object. It can be pickled and copied; the copy does not need
    the file.
    """

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        name: str | Sequence[str] | None = None,
        layers: str | None = None,
        set: Mapping[str, float] | None = None,
        cell: str | None = None,
        clip: float | None = None,
        coupled: bool = False,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Model:
        """Reads a model file: safetensors, PyTorch (`torch.save`), Keras (`.keras`, `.h5`), ONNX, RTNeural, GuitarML, AIDA-X or
        NAM. The content determines the format.

        Args:
            path: The file.
            name: Use one LSTM of the file alone: the prefix of its tensor names, or the names of its nodes in an ONNX file.
            layers: Layers of a file that has tensors but no graph, in order, such as `"embedding, rec, last, lin:relu, out"`:
                prefixes of tensor names, an activation after a colon, and `last` for the last time step.
            set: Values of scalar inputs of an ONNX graph by name, such as `{"sr": 16000}`.
            cell: The cell, if the tensor names do not determine it: `fused`, `unfused`, `peephole-dense` or
                `peephole-diagonal`.
            clip: Bound on the inputs of the gate activations, if a file of tensors does not contain it.
            coupled: Whether the forget gate is `1 - i`, if a file of tensors does not say so.
            precision: `f32`, `int8` or `int12`, to convert the weights; None for that of the file.
            device: A name of `lstm.devices()`, or `auto` for a GPU if there is one, else the CPU.
            threads: Number of threads of the CPU; None for all cores. Results do not depend on it.

        Raises:
            OSError: the file can't be read.
            ValueError: the file is damaged, of an unknown format, or has a layer that is not supported; an option is not valid
                or does not apply to the format.
            RuntimeError: the device is not available.
        """

    @overload
    def run(
        self,
        x: NDArray[Any],
        *,
        lengths: Sequence[SupportsInt] | NDArray[Any] | None = None,
        states: Sequence[tuple[_F32, _F32]] | None = None,
        return_states: Literal[False] = False,
    ) -> _F32: ...
    @overload
    def run(
        self,
        x: Any,
        *,
        lengths: Sequence[SupportsInt] | NDArray[Any] | None = None,
        states: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Runs the model over a batch of sequences, or over one.

        Args:
            x: float32 `(batch, steps, input_size)`, or `(steps, input_size)` for one sequence; any strides. For a model that
                reads tokens: integers `(batch, steps)` or `(steps,)`.
            lengths: Number of time steps of each sequence, in any order. Outputs beyond it are 0.
            states: The initial states `(h, c)` of each LSTM, each `(layers * directions, batch, features)`, where `batch` is 1
                for one sequence. None for those of the file, or zeros.
            return_states: Whether to return `(y, states)` with the final states.

        Returns:
            `(batch, steps, output_size)`, or `(steps, output_size)` for one sequence. A model that returns the last step has no
            axis `steps`. The array is of the kind of `x`.

        Raises:
            TypeError: an array is not float32, or tokens are not integers.
            ValueError: a shape, a length or a token is wrong.
        """

    def stream(self, batch: int = 1) -> Stream:
        """A stream that runs `batch` sequences time step by time step, from the initial states.

        Raises:
            ValueError: an LSTM is bidirectional, the file fixes the lengths of sequences, or `batch` is 0.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the model to a safetensors file, which `Model.open` and the Rust library read.

        Raises:
            OSError: the file can't be written.
            ValueError: the file of this model fixes lengths or initial states, which are not part of the model.
        """

    def digest(self) -> str:
        """The digest of all parameters, layer by layer."""

    @property
    def input_size(self) -> int:
        """Number of features of the input at each time step; 1 for tokens."""

    @property
    def output_size(self) -> int:
        """Number of features of the output."""

    @property
    def reads_tokens(self) -> bool:
        """Whether the input is tokens."""

    @property
    def returns_last_step(self) -> bool:
        """Whether the model has one output for each sequence, rather than one for each time step."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of all layers."""

    @property
    def layers(self) -> list[str]:
        """A description of each layer."""

    @property
    def format(self) -> str:
        """The format of the file, such as `onnx`."""

    @property
    def dtypes(self) -> list[str]:
        """The element types of the parameters in the file."""

    @property
    def unused(self) -> list[str]:
        """Tensors or nodes of the file that are not part of the model, which was selected by `name`."""

    @property
    def steps(self) -> int | None:
        """The number of time steps that the model is for; None for any number."""

    @property
    def metadata(self) -> dict[str, str]:
        """Text by key that the file carries along."""

    @property
    def precision(self) -> str:
        """The precision of the weights, such as `f32`; several if layers differ, as in `f32, int8`."""

    @property
    def device(self) -> str:
        """The name of the device, as given."""

    @property
    def threads(self) -> int | None:
        """Number of threads of the CPU, as given; None for all cores."""

    @property
    def path(self) -> str:
        """The code that runs the LSTMs: the names of kernels, or `reference`."""

_Trained = TypeVar("_Trained", LSTM, Model, default=LSTM)
_Loss = (
    Loss
    | Literal["mse", "bce", "huber", "gaussian_nll", "cross_entropy", "ctc"]
    | Callable[[_F32], tuple[float, _F32]]
)

@final
class Loss:
    """A loss of `Trainer`, a mean over the outputs. The methods make one; each says what the target is.

    With `lengths`, outputs and targets beyond the end of a sequence are not counted. Losses are computed in float64, and
    gradients are rounded to float32 once. Losses with equal options are equal.
    """

    @staticmethod
    def mse() -> Loss:
        """The mean of `(y - target)**2`, as `torch.nn.MSELoss()`. The target is float32 of the shape of the outputs."""

    @staticmethod
    def bce(pos_weight: float = 1.0) -> Loss:
        """The binary cross entropy of logits, as `torch.nn.BCEWithLogitsLoss`. The target is float32 of the shape of the outputs:
        probabilities from 0 to 1.

        Args:
            pos_weight: Weight of the targets that are 1, above 1 if they are rare. One number for all outputs.

        Raises:
            ValueError: `pos_weight` is not a positive finite number.
        """

    @staticmethod
    def huber(delta: float = 1.0) -> Loss:
        """Squared near the target and linear far from it, as `torch.nn.HuberLoss`: with `d = abs(y - target)`, the mean of
        `d**2 / 2` if `d <= delta`, else of `delta * (d - delta / 2)`. The target is float32 of the shape of the outputs.

        Raises:
            ValueError: `delta` is not a positive finite number.
        """

    @staticmethod
    def pinball(quantile: float) -> Loss:
        """The loss whose minimum is a quantile of the target: the mean of `quantile * (target - y)` if `target >= y`, else of
        `(1 - quantile) * (y - target)`. The target is float32 of the shape of the outputs.

        Raises:
            ValueError: `quantile` is not between 0 and 1.
        """

    @staticmethod
    def gaussian_nll() -> Loss:
        """The negative log-likelihood of a normal distribution without its constant, as `torch.nn.GaussianNLLLoss`, but without a
        lower bound `eps` of the variances. The last axis of the outputs has the means and then the logarithms of the variances.
        The target is float32, with half the features of the outputs.
        """

    @staticmethod
    def cross_entropy(weight: Sequence[SupportsFloat] | NDArray[Any] | None = None, ignore_index: int = -100) -> Loss:
        """The cross entropy of logits, as `torch.nn.CrossEntropyLoss`, with the classes in the last axis of the outputs. The
        target is integers without this axis.

        Args:
            weight: A number for each class; 1 by default. The mean is divided by the sum of the weights of the targets.
            ignore_index: The target of rows that are not counted.

        Raises:
            ValueError: a weight is negative or not finite.
        """

    @staticmethod
    def ctc(blank: int = 0) -> Loss:
        """The CTC loss of logits, as `torch.nn.CTCLoss` of their `log_softmax`, with the classes in the last axis of the outputs.
        It reads the outputs of all time steps. The target is a list with the labels of each sequence, such as
        `[[3, 1], [2]]`, which may be empty.

        Args:
            blank: The class that is no label.

        Raises:
            ValueError: `blank` is negative.
        """

@final
class Trainer(Generic[_Trained]):
    """Trains a copy of an LSTM, with a linear head on its outputs, or of a whole model, without another library.

    Results are the same, bit for bit, for any number of threads and on any device. A run that is saved and resumed gives the
    bits of one without interruption.

    Computation releases the GIL. One step may run at a time; other uses during a step see the trainer as it was before.

    Args:
        model: The LSTM or the model, in float32. It is not changed; the attribute `model` of the trainer is the trained one.
        output_size: Number of features to which a linear head maps the outputs of an LSTM; None for no head.
        optimizer: `sgd`, `adam` or `adamw`, with PyTorch's defaults: `"sgd momentum=0.9 dampening=0 nesterov=true
            weight_decay=1e-4"`, `"adam beta1=0.9 beta2=0.999 eps=1e-8 weight_decay=0"`, `"adamw weight_decay=0.01"`.
        schedule: The learning rate, such as `"cosine rate=0.1 steps=1000 min=0.001 warmup=50"`,
            `"step rate=0.1 every=30 factor=0.5"` or `"constant rate=0.001"`. `step(..., learning_rate=...)` replaces it.
        clip: `"norm bound=1"` or `"value bound=1"`, to clip gradients.
        groups: Options for some of the parameters, such as `{"parameters": "*bias*", "weight_decay": 0.0}`,
            `{"parameters": "head.*", "rate_factor": 10.0}` or `{"parameters": "lstm.*", "frozen": True}`. The names are
            `lstm.` with those of `state_dict`, `head.weight` and `head.bias`, or those of the layers of a model; an error lists
            them. A parameter may be in one group.
        checkpointing: What the forward pass keeps for the backward pass: `"everything"`, or less, with the same results in
            more time: `"segments steps=64"` or `"square-root"`.
        seed: Seed of the head and of dropout.

    Raises:
        ValueError: an option is not valid, the model is quantized, or its file fixes lengths or initial states.
    """

    def __class_getitem__(cls, item: Any) -> GenericAlias: ...
    def __new__(
        cls,
        model: _Trained,
        output_size: int | None = None,
        *,
        optimizer: str = "adam",
        schedule: str = "constant rate=0.001",
        clip: str | None = None,
        groups: Sequence[ParameterGroup] | None = None,
        checkpointing: str = "everything",
        seed: int = 0,
    ) -> Self: ...

    def step(
        self,
        x: Any,
        target: Any = None,
        *,
        loss: _Loss | None = None,
        hx: Any = None,
        lengths: Sequence[SupportsInt] | NDArray[Any] | None = None,
        last: bool = False,
        learning_rate: float | None = None,
    ) -> StepReport:
        """Runs one training step: forward pass with dropout, loss, backward pass, clipping, update.

        Args:
            x: float32, in the layout of the LSTM, with a batch axis. For a model: `(batch, steps, features)`, or tokens
                `(batch, steps)`.
            target: What the loss compares the outputs with; see `Loss`. None for a function.
            loss: A `Loss`, or the name of one with its default options; `mse` by default. Or a function from the outputs to the
                loss and its gradient, float32 of their shape.
            hx: The initial states: `(h0, c0)` of an LSTM, a list of such pairs of a model; None for zeros or those of the
                model. `trainer.state` continues the sequences of the last step, and gradients end there: truncated
                backpropagation through time.
            lengths: Number of time steps of each sequence. The losses do not count outputs beyond it; a function must.
            last: Whether the loss reads the last hidden state of each sequence, `(batch, output_size)`, instead of the
                outputs of all time steps. The layers of a model decide this for it. A softmax at the end of a model is not
                part of the outputs in training.
            learning_rate: The learning rate of this step; None for that of the schedule.

        Returns:
            `step`, the number of the step, counted from 1; `loss`, the loss before the update; `gradient_norm`, the norm of
            all gradients before clipping; and `learning_rate`.

        Raises:
            TypeError: an array is of another type.
            ValueError: a shape or a target is wrong, gradients are accumulated, or the loss, a gradient or a parameter is not
                finite. The trainer is then unchanged.
            RuntimeError: another step of the trainer is running.
        """

    def accumulate(
        self,
        x: Any,
        target: Any = None,
        *,
        loss: _Loss | None = None,
        hx: Any = None,
        lengths: Sequence[SupportsInt] | NDArray[Any] | None = None,
        last: bool = False,
        share: float = 1.0,
    ) -> float:
        """Runs the passes of a part of a batch, and adds its gradients to those of earlier calls. `apply` then updates the
        parameters.

        Args:
            share: Factor of the loss and its gradients. They are summed, so for a mean over the whole batch it is the share of
                the part: `1 / parts` for equal parts.

        The other arguments are those of `step`.

        Returns:
            The loss of the part, times `share`.

        Raises:
            ValueError, TypeError, RuntimeError: as for `step`. What was accumulated before is then unchanged.
        """

    def apply(self, *, learning_rate: float | None = None) -> StepReport:
        """Clips the accumulated gradients and updates the parameters. Returns the report of `step`, with the sum of the losses.

        Raises:
            ValueError: nothing is accumulated or `learning_rate` is wrong; or a gradient or a parameter is not finite, and the
                accumulated gradients are then discarded. The parameters are unchanged.
            RuntimeError: another step of the trainer is running.
        """

    def discard_accumulated(self) -> None:
        """Discards the accumulated gradients."""

    def predict(self, x: Any, *, hx: Any = None, lengths: Sequence[SupportsInt] | NDArray[Any] | None = None) -> _F32:
        """The outputs of the head, of the LSTM without a head, or of the model, without dropout.

        Args:
            x: As in `step`.
            hx: As in `step`.
            lengths: Number of time steps of each sequence. Outputs beyond it are 0.

        Raises:
            TypeError: an array is of another type.
            ValueError: a shape or a length is wrong.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the run to a safetensors file: the model, the optimizer and the options.

        Raises:
            OSError: the file can't be written.
            ValueError: gradients are accumulated.
        """

    @staticmethod
    def resume(
        path: str | os.PathLike[str],
        *,
        batch_first: bool | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Trainer[Any]:
        """Continues a saved run.

        Args:
            path: The file.
            batch_first: The layout of arrays. None for that of the file, which the run of an LSTM that was saved by a Rust
                program does not have. A model has the batch first.
            device: See `LSTM`.
            threads: See `LSTM`.

        Raises:
            OSError: the file can't be read.
            ValueError: it is not a saved run, or has another layout than `batch_first`.
        """

    @property
    def model(self) -> _Trained:
        """A copy of the LSTM with its current weights, in the mode of `eval`, or of the model."""

    @property
    def head(self) -> tuple[_F32, _F32 | None] | None:
        """Copies of the weight `(output_size, features)` and the bias of the head of an LSTM; None without a head."""

    @property
    def state(self) -> Any:
        """Copies of the final states of the last `step` or `accumulate`, which `hx` takes: `(h, c)` of an LSTM, a list of such
        pairs of a model; None before the first, and in a run that was resumed."""

    @property
    def steps(self) -> int:
        """Number of steps so far."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    @property
    def optimizer(self) -> str:
        """The optimizer with all its options."""

    @property
    def schedule(self) -> str:
        """The schedule of the learning rate. It can be replaced."""

    @schedule.setter
    def schedule(self, schedule: str) -> None: ...

    @property
    def clip(self) -> str | None:
        """How gradients are clipped; None if they are not. It can be replaced."""

    @clip.setter
    def clip(self, clip: str | None) -> None: ...

    @property
    def groups(self) -> list[ParameterGroup]:
        """A copy of the options for some of the parameters. They can be replaced, for example to train parameters that were
        frozen."""

    @groups.setter
    def groups(self, groups: Sequence[ParameterGroup]) -> None: ...

@final
class Tape:
    """The recording of a pass of `run_module`."""

    def backward(
        self, dy: _F32 | None, dh: _F32 | None, dc: _F32 | None, needs_x: bool
    ) -> tuple[_F32 | None, _F32, _F32, list[_F32]]:
        """The gradients with respect to the input if `needs_x`, the initial states, and the parameters in the order of
        `LSTM.state_dict`. A gradient of None is zero."""

def run_module(
    lstm: LSTM,
    parameters: list[_F32],
    x: _F32,
    hx: tuple[_F32, _F32] | None,
    lengths: Sequence[SupportsInt] | NDArray[Any] | None,
    dropout_seed: int | None,
    record: bool,
) -> tuple[_F32, tuple[_F32, _F32], Tape | None]:
    """Runs an LSTM with other parameters, with dropout if there is a seed, and records the pass if `record`."""

def restore_model(
    bytes: bytes,
    device: tuple[str, int | None],
    file: tuple[str, list[str], list[str]],
    constants: tuple[int | None, list[int] | None, list[tuple[_F32, _F32]] | None],
) -> Model:
    """Makes a model from its pickled form."""

def restore_lstm(
    bytes: bytes,
    config: str,
    device: tuple[str, int | None],
    options: tuple[bool, float, int],
    mode: tuple[bool, int],
) -> LSTM:
    """Makes an LSTM from its pickled form."""
