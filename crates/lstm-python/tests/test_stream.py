"""Streams of an LSTM: the bits of whole sequences, output arrays, states, errors."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lstm


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def model(**options: Any) -> lstm.LSTM:
    return lstm.LSTM(3, 5, num_layers=2, seed=1, threads=1, batch_first=True, **options)


@pytest.mark.parametrize("precision", ["f32", "int8", "int12"])
@pytest.mark.parametrize("batch", [1, 4])
def test_steps_are_those_of_the_sequence(precision: str, batch: int) -> None:
    net, x = model(precision=precision), noise(batch, 7, 3)
    y, (h, c) = net(x)
    stream = net.stream(batch)
    out = np.empty((batch, 5), np.float32)
    for t in range(7):
        if t % 2:
            assert stream.step(x[:, t], out) is out
            np.testing.assert_array_equal(out, y[:, t])
        else:
            np.testing.assert_array_equal(stream.step(np.ascontiguousarray(x[:, t])), y[:, t])
    for state, expected in zip(stream.state, (h, c), strict=True):
        np.testing.assert_array_equal(state, expected)
    stream.reset()
    np.testing.assert_array_equal(stream.run(x), y)


@pytest.mark.parametrize("first", [False, True])
def test_the_layout_is_that_of_the_lstm(first: bool) -> None:
    net, x = lstm.LSTM(3, 5, seed=1, threads=1, batch_first=first), noise(2, 2, 3)
    y = net.stream(2).run(x)
    np.testing.assert_array_equal(y, net(x)[0])
    assert y.flags.c_contiguous


def test_one_sequence_needs_no_batch_axis() -> None:
    stream, x = model().stream(), noise(7, 3)
    y, _ = model()(x)
    for t in range(7):
        step = stream.step(x[t])
        assert step.shape == (5,)
        np.testing.assert_array_equal(step, y[t])
    stream.reset()
    np.testing.assert_array_equal(stream.run(x), y)


def test_large_steps_release_the_gil_and_agree() -> None:
    net, x = lstm.LSTM(64, 512, seed=1, threads=1), noise(3, 64)
    y, _ = net(x)
    stream = net.stream()
    np.testing.assert_array_equal(np.stack([stream.step(row) for row in x]), y)


def test_state_can_be_set() -> None:
    net, x = model(), noise(2, 7, 3)
    stream = net.stream(2)
    stream.run(x[:, :4])
    saved = stream.state
    first = stream.run(x[:, 4:])
    stream.state = saved
    np.testing.assert_array_equal(stream.run(x[:, 4:]), first)
    with pytest.raises(ValueError, match="state: h: expected"):
        stream.state = (saved[0][:, :1], saved[1])
    with pytest.raises(TypeError, match=r"expected the tuple \(h, c\)"):
        stream.state = [1]


def test_out_must_not_overlap_x() -> None:
    memory = np.zeros(16, np.float32)
    stream = lstm.LSTM(4, 4, seed=1).stream()
    for x, out in [
        (memory[:4], memory[:4]),
        (memory[:4], memory[3:7]),
        (memory[3:7][::-1], memory[:4]),
        (np.frombuffer(memory.data, np.float32)[:4], memory[2:6]),
    ]:
        with pytest.raises(ValueError, match="out: it overlaps x"):
            stream.step(x, out)
    stream.step(memory[:4], memory[4:8])
    stream.step(memory[:8:2], np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("x", "out", "error", "part"),
    [
        (np.zeros(3), None, TypeError, "x: expected float32, got float64"),
        (np.zeros(4, np.float32), None, ValueError, r"x: expected the shape \[1, 3\] or \[3\], got \[4\]"),
        (np.zeros((2, 3), np.float32), None, ValueError, r"got \[2, 3\]"),
        (np.zeros(3, np.float32), np.zeros(4, np.float32), ValueError, r"out: expected the shape \[1, 5\] or \[5\]"),
        (np.zeros(3, np.float32), np.zeros(5), TypeError, "out: expected float32, got float64"),
        (np.zeros(3, np.float32), np.zeros(10, np.float32)[::2], ValueError, "out: expected a row-major array"),
        (np.zeros(3, np.float32), np.broadcast_to(np.float32(0), (5,)), ValueError, "out"),
        (np.zeros(3, np.float32), [0.0] * 5, TypeError, "out: expected an array"),
        ([0.0] * 3, None, TypeError, "x: expected an array"),
    ],
)
def test_wrong_arguments(x: Any, out: Any, error: type[Exception], part: str) -> None:
    stream = model().stream()
    before = stream.state
    with pytest.raises(error, match=part):
        stream.step(x, out)
    for a, b in zip(before, stream.state, strict=True):
        np.testing.assert_array_equal(a, b)


def test_read_only_output() -> None:
    out = np.zeros(5, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: the array is read-only"):
        model().stream().step(np.zeros(3, np.float32), out)


def test_unusual_inputs() -> None:
    x, expected = noise(3), model().stream().step(noise(3))
    record = np.zeros(3, np.dtype([("a", np.int8), ("x", np.float32)]))
    record["x"] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    for variant in (record["x"], readonly, np.repeat(x, 2)[::2], x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(model().stream().step(variant), expected)


def test_streams_of_one_direction_only() -> None:
    with pytest.raises(ValueError, match="direction"):
        lstm.LSTM(3, 5, bidirectional=True).stream()
    with pytest.raises(ValueError, match="batch"):
        model().stream(0)
    assert repr(model().stream(2)) == "Stream(batch=2, 3 -> 5)"


def test_one_thread_at_a_time() -> None:
    stream = lstm.LSTM(64, 1024, threads=1).stream()
    x, errors = np.zeros((400, 64), np.float32), []
    started = threading.Event()

    def run() -> None:
        started.set()
        stream.run(x)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    while thread.is_alive():
        try:
            stream.step(x[0])
        except RuntimeError as error:
            errors.append(str(error))
    assert errors and set(errors) == {
        "another thread runs this stream; make one stream for each thread, with the method `stream`"
    }
    assert stream.run(x).shape == (400, 1024)
