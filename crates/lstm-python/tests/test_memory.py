"""Arguments that are larger than any memory, as broadcasting makes them: exceptions, not the end of the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstm

MODELS = Path(__file__).resolve().parents[3] / "tests/data/models"
HUGE = 1 << 40


def huge(*shape: int, dtype: Any = np.float32) -> Any:
    return np.broadcast_to(dtype(0), shape)


def test_states() -> None:
    model, x = lstm.LSTM(3, 5, seed=1, threads=1), np.zeros((7, 1, 3), np.float32)
    right = np.zeros((1, 1, 5), np.float32)
    for hx in [(huge(1, HUGE, 5), right), (right, huge(1, HUGE, 5)), (huge(HUGE, 1, 5), huge(HUGE, 1, 5))]:
        with pytest.raises(ValueError, match=r"hx: [hc]: expected the shape \[1, 1, 5\]"):
            model(x, hx)
        with pytest.raises(ValueError, match=r"state: [hc]: expected the shape \[1, 1, 5\]"):
            model.stream().state = hx
    with pytest.raises(ValueError, match=r"hx: h: expected the shape \[1, 1, 5\]"):
        model(x[:, 0], (huge(HUGE, 5), huge(HUGE, 5)))
    with pytest.raises(MemoryError):
        model(huge(7, HUGE, 3), (huge(1, HUGE, 5), huge(1, HUGE, 5)))


def test_states_of_a_model() -> None:
    model, x = lstm.Model.open(MODELS / "nam.nam", threads=1), np.zeros((7, 1), np.float32)
    ((h, c),) = model.stream().state
    for state in [(huge(1, HUGE, 5), c), (h, huge(HUGE, 1, 5))]:
        with pytest.raises(ValueError, match=r"states\[0\]: [hc]: expected the shape"):
            model.run(x, states=[state])
        with pytest.raises(ValueError, match=r"state\[0\]: [hc]: expected the shape"):
            model.stream().state = [state]
    with pytest.raises(ValueError, match="states: expected 1, one for each LSTM, got 0"):
        model.run(x, states=[])

    def endless() -> Any:
        while True:
            yield h, c

    with pytest.raises(ValueError, match="states: expected 1, one for each LSTM, got more"):
        model.run(x, states=endless())


def test_lengths() -> None:
    x = np.zeros((7, 2, 3), np.float32)
    lengths = huge(1 << 28, dtype=np.int64)
    model = lstm.LSTM(3, 5, seed=1, threads=1)
    with pytest.raises(ValueError, match=r"lengths: expected the shape \[2\], one length for each sequence"):
        model(x, lengths=lengths)
    with pytest.raises(ValueError, match=r"lengths: expected the shape \[2\], one length for each sequence"):
        lstm.Trainer(model).step(x, x, lengths=lengths)
    with pytest.raises(ValueError, match=r"lengths: expected the shape \[1\], one length for each sequence"):
        lstm.Model.open(MODELS / "nam.nam", threads=1).run(x[:, 0, :1], lengths=lengths)


@pytest.mark.parametrize("last", [False, True])
def test_targets(last: bool) -> None:
    x = np.zeros((7, 2, 3), np.float32)
    trainer = lstm.Trainer(lstm.LSTM(3, 5, seed=1, threads=1))
    for loss in ("mse", "bce"):
        with pytest.raises(ValueError, match=r"target: expected the shape \[(7, )?2, 5\]"):
            trainer.step(x, huge(HUGE, 2, 5), loss=loss, last=last)
    with pytest.raises(ValueError, match=r"target: expected the shape \[(7, )?2\]"):
        trainer.step(x, huge(HUGE, 2, dtype=np.int64), loss="cross_entropy", last=last)
    shape = (HUGE, 5) if last else (HUGE, 2, 5)
    with pytest.raises(ValueError, match=r"gradient of the loss: expected the shape \[(7, )?2, 5\]"):
        trainer.step(x, loss=lambda y: (0.0, huge(*shape)), last=last)


def test_parameters() -> None:
    model = lstm.LSTM(3, 5, seed=1, threads=1)
    weights = model.state_dict() | {"weight_hh_l0": huge(HUGE, 5)}
    with pytest.raises(ValueError, match=r"wrong shape: weight_hh_l0 \(expected \[20, 5\]"):
        model.load_state_dict(weights)


def test_gradients() -> None:
    model, x = lstm.LSTM(3, 5, seed=1, threads=1), np.zeros((7, 2, 3), np.float32)
    *_, tape = lstm._lstm.run_module(model, list(model.state_dict().values()), x, None, None, None, True)
    assert tape is not None
    for gradients in [(huge(HUGE, 2, 5), None, None), (None, huge(1, HUGE, 5), None), (None, None, huge(1, HUGE, 5))]:
        with pytest.raises(ValueError, match="d[yhc]: expected the shape"):
            tape.backward(*gradients, True)
