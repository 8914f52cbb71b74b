"""Int8 modules (``torch.nn.quantized`` by name)."""

from zeropoint.nn.quantized import dynamic, functional
from zeropoint.nn.quantized.modules.activation import ELU, Hardswish, LeakyReLU, ReLU, ReLU6, Sigmoid
from zeropoint.nn.quantized.modules.batchnorm import BatchNorm2d
from zeropoint.nn.quantized.modules.conv import Conv2d
from zeropoint.nn.quantized.modules.functional_modules import FloatFunctional, QFunctional
from zeropoint.nn.quantized.modules.linear import Linear
from zeropoint.nn.quantized.modules.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from zeropoint.nn.quantized.modules.quantize import DeQuantize, Quantize

__all__ = [
    "ELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "DeQuantize",
    "FloatFunctional",
    "Hardswish",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "QFunctional",
    "Quantize",
    "ReLU",
    "ReLU6",
    "Sigmoid",
    "dynamic",
    "functional",
]
