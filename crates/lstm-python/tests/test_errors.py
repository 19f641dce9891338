"""The texts of errors are in the terms of Python: they name arguments, and what they advise works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm

DATA = Path(__file__).resolve().parents[3] / "tests/data"
NAM = DATA / "models/nam.nam"
A: Any = None
# Names of Rust, and what its values look like.
RUST = re.compile(r"::|\boption \w+:|Some\(|None\b.*lengths|IGNORE_INDEX|the crate `|<class ")


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def net(*args: Any, **options: Any) -> lstm.LSTM:
    return lstm.LSTM(*(args or (3, 5)), **{"seed": 1, "threads": 1, **options})


def trainer(**options: Any) -> lstm.Trainer:
    return lstm.Trainer(net(), 2, **options)


def model(**options: Any) -> lstm.Model:
    return lstm.Model.open(NAM, **{"threads": 1, **options})


def set_state(stream: lstm.Stream, state: Any) -> None:
    stream.state = state


Case = tuple[Callable[[], Any], type[Exception], str]
CASES: list[Case] = [
    (lambda: net(num_layers=0), ValueError, "num_layers: expected 1 to "),
    (lambda: net(num_layers=2.0), TypeError, "num_layers: expected an integer, got 2.0 (float)"),
    (lambda: net(-3, 5), ValueError, "input_size: expected a number from 0 to 2^64 - 1, got -3"),
    (lambda: net(3, 10**7), ValueError, "hidden_size: expected at most "),
    (lambda: net(dropout=2.0), ValueError, "dropout: expected 0 <= p < 1, got 2"),
    (lambda: net(proj_size=5), ValueError, "proj_size: expected less than hidden_size 5, got 5"),
    (lambda: net(cell="gru"), ValueError, "cell: expected one of fused, "),
    (lambda: net(clip=0.0), ValueError, "clip: expected a positive finite bound, got 0"),
    (lambda: net(precision="int4"), ValueError, "precision: expected one of f32, int8, int12, got `int4`"),
    (lambda: net(device="gpu"), ValueError, "device: expected one of cpu, "),
    (lambda: net(threads=0), ValueError, "threads: expected 1 to 1024, got 0"),
    (lambda: net()(zeros(7, 2, 3), lengths=[8, 1]), ValueError, "lengths[0]: expected at most 7 steps, got 8"),
    (lambda: net()(zeros(7, 2, 3), zeros(1, 2, 5)), TypeError, "hx: expected the tuple (h0, c0), got the type ndarray"),
    (lambda: net().stream(0), ValueError, "batch: expected at least 1, got 0"),
    (lambda: net(bidirectional=True).stream(), ValueError, "bidirectional: only forward layers can be streamed"),
    (lambda: net().stream(2).run(zeros(7, 3, 3)), ValueError, "x: expected the shape (steps, 2, 3), got the shape [7, 3, 3]"),
    (lambda: net().stream(2).run(zeros(7, 3)), ValueError, "x: expected the shape (steps, 2, 3), got the shape [7, 3]"),
    (
        lambda: net(batch_first=True).stream().run(zeros(2, 7, 3)),
        ValueError,
        "x: expected the shape (1, steps, 3) or (steps, 3), got the shape [2, 7, 3]",
    ),
    (lambda: net().load_state_dict(A), TypeError, "state_dict: expected a dict of arrays by name, got None"),
    (
        lambda: net(precision="int8").load_state_dict({**net().state_dict(), "bias_ih_l0": zeros(20) / 0}),
        ValueError,
        "bias_ih_l0: expected finite numbers for the precision int8, got NaN",
    ),
    (lambda: lstm.Model.open(A), TypeError, "path: expected a str or an os.PathLike, got None"),
    (lambda: lstm.Model.open("absent.onnx"), FileNotFoundError, "absent.onnx: "),
    (lambda: model(name=3), TypeError, "name: expected a str, or a list of str, got 3 (int)"),
    (lambda: model(set=3), TypeError, "set: expected a dict of numbers by name, got 3 (int)"),
    (lambda: model(set={"sr": "a"}), TypeError, "set: sr: expected a number, got 'a' (str)"),
    (lambda: model(set={3: 1}), TypeError, "set: a name: expected a str, got 3 (int)"),
    (lambda: model(clip=1.0), ValueError, "omit the arguments name, layers, set, cell, clip and coupled"),
    (lambda: model().run(zeros(7, 1), states=3), TypeError, "states: expected a list of pairs (h, c), one for each LSTM"),
    (lambda: model().run(zeros(2, 7, 1), lengths=[8, 1]), ValueError, "lengths[0]: expected at most 7 steps, got 8"),
    (lambda: set_state(model().stream(), None), TypeError, "state: expected a list of pairs (h, c), one for each LSTM"),
    (lambda: set_state(model().stream(), []), ValueError, "state: expected 1, one for each LSTM, got 0"),
    (lambda: trainer(optimizer="lion"), ValueError, "optimizer `lion`: expected sgd, adam or adamw, got `lion`"),
    (lambda: trainer(optimizer="adam beta1=2"), ValueError, "optimizer `adam beta1=2`: beta1: expected 0 <= beta < 1, got 2"),
    (lambda: trainer(optimizer="sgd nesterov=True"), ValueError, "nesterov: expected true or false, got `True`"),
    (lambda: trainer(schedule=0.001), TypeError, "schedule: expected a str, such as 'constant rate=0.001', got 0.001 (float)"),
    (lambda: trainer(schedule="constant rate=-1"), ValueError, "schedule `constant rate=-1`: rate: expected a finite number"),
    (lambda: trainer(clip=1.0), TypeError, "clip: expected a str, such as 'norm bound=1', got 1.0 (float)"),
    (lambda: trainer(clip="norm bound=0"), ValueError, "clip: expected a positive finite bound, got 0"),
    (lambda: trainer(checkpointing=64), TypeError, "checkpointing: expected a str, such as 'square-root', got 64 (int)"),
    (lambda: trainer(groups={"parameters": "*"}), TypeError, "groups: expected a list of dicts, got "),
    (lambda: trainer(groups=[{}]), TypeError, "groups[0]: parameters: expected a pattern of names, such as 'head.*', got none"),
    (lambda: trainer(groups=[{"parameters": "*", "lr": 1}]), ValueError, "groups[0]: lr: there is no such option; expected "),
    (lambda: trainer(groups=[{3: 3}]), TypeError, "groups[0]: a key: expected a str, got 3 (int)"),
    (lambda: trainer(groups=[{"parameters": "x"}]), ValueError, "groups: no parameter has a name that matches the pattern `x`"),
    (
        lambda: trainer(groups=[{"parameters": "*", "rate_factor": -1}]),
        ValueError,
        "groups[0]: rate_factor: expected a finite number of at least 0, got -1",
    ),
    (lambda: lstm.Trainer(A), TypeError, "model: expected an lstm.LSTM or an lstm.Model, got None"),
    (
        lambda: lstm.Trainer(net(precision="int8")),
        ValueError,
        "precision: training needs f32 weights, got int8; train in f32 and quantize the result",
    ),
    (
        lambda: trainer().step(zeros(7, 2, 3), zeros(7, 2, 2), lengths=[0, 0]),
        ValueError,
        "x: expected at least one time step of one sequence, got [7, 2, 3], lengths [0, 0]",
    ),
    (
        lambda: trainer().step(zeros(0, 2, 3), zeros(0, 2, 2)),
        ValueError,
        "x: expected at least one time step of one sequence, got [0, 2, 3]",
    ),
    (lambda: lstm.Trainer.resume(NAM), ValueError, "not a safetensors file"),
    (lambda: lstm.Trainer.resume("absent"), FileNotFoundError, "absent: "),
]


@pytest.mark.parametrize("case", CASES, ids=[text[:40] for _, _, text in CASES])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_error(case: Case) -> None:
    call, error, part = case
    with pytest.raises(error, match=re.escape(part)) as raised:
        call()
    assert not RUST.search(str(raised.value)), raised.value


def test_a_model_that_is_no_run() -> None:
    path = DATA / "models/cells.safetensors"
    with pytest.raises(ValueError, match="not a checkpoint: .*; read a model .* with lstm.Model.open") as raised:
        lstm.Trainer.resume(path)
    assert not RUST.search(str(raised.value)), raised.value
    lstm.Model.open(path)


def test_a_stream_of_a_bidirectional_model() -> None:
    model = lstm.Model.open(DATA / "models/tf2onnx-keras-bi-batch1.onnx", threads=1)
    with pytest.raises(ValueError, match="use Model.run") as raised:
        model.stream()
    assert not RUST.search(str(raised.value)), raised.value


@pytest.mark.parametrize("name", [device["name"] for device in lstm.devices() if not device["available"]])
def test_devices_that_are_not_available(name: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        net(device=name, threads=None)
    assert not RUST.search(str(raised.value)), raised.value


def test_what_the_texts_advise_works() -> None:
    x = np.zeros((7, 2, 3))
    with pytest.raises(TypeError, match=r"convert it with .astype\(np.float32\)$"):
        net()(x)
    net()(x.astype(np.float32))
    masked = np.ma.masked_array(zeros(7, 2, 3), True)
    with pytest.raises(TypeError, match=r"fill it first, with .filled\(0\), or give lengths"):
        net()(masked)
    net()(masked.filled(0))
    with pytest.raises(ValueError, match=r"x\[:, None\] adds the axis of the batch"):
        trainer().step(zeros(7, 3), zeros(7, 2))
    trainer().step(zeros(7, 3)[:, None], zeros(7, 2)[:, None])
