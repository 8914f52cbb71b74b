"""Fused modules for quantization-aware training (``torch.nn.intrinsic.qat`` by name)."""

from zeropoint.nn.intrinsic.qat.conv_fused import ConvBn2d, ConvBnReLU2d, ConvReLU2d, freeze_bn_stats, update_bn_stats
from zeropoint.nn.intrinsic.qat.linear_relu import LinearReLU

__all__ = ["ConvBn2d", "ConvBnReLU2d", "ConvReLU2d", "LinearReLU", "freeze_bn_stats", "update_bn_stats"]
