"""Convolutions with their ReLU (or ReLU6) in the epilogue: a clamp of the integers, at no cost."""

from __future__ import annotations

from zeropoint.nn.quantized.modules.conv import Conv1d, Conv2d, Conv3d

__all__ = ["ConvReLU1d", "ConvReLU2d", "ConvReLU3d"]


class ConvReLU1d(Conv1d):
    """Quantized Conv1d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True


class ConvReLU2d(Conv2d):
    """Quantized Conv2d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True


class ConvReLU3d(Conv3d):
    """Quantized Conv3d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True
