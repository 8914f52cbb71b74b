"""Functions as modules, so that each call site can have an observer and qparams of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import backend, ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput, observed_qparams, quantized_input
from zeropoint.tensor import ObservedTensor, QTensor, mark, pointwise, quantize_per_tensor, requantize, unmark

__all__ = ["FXFloatFunctional", "FloatFunctional", "QFunctional"]


class FloatFunctional(nn.Module):
    """``add``, ``mul``, ``cat`` ... of float tensors, observed. Becomes :class:`QFunctional` in ``convert``."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process: nn.Module = nn.Identity()

    def _observed(self, result: torch.Tensor) -> torch.Tensor:
        observer = self.activation_post_process
        observed: torch.Tensor = observer(result)
        return observed if isinstance(observer, nn.Identity) else mark(observed, observer)

    @staticmethod
    def _like(x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return mark(result) if isinstance(x, ObservedTensor) else result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("FloatFunctional is not intended to use the 'forward'. Please use the underlying operation")

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._observed(torch.add(unmark(x), unmark(y)))

    def add_scalar(self, x: torch.Tensor, y: float) -> torch.Tensor:
        """Not observed: the quantized form shifts or reuses x's qparams."""
        return self._like(x, torch.add(unmark(x), y))

    def mul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._observed(torch.mul(unmark(x), unmark(y)))

    def mul_scalar(self, x: torch.Tensor, y: float) -> torch.Tensor:
        """Not observed: the quantized form scales x's qparams."""
        return self._like(x, torch.mul(unmark(x), y))

    def cat(self, x: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        return self._observed(torch.cat(unmark(x), dim=dim))

    def add_relu(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._observed(torch.nn.functional.relu(torch.add(unmark(x), unmark(y))))

    def matmul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._observed(torch.matmul(unmark(x), unmark(y)))


class FXFloatFunctional(nn.Module):
    """The functions alone, without observers, for traced models (torch's name)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("FloatFunctional is not intended to use the 'forward'. Please use the underlying operation")

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.add(x, y)

    def add_scalar(self, x: torch.Tensor, y: float) -> torch.Tensor:
        return torch.add(x, y)

    def mul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, y)

    def mul_scalar(self, x: torch.Tensor, y: float) -> torch.Tensor:
        return torch.mul(x, y)

    def cat(self, x: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        return torch.cat(x, dim=dim)

    def add_relu(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.add(x, y))

    def matmul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, y)


class QFunctional(QuantizedOutput):
    """The same operations on quantized tensors, to ``scale`` and ``zero_point``."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process: nn.Module = nn.Identity()

    def _get_name(self) -> str:
        return "QFunctional"

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Functional is not intended to use the 'forward'. Please use the underlying operation")

    def _binary(self, operator: Any, x: QTensor, y: QTensor, relu: bool = False) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        if not (isinstance(x, QTensor) and isinstance(y, QTensor)):
            name = "mul" if operator is ops.mul else "add_relu" if relu else "add"
            function = torch.mul if operator is ops.mul else torch.add
            return self._in_float(name, (lambda p, q: torch.relu(function(p, q))) if relu else function, x, y)
        x, y = quantized_input(self, x), quantized_input(self, y)
        a, b = x._data, y._data
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        dtype = self._output_dtype
        low = self._zero_point if relu else dtype.quant_min
        data = operator(
            a,
            x._scale,
            x._zero_point,
            b,
            y._scale,
            y._zero_point,
            self._scale,
            self._zero_point,
            low,
            dtype.quant_max,
            dtype.storage,
        )
        return self.activation_post_process(QTensor(data, self._scale, self._zero_point, dtype))

    def add(self, x: QTensor, y: QTensor) -> QTensor:
        return self._binary(ops.add, x, y)

    def add_relu(self, x: QTensor, y: QTensor) -> QTensor:
        return self._binary(ops.add, x, y, relu=True)

    def mul(self, x: QTensor, y: QTensor) -> QTensor:
        return self._binary(ops.mul, x, y)

    def add_scalar(self, x: QTensor, y: float) -> QTensor:
        """Moves the zero point by ``round(y / scale)`` while it stays in range, else widens the grid.

        Formula of ``torch.ops.quantized.add_scalar``, so that no calibration is needed.
        """
        x = quantized_input(self, x)
        dtype, scale = x._qdtype, x._scale
        shifted = x._zero_point - int(torch.round(torch.tensor(y / scale)))
        if dtype.quant_min <= shifted <= dtype.quant_max:
            return self.activation_post_process(QTensor(x._data, scale, shifted, dtype))
        low, high = dtype.quant_min, dtype.quant_max
        if shifted < low:  # reals run up to scale * (high - shifted)
            new_scale, zero_point = scale * (high - shifted) / (high - low), low
        else:
            new_scale, zero_point = scale * (shifted - low) / (high - low), high
        moved = pointwise(x, lambda value: value + y, new_scale, zero_point, cache=False)
        return self.activation_post_process(moved)

    def mul_scalar(self, x: QTensor, y: float) -> QTensor:
        """Multiplies the scale; a negative factor mirrors the integers, 0 gives zeros."""
        x = quantized_input(self, x)
        dtype = x._qdtype
        if y > 0:
            result = QTensor(x._data, x._scale * y, x._zero_point, dtype)
        elif y == 0:
            result = QTensor(torch.zeros_like(x._data), 1.0, 0, dtype)
        else:
            mirrored = (dtype.quant_min + dtype.quant_max - x._data.to(torch.int16)).to(x._data.dtype)
            result = QTensor(mirrored, x._scale * -y, dtype.quant_min + dtype.quant_max - x._zero_point, dtype)
        return self.activation_post_process(result)

    def cat(self, x: list[QTensor], dim: int = 0) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        if not x:
            raise QuantizationError("QFunctional.cat: expected a non-empty list of quantized tensors")
        parts = [
            requantize(quantized_input(self, t), self._scale, self._zero_point, self._output_dtype)._data for t in x
        ]
        return self.activation_post_process(
            QTensor(torch.cat(parts, dim), self._scale, self._zero_point, self._output_dtype)
        )

    def matmul(self, x: QTensor, y: QTensor) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        if not (isinstance(x, QTensor) and isinstance(y, QTensor)):
            return self._in_float("matmul", torch.matmul, x, y)
        x, y = quantized_input(self, x), quantized_input(self, y)
        dtype = self._output_dtype
        data = ops.matmul(
            x._data, x._scale, x._zero_point, y._data, y._scale, y._zero_point, self._scale, self._zero_point,
            dtype.quant_min, dtype.quant_max, dtype.storage,
        )  # fmt: skip
        return self.activation_post_process(QTensor(data, self._scale, self._zero_point, dtype))

    def _in_float(self, name: str, function: Any, *tensors: Any) -> QTensor:
        """With a float operand there is no integer form: computed in float, counted, and quantized."""
        backend.count_fallback(f"QFunctional.{name}")
        value = function(*(t.dequantize() if isinstance(t, QTensor) else t for t in tensors))
        return self.activation_post_process(
            quantize_per_tensor(value, self._scale, self._zero_point, self._output_dtype)
        )

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> QFunctional:
        """From a prepared FloatFunctional."""
        if not isinstance(mod, FloatFunctional):
            raise QuantizationError("QFunctional.from_float expects an instance of FloatFunctional")
        result = cls()
        if isinstance(mod.activation_post_process, nn.Identity):
            result.set_output(1.0, 0, result._output_dtype, False)
        else:
            result.set_output(*observed_qparams(mod))
        return result
