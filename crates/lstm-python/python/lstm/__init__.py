"""LSTM inference, streaming and training, with the same bits on every device and for any number of threads.

`LSTM` has the arguments and the call of `torch.nn.LSTM`, and reads and returns NumPy arrays, tensors of PyTorch and other
arrays. `lstm.torch` has modules for use inside PyTorch; it needs PyTorch.
"""

from ._lstm import LSTM, Model, Stream, Trainer, __version__, devices, digest

__all__ = ["LSTM", "Model", "Stream", "Trainer", "__version__", "devices", "digest"]
