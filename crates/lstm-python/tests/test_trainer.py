"""Trainer: losses of every layout, bits of a resumed run, comparison with PyTorch, errors."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm

F32 = NDArray[np.float32]


def noise(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def digest(trainer: lstm.Trainer) -> str:
    head = trainer.head
    assert head is not None and head[1] is not None
    return lstm.digest(*trainer.model.state_dict().values(), head[0], head[1])


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy"])
@pytest.mark.parametrize("lengths", [None, [3, 7, 0]])
def test_layouts_give_the_same_bits(loss: Any, lengths: list[int] | None) -> None:
    x = noise(7, 3, 4)
    target: Any = np.abs(noise(7, 3, 5)) < 0.7
    target = target.argmax(2) if loss == "cross_entropy" else target.astype(np.float32)
    results = []
    for first in (False, True):
        model = lstm.LSTM(4, 6, num_layers=2, batch_first=first, seed=1, threads=1)
        trainer = lstm.Trainer(model, 5, seed=2)

        def swap(array: Any, first: bool = first) -> Any:
            return array.swapaxes(0, 1) if first else array

        losses = [trainer.step(swap(x), swap(target), loss=loss, lengths=lengths)["loss"] for _ in range(20)]
        assert losses[-1] < losses[0]
        results.append((losses[0], swap(trainer.predict(swap(x), lengths=lengths))))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)


def test_last_states() -> None:
    x = noise(7, 4, 3)
    trainer = lstm.Trainer(lstm.LSTM(3, 8, seed=1), 2, schedule="constant rate=0.05", clip="norm bound=1")
    classes = np.array([0, 1, 0, 1])
    losses = [trainer.step(x, classes, loss="cross_entropy", last=True)["loss"] for _ in range(60)]
    assert losses[0] > 0.5 and losses[-1] < 0.1
    model, head = trainer.model, trainer.head
    assert head is not None and head[1] is not None
    logits = model(x)[1][0][0] @ head[0].T + head[1]
    np.testing.assert_array_equal(logits.argmax(1), classes)
    assert trainer.steps == 60 and not model.training


def test_a_function_is_a_loss() -> None:
    x, target = noise(7, 2, 3), noise(7, 2, 4)

    def squares(y: F32) -> tuple[float, F32]:
        difference = y - target
        return float(np.square(difference).mean()), 2 * difference / np.float32(y.size)

    a, b = (lstm.Trainer(lstm.LSTM(3, 5, seed=1), 4) for _ in range(2))
    for _ in range(3):
        expected = a.step(x, target)["loss"]
        assert b.step(x, loss=squares)["loss"] == pytest.approx(expected, rel=1e-5)

    def fails(y: F32) -> tuple[float, F32]:
        raise KeyError("mine")

    before = digest(b)
    with pytest.raises(KeyError, match="mine"):
        b.step(x, loss=fails)
    with pytest.raises(ValueError, match="gradient of the loss"):
        b.step(x, loss=lambda y: (0.0, y[:1]))
    with pytest.raises(ValueError, match="the loss is NaN"):
        b.step(x, loss=lambda y: (float("nan"), y))
    assert digest(b) == before and b.steps == 3


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, threads: int) -> None:
    x, target = noise(40, 8, 3), noise(40, 8, 2)
    model = lstm.LSTM(3, 8, num_layers=2, dropout=0.25, seed=1, threads=threads)
    digest_before = model.digest()
    trainer = lstm.Trainer(model, 2, optimizer="adamw weight_decay=0.01", schedule="cosine rate=0.01 steps=10", seed=3)
    for _ in range(3):
        trainer.step(x, target)
    trainer.save(tmp_path / "run.safetensors")
    resumed = lstm.Trainer.resume(tmp_path / "run.safetensors", threads=1)
    assert repr(resumed) == repr(trainer) and resumed.learning_rate == trainer.learning_rate
    for _ in range(3):
        assert trainer.step(x, target) == resumed.step(x, target)
    assert digest(trainer) == digest(resumed)
    assert model.digest() == digest_before, "the caller's model is not changed"


@pytest.mark.parametrize("first", [False, True])
def test_a_resumed_run_has_the_same_layout(tmp_path: Path, first: bool) -> None:
    trainer = lstm.Trainer(lstm.LSTM(3, 5, batch_first=first, seed=1, threads=1))
    trainer.save(tmp_path / "run.safetensors")
    for given in (None, first):
        resumed = lstm.Trainer.resume(tmp_path / "run.safetensors", batch_first=given)
        assert resumed.model.batch_first == first
    with pytest.raises(ValueError, match=f"batch_first: expected {first} or None"):
        lstm.Trainer.resume(tmp_path / "run.safetensors", batch_first=not first)


def test_errors(tmp_path: Path) -> None:
    model = lstm.LSTM(3, 5, seed=1)
    for options, part in [
        ({"optimizer": "lion"}, "expected sgd"),
        ({"schedule": "constant rate=-1"}, "rate"),
        ({"clip": "norm bound=0"}, "clip|bound"),
        ({"output_size": 0}, "output_size"),
    ]:
        with pytest.raises(ValueError, match=part):
            lstm.Trainer(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train in f32"):
        lstm.Trainer(lstm.LSTM(3, 5, precision="int8"))
    trainer, x = lstm.Trainer(model), noise(7, 2, 3)
    with pytest.raises(ValueError, match=r"target: expected the shape \[7, 2, 5\], got \[7, 2, 4\]"):
        trainer.step(x, noise(7, 2, 4))
    with pytest.raises(ValueError, match="target: the loss mse needs one"):
        trainer.step(x)
    with pytest.raises(ValueError, match="expected a function or one of mse, bce, cross_entropy, got `l1`"):
        trainer.step(x, x, loss="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-100 to ignore the row, got -1"):
        trainer.step(x, np.full((7, 2), -1), loss="cross_entropy")
    with pytest.raises(TypeError, match="target: expected float32, got float64"):
        trainer.step(x, np.zeros((7, 2, 5)))
    with pytest.raises(ValueError, match="got 2 dimensions"):
        trainer.step(x[0], x[0])
    with pytest.raises(FileNotFoundError):
        lstm.Trainer.resume(tmp_path / "absent")


def test_the_training_of_pytorch() -> None:
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    torch.set_num_threads(1)
    x, target = noise(7, 2, 3), noise(7, 2, 5)
    model = lstm.LSTM(3, 5, seed=1)
    trainer = lstm.Trainer(model, optimizer="adam", schedule="constant rate=0.01")
    theirs = torch.nn.LSTM(3, 5)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in model.state_dict().items()})
    optimizer = torch.optim.Adam(theirs.parameters(), 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(theirs(torch.from_numpy(x))[0], torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        assert trainer.step(x, target)["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_a_step_releases_the_gil() -> None:
    trainer, x = lstm.Trainer(lstm.LSTM(256, 256, seed=1, threads=1)), noise(400, 8, 256)
    started, slices = threading.Event(), 0

    def run() -> None:
        started.set()
        trainer.step(x, x)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    while thread.is_alive():
        slices += trainer.steps == 0
        time.sleep(0.001)
    assert slices > 5, "this thread did not run during the step"
    assert trainer.steps == 1


def test_one_step_at_a_time() -> None:
    trainer, x = lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1)), noise(7, 2, 3)

    def loss(y: F32) -> tuple[float, F32]:
        assert trainer.steps == 0 and trainer.predict(x).shape == y.shape
        with pytest.raises(RuntimeError, match="a step of this trainer is running"):
            trainer.step(x, y)
        return 1.0, y

    assert trainer.step(x, loss=loss)["step"] == trainer.steps == 1
