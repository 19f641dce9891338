"""Trainer: losses of every layout, bits of a resumed run, comparison with PyTorch, errors."""

from __future__ import annotations

import threading
import time
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm
import onnx_file

F32 = NDArray[np.float32]
MODELS = Path(__file__).resolve().parents[3] / "tests/data/models"


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
    # mypy rejects these, too.
    with pytest.raises(ValueError, match="loss: expected an lstm.Loss, a function, or one of mse, .*, got 'l1'"):
        trainer.step(x, x, loss="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"groups\[0\]: lr: there is no such option"):
        lstm.Trainer(model, groups=[{"parameters": "*", "lr": 1}])  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ValueError, match=r"target: expected the shape \[7, 2, 5\], got \[7, 2, 4\]"):
        trainer.step(x, noise(7, 2, 4))
    with pytest.raises(TypeError, match="target: expected float32, got float64"):
        trainer.step(x, np.zeros((7, 2, 5)))
    with pytest.raises(ValueError, match="got 2 dimensions"):
        trainer.step(x[0], x[0])
    with pytest.raises(FileNotFoundError):
        lstm.Trainer.resume(tmp_path / "absent")


def parameters(trainer: lstm.Trainer) -> dict[str, F32]:
    """All parameters under the names that groups match."""
    head = trainer.head
    assert head is not None and head[1] is not None
    state_dict = {f"lstm.{name}": value for name, value in trainer.model.state_dict().items()}
    return {**state_dict, "head.weight": head[0], "head.bias": head[1]}


def test_groups() -> None:
    x, target, rate = noise(7, 2, 3), noise(7, 2, 4), 0.5
    options = f"constant rate={rate}"
    plain = lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1), 4, optimizer="sgd", schedule=options)
    before, report = parameters(plain), plain.step(x, target)
    gradients = {name: (before[name].astype(np.float64) - after) / rate for name, after in parameters(plain).items()}
    trainer = lstm.Trainer(
        lstm.LSTM(3, 5, seed=1, threads=1),
        4,
        optimizer="sgd weight_decay=0.25",
        schedule=options,
        groups=[
            {"parameters": "head.*", "rate_factor": 2.0},
            {"parameters": "*bias_*", "weight_decay": 0.0},
            {"parameters": "lstm.weight_hh*", "frozen": True},
        ],
    )
    got = trainer.step(x, target)
    for name, after in parameters(trainer).items():
        factor, decay = (2.0 if "head" in name else 1.0), (0.0 if "bias_" in name else 0.25)
        if name == "lstm.weight_hh_l0":
            np.testing.assert_array_equal(after, before[name])
        else:
            change = factor * rate * (gradients[name] + decay * before[name])
            np.testing.assert_allclose(after, before[name] - change, atol=1e-6, err_msg=name)
    norm = sum(np.square(value).sum() for name, value in gradients.items() if "weight_hh" not in name) ** 0.5
    assert got["gradient_norm"] == pytest.approx(norm, rel=1e-5) and norm < report["gradient_norm"]
    groups = trainer.groups
    assert groups[1] == {"parameters": "*bias_*", "rate_factor": 1.0, "weight_decay": 0.0, "frozen": False}
    trainer.groups = []
    trainer.step(x, target)
    assert not np.array_equal(parameters(trainer)["lstm.weight_hh_l0"], before["lstm.weight_hh_l0"])
    trainer.groups = groups
    assert trainer.groups == groups


def test_options_are_kept_in_a_saved_run(tmp_path: Path) -> None:
    trainer = lstm.Trainer(
        lstm.LSTM(3, 5, seed=1, threads=1),
        2,
        optimizer="sgd momentum=0.5",
        clip="value bound=2",
        groups=[{"parameters": "lstm.*", "frozen": True}],
        checkpointing="segments steps=32",
    )
    trainer.schedule = "step rate=0.5 every=2 factor=0.5"
    trainer.clip = "norm bound=1"
    trainer.save(tmp_path / "run.safetensors")
    resumed = lstm.Trainer.resume(tmp_path / "run.safetensors", threads=1)
    assert repr(resumed) == repr(trainer)
    assert resumed.optimizer == trainer.optimizer == "sgd momentum=0.5 dampening=0.0 nesterov=false weight_decay=0.0"
    assert resumed.schedule == trainer.schedule == "step rate=0.5 every=2 factor=0.5 warmup=0"
    assert resumed.clip == trainer.clip == "norm bound=1.0"
    assert resumed.groups == trainer.groups and resumed.groups[0]["frozen"]
    assert resumed.learning_rate == 0.5
    resumed.clip = None
    assert resumed.clip is None and trainer.clip is not None


def test_checkpointing_changes_no_bit() -> None:
    x, target, digests = noise(70, 2, 3), noise(70, 2, 2), set()
    for kept in ["everything", "segments steps=32", "square-root"]:
        trainer = lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1), 2, checkpointing=kept)
        for _ in range(3):
            trainer.step(x, target)
        digests.add(digest(trainer))
    assert len(digests) == 1


def test_the_learning_rate_of_a_step() -> None:
    x, target = noise(7, 2, 3), noise(7, 2, 4)
    model = lstm.LSTM(3, 5, seed=1, threads=1)
    a, b, c = (lstm.Trainer(model, 4, schedule=f"constant rate={rate}") for rate in ["0.125", "9", "9"])
    before = digest(a)
    assert b.step(x, target, learning_rate=0.0)["learning_rate"] == 0.0 and digest(b) == before
    b = lstm.Trainer(model, 4, schedule="constant rate=9")
    for _ in range(3):
        expected = a.step(x, target)
        assert b.step(x, target, learning_rate=0.125) == expected
        c.accumulate(x, target)
        assert c.apply(learning_rate=0.125) == expected
    assert digest(a) == digest(b) == digest(c) != before
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="^learning_rate: expected a finite number of at least 0"):
            b.step(x, target, learning_rate=bad)
        with pytest.raises(ValueError, match="^learning_rate: expected a finite number of at least 0"):
            b.apply(learning_rate=bad)


@pytest.mark.parametrize("last", [False, True])
def test_accumulated_parts_are_a_batch(last: bool) -> None:
    x, target = noise(7, 6, 3), noise(*((6, 2) if last else (7, 6, 2)), seed=1)
    model = lstm.LSTM(3, 5, seed=1, threads=1)
    whole, parts = (lstm.Trainer(model, 2, optimizer="sgd", schedule="constant rate=1") for _ in range(2))
    before, expected = digest(whole), whole.step(x, target, last=last)
    loss = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        part = target[rows] if last else target[:, rows]
        loss += parts.accumulate(x[:, rows], part, last=last, share=(rows.stop - rows.start) / 6)
        assert digest(parts) == before and parts.steps == 0
    report = parts.apply()
    assert report["step"] == 1 and report["loss"] == loss == pytest.approx(expected["loss"], rel=1e-6)
    assert report["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)
    for name, value in parameters(parts).items():
        np.testing.assert_allclose(value, parameters(whole)[name], atol=1e-6, err_msg=name)


def test_accumulated_gradients_are_not_lost(tmp_path: Path) -> None:
    x, target = noise(7, 2, 3), noise(7, 2, 5)
    trainer, other = (lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1)) for _ in range(2))
    with pytest.raises(ValueError, match="^expected at least one call of accumulate before apply, got none$"):
        trainer.apply()
    trainer.accumulate(x, target)

    def replace() -> None:
        trainer.clip = None

    for call in (lambda: trainer.step(x, target), lambda: trainer.save(tmp_path / "run"), replace):
        with pytest.raises(ValueError, match="expected no accumulated gradients, .*; call apply first, or discard_accumulated"):
            call()
    with pytest.raises(ValueError, match="share: expected a positive finite number, got 0"):
        trainer.accumulate(x, target, share=0)
    assert trainer.apply() == other.step(x, target)
    trainer.accumulate(x, target)
    trainer.discard_accumulated()
    assert trainer.step(x, target) == other.step(x, target)
    # An update that is not finite discards them.
    trainer.accumulate(x, target)
    with pytest.raises(ValueError, match="training step 3: the new value of .* is"):
        trainer.apply(learning_rate=3e38)
    assert trainer.step(x, target) == other.step(x, target)


@pytest.mark.parametrize("batch_first", [False, True])
def test_states_continue_the_sequences(batch_first: bool) -> None:
    x, target = noise(2, 2, 3), noise(2, 2, 5)
    model = lstm.LSTM(3, 5, num_layers=2, batch_first=batch_first, seed=1, threads=1)
    trainer = lstm.Trainer(model)
    state: Any = trainer.state
    assert state is None
    hx = noise(2, 2, 5), noise(2, 2, 5, seed=1)
    y, (h, c) = trainer.model(x, hx)
    np.testing.assert_array_equal(trainer.predict(x, hx=hx), y)
    state = trainer.state
    assert state is None, "predict keeps none"
    loss = trainer.step(x, target, hx=hx)["loss"]
    assert loss == pytest.approx(np.square(y - target).mean(), rel=1e-5)
    state = trainer.state
    np.testing.assert_array_equal(state[0], h)
    np.testing.assert_array_equal(state[1], c)
    _, (h, c) = trainer.model(x, state)
    trainer.accumulate(x, target, hx=state)
    trainer.apply()
    np.testing.assert_array_equal(trainer.state[0], h)
    np.testing.assert_array_equal(trainer.state[1], c)
    with pytest.raises(ValueError, match=r"hx: h: expected the shape \[2, 2, 5\], got \[2, 1, 5\]"):
        trainer.step(x, target, hx=(hx[0][:, :1], hx[1]))


def test_a_model_trains_as_the_lstm_in_it(tmp_path: Path) -> None:
    x, target = noise(3, 7, 3), noise(3, 7, 2)
    lstm_trainer = lstm.Trainer(lstm.LSTM(3, 5, num_layers=2, batch_first=True, seed=1, threads=1), 2, clip="norm bound=1")
    lstm_trainer.save(tmp_path / "run.safetensors")
    model = lstm.Model.open(tmp_path / "run.safetensors", threads=1)
    digest_before = model.digest()
    trainer = lstm.Trainer(model, clip="norm bound=1")

    def check(ours: Any, expected: Any) -> None:
        assert ours == pytest.approx(expected, rel=1e-5)

    for lengths in (None, [7, 0, 2], [1, 2, 3]):
        check(trainer.step(x, target, lengths=lengths), lstm_trainer.step(x, target, lengths=lengths))
    np.testing.assert_allclose(trainer.predict(x), lstm_trainer.predict(x), atol=1e-5)
    np.testing.assert_array_equal(trainer.model.run(x), trainer.predict(x))
    assert model.digest() == digest_before != trainer.model.digest(), "the caller's model is not changed"
    assert trainer.head is None and repr(trainer).startswith("Trainer(Model(3 -> 2, ")
    for half in (slice(0, 1), slice(1, 3)):
        share = (half.stop - half.start) / 3
        got = trainer.accumulate(x[half], target[half], share=share)
        check(got, lstm_trainer.accumulate(x[half], target[half], share=share))
    check(trainer.apply(), lstm_trainer.apply())
    state, expected = trainer.state, lstm_trainer.state
    assert len(state) == 1
    for ours, other in zip(state[0], expected, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)
    step = trainer.step(x[1:], target[1:], hx=state, learning_rate=0.5)
    check(step, lstm_trainer.step(x[1:], target[1:], hx=expected, learning_rate=0.5))
    y = trainer.predict(x[1:], hx=state)
    np.testing.assert_allclose(y, lstm_trainer.predict(x[1:], hx=expected), atol=1e-4)
    assert np.abs(y - trainer.predict(x[1:])).max() > 1e-3, "the states have an effect"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_of_tokens(tmp_path: Path, threads: int) -> None:
    model = lstm.Model.open(MODELS / "keras-embedding.keras", threads=threads)
    assert model.reads_tokens and model.returns_last_step
    tokens, classes = np.arange(24).reshape(4, 6) % 5, np.array([0, 1, 2, 1])
    trainer = lstm.Trainer(model, optimizer="adamw", schedule="constant rate=0.05", seed=2)
    losses = [trainer.step(tokens, classes, loss="cross_entropy")["loss"] for _ in range(3)]
    trainer.save(tmp_path / "run.safetensors")
    resumed = lstm.Trainer.resume(tmp_path / "run.safetensors", threads=1)
    for _ in range(3):
        report = trainer.step(tokens, classes, loss="cross_entropy", lengths=[6, 1, 2, 3])
        assert resumed.step(tokens, classes, loss="cross_entropy", lengths=[6, 1, 2, 3]) == report
    assert trainer.predict(tokens).shape == (4, model.output_size) and losses[2] < losses[0]
    trained = resumed.model
    trained.save(tmp_path / "model.safetensors")
    opened = lstm.Model.open(tmp_path / "model.safetensors", threads=1)
    assert opened.digest() == trainer.model.digest() and opened.layers == model.layers
    np.testing.assert_array_equal(opened.run(tokens), trainer.model.run(tokens))
    with pytest.raises(ValueError, match="continue the run with lstm.Trainer.resume, and save its model with trainer.model.save"):
        lstm.Model.open(tmp_path / "run.safetensors")


def test_a_run_of_a_model_has_the_batch_first(tmp_path: Path) -> None:
    trainer: lstm.Trainer[lstm.Model] = lstm.Trainer(lstm.Model.open(MODELS / "nam.nam", threads=1))
    trainer.save(tmp_path / "run.safetensors")
    x = noise(2, 7, 1)
    report = trainer.step(x, x, lengths=[7, 3])
    for given in (None, True):
        resumed = lstm.Trainer.resume(tmp_path / "run.safetensors", batch_first=given)
        assert resumed.step(x, x, lengths=[7, 3]) == report
    with pytest.raises(ValueError, match="batch_first: expected True or None for a model"):
        lstm.Trainer.resume(tmp_path / "run.safetensors", batch_first=False)
    # Without the future import, annotations are evaluated.
    assert typing.get_origin(lstm.Trainer[lstm.Model]) is lstm.Trainer


def test_errors_of_models(tmp_path: Path) -> None:
    model = lstm.Model.open(MODELS / "nam.nam", threads=1)
    x = noise(2, 7, 1)
    with pytest.raises(ValueError, match="^x: expected at least one time step"):
        lstm.Trainer(model).step(x[:, :0], x[:, :0])
    with pytest.raises(ValueError, match="output_size: expected None for an lstm.Model"):
        lstm.Trainer(model, 2)
    with pytest.raises(ValueError, match="precision: training needs f32 weights, got int8"):
        lstm.Trainer(lstm.Model.open(MODELS / "nam.nam", precision="int8"))
    trainer = lstm.Trainer(model)
    for call in (trainer.step, trainer.accumulate):
        with pytest.raises(ValueError, match="last: expected False, because the layers of the model give an output for each"):
            call(x, x, last=True)
        with pytest.raises(ValueError, match=r"x: expected the shape \(batch, steps, 1\), got 2 dimensions; x\[None\] adds the"):
            call(x[0], x)
        with pytest.raises(ValueError, match="hx: expected 1, one for each LSTM, got 0"):
            call(x, x, hx=[])
        with pytest.raises(TypeError, match=r"hx: expected a list of pairs \(h, c\), one for each LSTM, got 3"):
            call(x, x, hx=3)
    with pytest.raises(ValueError, match="groups: no parameter has a name that matches .*; the parameters are lstm.weight_ih_l0"):
        trainer.groups = [{"parameters": "rec.*"}]
    (tmp_path / "fixed.onnx").write_bytes(onnx_file.write(3, ["Y"], lengths=np.array([5, 3], np.int32)))
    fixed = lstm.Model.open(tmp_path / "fixed.onnx")
    with pytest.raises(ValueError, match="^Trainer: the file fixes the lengths, the number or the initial states"):
        lstm.Trainer(fixed)
    with pytest.raises(ValueError, match="^save: the file fixes the lengths, the number or the initial states"):
        fixed.save(tmp_path / "model.safetensors")


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
        with pytest.raises(RuntimeError, match="a step of this trainer is running"):
            trainer.clip = "norm bound=1"
        return 1.0, y

    assert trainer.step(x, loss=loss)["step"] == trainer.steps == 1
