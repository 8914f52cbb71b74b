"""Batch norms with their ReLU (or ReLU6) in the epilogue."""

from __future__ import annotations

from zeropoint.nn.quantized.modules.batchnorm import BatchNorm2d, BatchNorm3d

__all__ = ["BNReLU2d", "BNReLU3d"]


class BNReLU2d(BatchNorm2d):
    """Quantized BatchNorm2d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True


class BNReLU3d(BatchNorm3d):
    """Quantized BatchNorm3d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True
