"""Convolution with its ReLU (or ReLU6) in the epilogue: a clamp of the integers, at no cost."""

from __future__ import annotations

from zeropoint.nn.quantized.modules.conv import Conv2d

__all__ = ["ConvReLU2d"]


class ConvReLU2d(Conv2d):
    """Quantized Conv2d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True

    def _get_name(self) -> str:
        return "QuantizedConvReLU2d"
