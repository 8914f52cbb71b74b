"""Activations on quantized tensors. The bounded ones keep their input's qparams, the others have a table."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.weighted import FloatInput, QuantizedOutput, observed_qparams, quantized_input
from zeropoint.tensor import QTensor, make_table, traced

__all__ = [
    "ELU",
    "Hardsigmoid",
    "Hardswish",
    "LeakyReLU",
    "PReLU",
    "Pointwise",
    "ReLU",
    "ReLU6",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


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
        if traced(x._data):  # torch.compile and torch.export: nothing may be kept
            table = make_table(self._function, *key)
        else:
            if key != self._table_key:
                self._table_key, self._table = key, make_table(self._function, *key)
            table = self._table
        return QTensor(ops.lookup(x._data, table), self._scale, self._zero_point, self._output_dtype)

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


class Tanh(_TableActivation):
    """``tanh(x)``; torch left it to the tensor."""

    def __init__(self, output_scale: float, output_zero_point: int) -> None:
        super().__init__(output_scale, output_zero_point)

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Tanh:
        return cls(1.0, 0)._observed(mod)


class Hardsigmoid(_TableActivation):
    """``relu6(x + 3) / 6``; torch left it to the tensor."""

    def __init__(self, output_scale: float, output_zero_point: int) -> None:
        super().__init__(output_scale, output_zero_point)

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return F.hardsigmoid(x)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Hardsigmoid:
        return cls(1.0, 0)._observed(mod)


class Pointwise(_TableActivation):
    """Any elementwise float module (GELU, SiLU, Mish, Softplus ...) as a table of its values.

    The float module is kept as ``function``.
    """

    def __init__(self, function: nn.Module, scale: float, zero_point: int) -> None:
        super().__init__(scale, zero_point)
        self.function = function

    def _function(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.clone())

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Pointwise:
        """From a prepared elementwise module; it is copied without its observer."""
        function = type(mod).__new__(type(mod))
        nn.Module.__init__(function)
        hidden = {"activation_post_process", "qconfig", "training", *function.__dict__}
        function.__dict__.update({k: copy.copy(v) for k, v in mod.__dict__.items() if k not in hidden})
        return cls(function, 1.0, 0)._observed(mod)


def _slope(x: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.where(x >= 0, x, slope * x)


class PReLU(QuantizedOutput):
    """``x`` above 0, ``weight[c] * x`` below, with one weight or one per channel (dimension 1)."""

    weight: torch.Tensor

    def __init__(self, output_scale: float, output_zero_point: int, num_parameters: int = 1) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.scale, self.zero_point = output_scale, output_zero_point
        self.register_buffer("weight", torch.full((num_parameters,), 0.25))
        self._table_key: tuple[Any, ...] = ()
        self._tables = torch.empty(0)

    def set_weight(self, w: torch.Tensor) -> None:
        """The slopes, float or quantized."""
        self.weight = (w.dequantize() if isinstance(w, QTensor) else w.detach().float()).reshape(-1).clone()

    def forward(self, input: QTensor) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        x = quantized_input(self, input)
        channels = x._data.shape[1] if x._data.dim() > 1 else 1
        if self.num_parameters not in (1, channels):
            raise QuantizationError(
                f"{self._qualified_name or 'PReLU'}: {self.num_parameters} slopes do not fit {channels} channels"
            )
        qparams = (x._scale, x._zero_point, x._qdtype, self._scale, self._zero_point, self._output_dtype)
        tables = self._tables_for(x, qparams)
        if self.num_parameters == 1:
            return QTensor(ops.lookup(x._data, tables), self._scale, self._zero_point, self._output_dtype)
        shape = [1, -1] + [1] * (x._data.dim() - 2)
        offsets = (torch.arange(channels) * 256).reshape(shape)
        data = tables[(x._data.to(torch.int64) & 0xFF) + offsets]
        return QTensor(data, self._scale, self._zero_point, self._output_dtype)

    def _tables_for(self, x: QTensor, qparams: tuple[Any, ...]) -> torch.Tensor:
        """One table per slope, one after the other; kept for as long as slopes and qparams stay."""
        make = lambda slopes: torch.cat([make_table(partial(_slope, slope=s), *qparams) for s in slopes])
        if traced(x._data):  # numbers that depend on data have no place in a graph
            return make(self.weight.double().unbind())
        key = (qparams, id(self.weight), self.weight._version)
        if key != self._table_key:
            self._table_key, self._tables = key, make(self.weight.tolist())
        return self._tables

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table_key": ()}  # ids mean nothing elsewhere

    def _get_name(self) -> str:
        return "QuantizedPReLU"

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}, scale={self.scale}, zero_point={self.zero_point}"

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> PReLU:
        """From a prepared float PReLU."""
        result = cls(1.0, 0, mod.num_parameters)
        result.set_weight(mod.weight)
        result.set_output(*observed_qparams(mod))
        return result

    @classmethod
    def from_reference(cls, mod: Any, scale: float, zero_point: int) -> PReLU:
        result = cls(float(scale), int(zero_point), mod.num_parameters)
        result.set_weight(mod.weight)
        return result


class Softmax(QuantizedOutput):
    """``torch.nn.Softmax`` on int8 (ops.softmax). Replaces ``torch.ao.nn.quantized.Softmax``."""

    def __init__(self, dim: int | None = None, scale: float = 1.0, zero_point: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.scale, self.zero_point = scale, zero_point

    def forward(self, input: QTensor) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        x = quantized_input(self, input)
        dim = self.dim if self.dim is not None else (0 if x._data.dim() in (0, 1, 3) else 1)  # as torch.nn.Softmax
        dtype = self._output_dtype
        data = ops.softmax(
            x._data, dim, x._scale, self._scale, self._zero_point, dtype.quant_min, dtype.quant_max, dtype.storage
        )
        return QTensor(data, self._scale, self._zero_point, dtype)

    def _get_name(self) -> str:
        return "QuantizedSoftmax"

    def extra_repr(self) -> str:
        return f"dim={self.dim}, scale={self.scale}, zero_point={self.zero_point}"

    @staticmethod
    def from_float(mod: Any, use_precomputed_fake_quant: bool = False) -> Softmax:
        """From a prepared float Softmax."""
        result = Softmax(mod.dim)
        result.set_output(*observed_qparams(mod))
        return result

    @classmethod
    def from_reference(cls, mod: Any, scale: float, zero_point: int) -> Softmax:
        return cls(mod.dim, float(scale), int(zero_point))
