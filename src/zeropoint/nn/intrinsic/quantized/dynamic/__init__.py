"""Fused modules of dynamic quantization (``torch.nn.intrinsic.quantized.dynamic`` by name)."""

from zeropoint.nn.intrinsic.quantized.dynamic.linear_relu import LinearReLU

__all__ = ["LinearReLU"]
