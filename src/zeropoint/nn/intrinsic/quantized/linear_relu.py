"""Linear with its ReLU (or ReLU6) in the epilogue."""

from __future__ import annotations

from zeropoint.nn.quantized.modules.linear import Linear

__all__ = ["LinearReLU"]


class LinearReLU(Linear):
    """Quantized Linear and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True

    def _get_name(self) -> str:
        return "QuantizedLinearReLU"
