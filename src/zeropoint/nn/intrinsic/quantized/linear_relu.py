"""Linear with its activation in the epilogue: a clamp for ReLU and ReLU6, a table for the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint import ops
from zeropoint.nn.quantized.modules.linear import Linear
from zeropoint.nn.quantized.modules.weighted import quantized_input
from zeropoint.tensor import QTensor, qint8

__all__ = ["LinearLeakyReLU", "LinearReLU", "LinearTanh"]


class LinearReLU(Linear):
    """Quantized Linear and ReLU; ``relu_max`` is 6.0 where a ReLU6 was fused, else None."""

    _relu = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = qint8) -> None:
        super().__init__(in_features, out_features, bias, dtype)


class _LinearActivation(Linear):
    """Linear in float32 from its exact accumulator, then the activation, rounded once."""

    def _activation(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: Any) -> QTensor:
        packed = self._ready()
        x = quantized_input(self, x)
        value = ops.linear(
            x._data, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, x._scale, x._zero_point,
            1.0, 0, 0, 0, torch.float32,
        )  # fmt: skip
        value = self._activation(value)
        return self._output(ops.quantize_per_tensor(value, self._scale, self._zero_point, self._output_dtype.storage))


class LinearLeakyReLU(_LinearActivation):
    """Quantized Linear and LeakyReLU."""

    def __init__(
        self, in_features: int, out_features: int, negative_slope: float, bias: bool = True, dtype: Any = qint8
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.negative_slope = negative_slope

    def _activation(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, self.negative_slope)

    @classmethod
    def _like(cls, linear: Any, mod: nn.Module) -> Any:
        return cls(linear.in_features, linear.out_features, mod[1].negative_slope, linear.bias is not None)  # type: ignore[index]


class LinearTanh(_LinearActivation):
    """Quantized Linear and Tanh."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = qint8) -> None:
        super().__init__(in_features, out_features, bias, dtype)

    def _activation(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)
