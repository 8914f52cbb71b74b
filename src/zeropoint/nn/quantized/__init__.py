"""Int8 modules (``torch.nn.quantized`` by name)."""

from zeropoint.nn.quantized import dynamic, functional, modules, reference
from zeropoint.nn.quantized.modules import *  # noqa: F403
from zeropoint.nn.quantized.modules.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, MultiheadAttention, RNNCell

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "MultiheadAttention",
    "RNN",
    "RNNCell",
    "dynamic",
    "functional",
    "reference",
]
__all__ += modules.__all__
