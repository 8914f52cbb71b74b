"""Dynamically quantized Linear and ReLU."""

from __future__ import annotations

from typing import Any

from zeropoint.nn.quantized.dynamic.linear import Linear
from zeropoint.tensor import qint8

__all__ = ["LinearReLU"]


class LinearReLU(Linear):
    """:class:`~zeropoint.nn.quantized.dynamic.Linear`, then ReLU."""

    _relu = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = qint8) -> None:
        super().__init__(in_features, out_features, bias, dtype)

    def _get_name(self) -> str:
        return "DynamicQuantizedLinearReLU"
