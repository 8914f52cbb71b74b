"""Fused int8 modules (``torch.nn.intrinsic.quantized`` by name)."""

from zeropoint.nn.intrinsic.quantized.bn_relu import BNReLU2d
from zeropoint.nn.intrinsic.quantized.conv_relu import ConvReLU2d
from zeropoint.nn.intrinsic.quantized.linear_relu import LinearReLU

__all__ = ["BNReLU2d", "ConvReLU2d", "LinearReLU"]
