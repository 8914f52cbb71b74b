"""The quantized modules, one file per family."""

from zeropoint.nn.quantized.modules.activation import (
    ELU,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    Pointwise,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
    Tanh,
)
from zeropoint.nn.quantized.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from zeropoint.nn.quantized.modules.call_site import CallSite, CallSites
from zeropoint.nn.quantized.modules.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from zeropoint.nn.quantized.modules.dropout import Dropout
from zeropoint.nn.quantized.modules.embedding_ops import Embedding, EmbeddingBag
from zeropoint.nn.quantized.modules.functional_modules import FloatFunctional, FXFloatFunctional, QFunctional
from zeropoint.nn.quantized.modules.linear import Linear
from zeropoint.nn.quantized.modules.normalization import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
from zeropoint.nn.quantized.modules.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from zeropoint.nn.quantized.modules.quantize import DeQuantize, Quantize

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CallSite",
    "CallSites",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeQuantize",
    "Dropout",
    "ELU",
    "Embedding",
    "EmbeddingBag",
    "FXFloatFunctional",
    "FloatFunctional",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "PReLU",
    "Pointwise",
    "QFunctional",
    "Quantize",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
