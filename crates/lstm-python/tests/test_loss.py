"""`Loss`: values and gradients against float64 formulas of NumPy, and against PyTorch; layouts, lengths, errors.

The gradient of a loss with respect to the outputs is seen in the head: with `sgd` and a learning rate of 1, its weight changes by
the product of this gradient and the outputs of the LSTM.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm
from lstm import Loss

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BATCH, STEPS, SIZE = 3, 4, 4
LABELS = [[1, 1], [2], []]
CLASS_WEIGHT = [0.5, 2.0, 0.0, 1.0]


def noise(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def log_softmax(x: F64) -> F64:
    result: F64 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


# Each takes the rows of outputs within the lengths, `(rows, SIZE)` in float64, and those of the target.


def mse(y: F64, t: F64) -> float:
    return float(np.mean((y - t) ** 2))


def bce(y: F64, t: F64, pos_weight: float = 1.0) -> float:
    yes, no = np.log(1 / (1 + np.exp(-y))), np.log(1 / (1 + np.exp(y)))
    return float(-np.mean(pos_weight * t * yes + (1 - t) * no))


def huber(y: F64, t: F64, delta: float = 1.0) -> float:
    d = np.abs(y - t)
    return float(np.mean(np.where(d <= delta, d**2 / 2, delta * (d - delta / 2))))


def pinball(y: F64, t: F64, quantile: float) -> float:
    return float(np.mean(np.maximum(quantile * (t - y), (quantile - 1) * (t - y))))


def gaussian_nll(y: F64, t: F64) -> float:
    mean, variance = y[:, : SIZE // 2], np.exp(y[:, SIZE // 2 :])
    return float(np.mean(np.log(variance) + (t - mean) ** 2 / variance) / 2)


def cross_entropy(y: F64, t: NDArray[np.int64], weight: Any = (1.0,) * SIZE, ignored: int = -100) -> float:
    y, t = y[t != ignored], t[t != ignored]
    w = np.asarray(weight)[t]
    return float((w * -log_softmax(y)[np.arange(len(t)), t]).sum() / w.sum())


def ctc_of_one(y: F64, labels: list[int], blank: int) -> float:
    """Adds the probabilities of all paths that read as the labels."""
    p, total = np.exp(log_softmax(y)), 0.0
    for path in itertools.product(range(SIZE), repeat=len(y)):
        read = [k for k, _ in itertools.groupby(path) if k != blank]
        if read == labels:
            total += float(np.prod(p[np.arange(len(y)), path]))
    return float(-np.log(total)) / max(len(labels), 1)


FLOATS, PROBABILITIES = noise(BATCH, STEPS, SIZE, seed=1), np.abs(noise(BATCH, STEPS, SIZE, seed=2)) % 1
CLASSES = (np.arange(BATCH * STEPS).reshape(BATCH, STEPS) * 3) % SIZE
CLASSES[1, 0] = -100

Formula = Callable[..., float]
CASES: list[tuple[Any, Any, Formula]] = [
    (None, FLOATS, mse),
    ("mse", FLOATS, mse),
    ("bce", PROBABILITIES, bce),
    (Loss.bce(pos_weight=3.5), PROBABILITIES, lambda y, t: bce(y, t, 3.5)),
    ("huber", FLOATS, huber),
    (Loss.huber(delta=0.3), FLOATS, lambda y, t: huber(y, t, 0.3)),
    (Loss.pinball(0.9), FLOATS, lambda y, t: pinball(y, t, 0.9)),
    ("gaussian_nll", FLOATS[..., : SIZE // 2], gaussian_nll),
    ("cross_entropy", CLASSES, cross_entropy),
    (Loss.cross_entropy(CLASS_WEIGHT), CLASSES, lambda y, t: cross_entropy(y, t, CLASS_WEIGHT)),
    (Loss.cross_entropy(ignore_index=1), np.abs(CLASSES) % SIZE, lambda y, t: cross_entropy(y, t, ignored=1)),
]
IDS = [str(loss) for loss, _, _ in CASES]


def slope(function: Callable[[F64], float], y: F64) -> F64:
    """The gradient by central differences."""
    gradient = np.zeros_like(y)
    for k in np.ndindex(*y.shape):
        step = np.zeros_like(y)
        step[k] = 1e-6
        gradient[k] = (function(y + step) - function(y - step)) / 2e-6
    return gradient


def check_step(batch_first: bool, expected: Callable[[F64], float], target: Any, **options: Any) -> None:
    """Compares the loss of a step and its gradient with those of `expected`, a function of the outputs with the batch first."""
    x = noise(BATCH, STEPS, 3, seed=3)
    model = lstm.LSTM(3, 16, batch_first=batch_first, seed=1, threads=1)
    trainer = lstm.Trainer(model, SIZE, optimizer="sgd", schedule="constant rate=1")
    given = x if batch_first else x.swapaxes(0, 1)
    lengths, last = options.get("lengths"), options.get("last", False)
    features: Any
    if last:
        features = model.eval()(given, lengths=lengths)[1][0][0]
    else:
        features = model.eval()(given, lengths=lengths)[0]
        features = features if batch_first else features.swapaxes(0, 1)
    head: Any = trainer.head
    weight, bias = head
    y = (features @ weight.T + bias).astype(np.float64)
    loss = trainer.step(given, target, **options)["loss"]
    assert loss == pytest.approx(expected(y), rel=1e-6)
    gradient = slope(expected, y)
    head = trainer.head
    changed = weight - head[0], bias - head[1]
    rows: Any = gradient.reshape(-1, SIZE)
    np.testing.assert_allclose(changed[0], rows.T @ features.reshape(-1, 16), atol=1e-6)
    np.testing.assert_allclose(changed[1], rows.sum(0), atol=1e-6)
    assert np.abs(changed[0]).max() > 1e-3


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
@pytest.mark.parametrize(("loss", "target", "formula"), CASES, ids=IDS)
def test_outputs(loss: Any, target: Any, formula: Formula, lengths: Any, batch_first: bool) -> None:
    rows = np.arange(STEPS) < np.asarray(lengths or [STEPS] * BATCH)[:, None]
    if lengths is not None and target.dtype == np.float32:
        # What is beyond a length is not read.
        target = np.where(rows[..., None], target, np.float32(np.nan))
    given = target if batch_first else target.swapaxes(0, 1)
    check_step(batch_first, lambda y: formula(y[rows], target[rows]), given, loss=loss, lengths=lengths)


@pytest.mark.parametrize(("loss", "target", "formula"), CASES, ids=IDS)
def test_last_states(loss: Any, target: Any, formula: Formula) -> None:
    check_step(True, lambda y: formula(y, target[:, 1]), target[:, 1], loss=loss, lengths=[4, 1, 2], last=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 2, 0]])
@pytest.mark.parametrize("blank", [0, 3])
def test_ctc(lengths: Any, blank: int, batch_first: bool) -> None:
    def expected(y: F64) -> float:
        ends = lengths or [STEPS] * BATCH
        return sum(ctc_of_one(y[b, : ends[b]], LABELS[b], blank) for b in range(BATCH)) / BATCH

    for labels in (LABELS, [np.array(row, np.int32) for row in LABELS]):
        check_step(batch_first, expected, labels, loss=Loss.ctc(blank), lengths=lengths)


def test_pytorch() -> None:
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    functional = torch.nn.functional

    def tensors(y: F64, t: Any) -> tuple[Any, Any]:
        return torch.from_numpy(y), torch.from_numpy(t if t.dtype == np.int64 else t.astype(np.float64))

    theirs: dict[str, Callable[[Any, Any], Any]] = {
        "mse": functional.mse_loss,
        "bce": functional.binary_cross_entropy_with_logits,
        str(Loss.bce(pos_weight=3.5)): lambda y, t: functional.binary_cross_entropy_with_logits(
            y, t, pos_weight=torch.tensor(3.5)
        ),
        "huber": functional.huber_loss,
        str(Loss.huber(delta=0.3)): lambda y, t: functional.huber_loss(y, t, delta=0.3),
        "gaussian_nll": lambda y, t: functional.gaussian_nll_loss(*y.split(SIZE // 2, 1)[:1], t, y[:, SIZE // 2 :].exp()),
        "cross_entropy": functional.cross_entropy,
        str(Loss.cross_entropy(CLASS_WEIGHT)): lambda y, t: functional.cross_entropy(
            y, t, weight=torch.tensor(CLASS_WEIGHT, dtype=torch.float64)
        ),
        str(Loss.cross_entropy(ignore_index=1)): lambda y, t: functional.cross_entropy(y, t, ignore_index=1),
    }
    compared = 0
    for loss, target, formula in CASES:
        if str(loss) in theirs:
            y, rows = noise(BATCH * STEPS, SIZE, seed=4).astype(np.float64), target.reshape(BATCH * STEPS, *target.shape[2:])
            expected = float(theirs[str(loss)](*tensors(y, rows)))
            assert formula(y, rows.astype(np.float64) if rows.dtype == np.float32 else rows) == pytest.approx(expected), loss
            compared += 1
    assert compared == len(theirs)
    y = noise(BATCH, STEPS, SIZE, seed=4).astype(np.float64)
    padded = torch.tensor([[1, 1], [2, 0], [0, 0]])
    counts = torch.tensor([len(row) for row in LABELS])
    expected = functional.ctc_loss(torch.from_numpy(y).log_softmax(2).swapaxes(0, 1), padded, torch.tensor([4, 2, 0]), counts)
    ends = [4, 2, 0]
    ours = sum(ctc_of_one(y[b, : ends[b]], LABELS[b], 0) for b in range(BATCH)) / BATCH
    assert ours == pytest.approx(float(expected))


def test_values_of_python() -> None:
    assert Loss.huber() == Loss.huber(1.0) != Loss.huber(2.0) != Loss.mse()
    assert repr(Loss.cross_entropy([1, 2])) == "Loss.cross_entropy(weight=[1.0, 2.0], ignore_index=-100)"
    assert repr(Loss.pinball(quantile=0.5)) == "Loss.pinball(quantile=0.5)"
    assert Loss.cross_entropy(np.ones(2)) == Loss.cross_entropy((1, 1.0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'reduction'"):
        Loss.huber(reduction="sum")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="cannot create 'lstm.Loss' instances"):
        Loss()


NOTHING: Any = None
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Loss.huber(0), ValueError, "^delta: expected a positive finite number, got 0.0$"),
    (lambda: Loss.bce(-1), ValueError, "^pos_weight: expected a positive finite number, got -1.0$"),
    (lambda: Loss.pinball(1), ValueError, "^quantile: expected 0 < quantile < 1, got 1.0$"),
    (lambda: Loss.pinball(NOTHING), TypeError, "^quantile: expected a number, got None"),
    (lambda: Loss.ctc(-1), ValueError, "^blank: expected a number from 0"),
    (lambda: Loss.cross_entropy([1, -1]), ValueError, "^weight: expected finite numbers of at least 0, got -1$"),
    (lambda: Loss.cross_entropy(np.ones((2, 2))), TypeError, "^weight: expected one number for each class"),
]
STEP_ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    ("l1", FLOATS, ValueError, "^loss: expected an lstm.Loss, a function, or one of mse, .*, got 'l1'$"),
    ("pinball", FLOATS, ValueError, r"^loss: pinball needs a quantile; pass a loss such as lstm.Loss.pinball\(0.9\)$"),
    (3, FLOATS, TypeError, r"^loss: expected an lstm.Loss, .*, got 3 \(int\)$"),
    ("mse", None, ValueError, r"^target: the loss Loss.mse\(\) needs one, got None$"),
    (lambda y: (0.0, y), FLOATS, ValueError, "^target: expected None, because the loss is a function"),
    (lambda y: 0.0, None, TypeError, "^loss: expected the function to return the loss, .*, got float$"),
    (lambda y: (0.0, y[0]), None, ValueError, r"^gradient of the loss: expected the shape \[3, 4, 4\], got the shape \[4, 4\]$"),
    ("bce", FLOATS, ValueError, "^target: expected probabilities from 0 to 1, got "),
    (Loss.bce(2.0), FLOATS, ValueError, "^target: expected probabilities from 0 to 1, got "),
    ("gaussian_nll", FLOATS, ValueError, r"^target: expected the shape \[3, 4, 2\], got \[3, 4, 4\]$"),
    ("cross_entropy", CLASSES + 1, ValueError, "^target: expected classes from 0 to 3, or -100 to ignore a row, got (4|-99)$"),
    ("cross_entropy", 0 * CLASSES - 100, ValueError, "^target: expected at least one class, got only rows that are ignored"),
    ("cross_entropy", FLOATS[..., 0], TypeError, "^target: expected integers, got float32$"),
    (Loss.cross_entropy([1]), CLASSES, ValueError, "^weight: expected 4 numbers, one for each class, got 1$"),
    (Loss.cross_entropy([0, 1, 1, 1]), 0 * CLASSES, ValueError, "^weight: expected a number above 0 for a class of the target"),
    ("ctc", [[1]], ValueError, "^target: expected the labels of 3 sequences, got 1$"),
    ("ctc", [[1], [0], [1]], ValueError, "^target of sequence 1: expected classes below 4 other than the blank 0, got 0$"),
    ("ctc", [[1], [-1], [1]], ValueError, r"^target\[1\]: expected labels from 0 on, got -1$"),
    ("ctc", [[1], [1, 1, 1], [1]], ValueError, "^length of sequence 1: expected at least 5 time steps for 3 labels"),
    ("ctc", 3, TypeError, "^target: expected the labels of each sequence, such as "),
    ("ctc", [[1], [[1]], [1]], ValueError, r"^target\[1\]: expected one axis, of labels, got the shape \[1, 1\]$"),
    (Loss.ctc(4), [[1]] * 3, ValueError, "^blank: expected a class below 4, got 4$"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(("loss", "target", "error", "text"), STEP_ERRORS)
def test_errors_of_steps(loss: Any, target: Any, error: type[Exception], text: str) -> None:
    trainer = lstm.Trainer(lstm.LSTM(3, 5, batch_first=True, seed=1, threads=1), SIZE)
    for call in (trainer.step, trainer.accumulate):
        with pytest.raises(error, match=text):
            call(noise(BATCH, STEPS, 3), target, loss=loss)
    assert trainer.steps == 0
    with pytest.raises(ValueError, match="expected at least one call of accumulate"):
        trainer.apply()


def test_errors_of_the_number_of_outputs() -> None:
    trainer = lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1))
    with pytest.raises(ValueError, match="^loss: gaussian_nll: expected an even number of outputs: .*; got 5$"):
        trainer.step(noise(7, 2, 3), noise(7, 2, 2), loss="gaussian_nll")
    with pytest.raises(ValueError, match="^loss: ctc reads the outputs of all time steps, got last=True or a model"):
        trainer.step(noise(7, 2, 3), [[1], [1]], loss="ctc", last=True)
