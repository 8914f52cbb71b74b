"""Fused modules for quantization-aware training (``torch.nn.intrinsic.qat`` by name)."""

from zeropoint.nn.intrinsic.qat.conv_fused import (
    ConvBn1d,
    ConvBn2d,
    ConvBn3d,
    ConvBnReLU1d,
    ConvBnReLU2d,
    ConvBnReLU3d,
    ConvReLU1d,
    ConvReLU2d,
    ConvReLU3d,
    _ConvBnNd,
    freeze_bn_stats,
    update_bn_stats,
)
from zeropoint.nn.intrinsic.qat.linear_fused import LinearBn1d
from zeropoint.nn.intrinsic.qat.linear_relu import LinearReLU

__all__ = [
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "LinearBn1d",
    "LinearReLU",
    "_ConvBnNd",
    "freeze_bn_stats",
    "update_bn_stats",
]
