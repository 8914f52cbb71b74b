"""Layers rebuilt from observable parts, so that prepare and convert reach inside (``torch.nn.quantizable`` by name)."""

import zeropoint.nn.quantized  # noqa: F401  first: its recurrent layers are subclasses of those here
from zeropoint.nn.quantizable.activation import MultiheadAttention
from zeropoint.nn.quantizable.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "MultiheadAttention", "RNNCell"]
