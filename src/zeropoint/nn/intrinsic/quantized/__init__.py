"""Fused int8 modules (``torch.nn.intrinsic.quantized`` by name)."""

from zeropoint.nn.intrinsic.quantized import dynamic
from zeropoint.nn.intrinsic.quantized.bn_relu import BNReLU2d, BNReLU3d
from zeropoint.nn.intrinsic.quantized.conv_add import ConvAdd2d, ConvAddReLU2d
from zeropoint.nn.intrinsic.quantized.conv_relu import ConvReLU1d, ConvReLU2d, ConvReLU3d
from zeropoint.nn.intrinsic.quantized.linear_relu import LinearLeakyReLU, LinearReLU, LinearTanh

__all__ = [
    "BNReLU2d",
    "BNReLU3d",
    "ConvAdd2d",
    "ConvAddReLU2d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "LinearLeakyReLU",
    "LinearReLU",
    "LinearTanh",
    "dynamic",
]
