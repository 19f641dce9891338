"""LSTM inference, streaming and training, with the same bits on every device and for any number of threads.

`LSTM` has the arguments and the call of `torch.nn.LSTM`, and reads and returns NumPy arrays, tensors of PyTorch and other
arrays. `lstm.torch` has modules for use inside PyTorch; it needs PyTorch.
"""

from typing import TYPE_CHECKING

from ._lstm import LSTM, Loss, Model, Stream, Trainer, __version__, devices, digest

__all__ = ["LSTM", "Loss", "Model", "Stream", "Trainer", "__version__", "devices", "digest"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports `lstm.torch` at its first use, because it needs PyTorch."""
        if name != "torch":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return importlib.import_module(".torch", __name__)
