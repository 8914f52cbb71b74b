"""Modules that train with fake-quantized weights (``torch.nn.qat`` by name)."""

from zeropoint.nn.qat import dynamic
from zeropoint.nn.qat.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from zeropoint.nn.qat.embedding_ops import Embedding, EmbeddingBag
from zeropoint.nn.qat.linear import Linear

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "Linear",
    "dynamic",
]
