"""With LSTM_REQUIRE_TORCH, a test that is skipped because PyTorch is missing fails."""

from __future__ import annotations

import importlib.util
import os

import pytest


def pytest_configure() -> None:
    if os.environ.get("LSTM_REQUIRE_TORCH") and importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("LSTM_REQUIRE_TORCH is set, but PyTorch is not installed")
