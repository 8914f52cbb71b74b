"""Reference modules: float modules that carry the qparams of their weight and compute on the dequantized weight.

What a lowering pass (or a look at the numerics) wants to see: float arithmetic on exactly the values that int8
weights stand for (``torch.ao.nn.quantized.reference`` by name).
"""

from zeropoint.nn.quantized.reference.modules import (
    GRU,
    LSTM,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    EmbeddingBag,
    GRUCell,
    Linear,
    LSTMCell,
    RNNCell,
)

__all__ = [
    "GRU",
    "LSTM",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "RNNCell",
]
