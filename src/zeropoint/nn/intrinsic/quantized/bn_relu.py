"""Batch norm with its ReLU (or ReLU6) in the epilogue."""

from __future__ import annotations

from zeropoint.nn.quantized.modules.batchnorm import BatchNorm2d

__all__ = ["BNReLU2d"]


class BNReLU2d(BatchNorm2d):
    """Quantized BatchNorm2d and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True

    def _get_name(self) -> str:
        return "QuantizedBNReLU2d"
