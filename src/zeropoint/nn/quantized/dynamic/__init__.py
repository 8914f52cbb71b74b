"""int8 weights, float activations quantized as they come (``torch.nn.quantized.dynamic`` by name)."""

from zeropoint.nn.quantized.dynamic.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from zeropoint.nn.quantized.dynamic.linear import Linear
from zeropoint.nn.quantized.dynamic.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from zeropoint.nn.quantized.dynamic.weight_only import WeightOnlyLinear

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "RNNCell",
    "WeightOnlyLinear",
]
