"""Activations on quantized tensors. The bounded ones keep their input's qparams, the others have a table."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint import ops
from zeropoint.nn.quantized.modules.weighted import FloatInput, QuantizedOutput, observed_qparams, quantized_input
from zeropoint.tensor import QTensor, make_table

__all__ = ["ELU", "Hardswish", "LeakyReLU", "ReLU", "ReLU6", "Sigmoid"]


class ReLU(FloatInput):
    """``max(x, 0)`` on the integers: ``max(q, zero_point)``."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def _get_name(self) -> str:
        return "QuantizedReLU"

    def forward(self, input: QTensor) -> torch.Tensor:
        return F.relu(quantized_input(self, input), self.inplace)

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> ReLU:
        return ReLU(mod.inplace)  # type: ignore[arg-type]


class ReLU6(ReLU):
    """``min(max(x, 0), 6)`` on the integers."""

    def _get_name(self) -> str:
        return "QuantizedReLU6"

    def forward(self, input: QTensor) -> torch.Tensor:
        return F.relu6(quantized_input(self, input), self.inplace)

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> ReLU6:
        return ReLU6(mod.inplace)  # type: ignore[arg-type]


class _TableActivation(QuantizedOutput):
    """An activation computed once for all 256 inputs in float64 and looked up."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self._table_key: tuple[Any, ...] = ()
        self._table = torch.empty(0)

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, input: QTensor) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        x = quantized_input(self, input)
        key = (x._scale, x._zero_point, x._qdtype, self._scale, self._zero_point, self._output_dtype)
        if key != self._table_key:
            self._table_key, self._table = key, make_table(self._function, *key)
        return QTensor(ops.lookup(x._data, self._table), self._scale, self._zero_point, self._output_dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def _observed(self, mod: nn.Module) -> Any:
        self.set_output(*observed_qparams(mod))
        return self

    @classmethod
    def from_reference(cls, mod: nn.Module, scale: float, zero_point: int) -> Any:
        return cls(float(scale), int(zero_point))


class Hardswish(_TableActivation):
    """``x * relu6(x + 3) / 6``."""

    def __init__(self, scale: float, zero_point: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(scale, zero_point)

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return F.hardswish(x)

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Hardswish:
        return Hardswish(1.0, 0)._observed(mod)


class ELU(_TableActivation):
    """``x`` above 0, ``alpha * (exp(x) - 1)`` below."""

    def __init__(self, scale: float, zero_point: int, alpha: float = 1.0) -> None:
        super().__init__(scale, zero_point)
        self.alpha = alpha

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(x, self.alpha)

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> ELU:
        return ELU(1.0, 0, mod.alpha)._observed(mod)  # type: ignore[arg-type]


class LeakyReLU(_TableActivation):
    """``x`` above 0, ``negative_slope * x`` below."""

    def __init__(
        self,
        scale: float,
        zero_point: int,
        negative_slope: float = 0.01,
        inplace: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(scale, zero_point)
        self.negative_slope, self.inplace = negative_slope, inplace

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, self.negative_slope)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> LeakyReLU:
        return cls(1.0, 0, mod.negative_slope)._observed(mod)  # type: ignore[arg-type]


class Sigmoid(_TableActivation):
    """``1 / (1 + exp(-x))``."""

    def __init__(self, output_scale: float, output_zero_point: int) -> None:
        super().__init__(output_scale, output_zero_point)

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Sigmoid:
        return cls(1.0, 0)._observed(mod)
