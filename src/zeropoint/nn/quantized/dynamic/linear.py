"""Dynamically quantized Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint._reference.grouped import check_group_size
from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn import qat as nnqat
from zeropoint.nn.quantized.modules.linear import Linear as StaticLinear
from zeropoint.nn.quantized.modules.weighted import quantize_weight, weight_observer
from zeropoint.ops.convolution import Packed
from zeropoint.tensor import QTensor, choose_qparams, is_qdtype, qint8

__all__ = ["Linear", "float_input", "float_weight_dtype", "quantize_by_range"]


def quantize_by_range(x: torch.Tensor, reduce_range: bool = False) -> tuple[torch.Tensor, float, int]:
    """float32 ``x`` as uint8 over its own range together with 0, with scale and zero point. NaN is real 0.

    Raises:
        QuantizationError: infinite values, which leave no range.
    """
    known = torch.nan_to_num(x, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    low, high = torch.aminmax(known) if x.numel() else (torch.zeros(()), torch.zeros(()))
    scale, zero_point = choose_qparams(low, high, quant_min=0, quant_max=127 if reduce_range else 255)
    return ops.quantize_per_tensor(x, float(scale), int(zero_point), torch.uint8), float(scale), int(zero_point)


def float_input(module: nn.Module, x: Any, features: int) -> torch.Tensor:
    """``x`` as float32 [..., features]; a quantized tensor is dequantized."""
    if isinstance(x, QTensor):
        x = x.dequantize()
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.shape[-1:] != (features,):
        name = getattr(module, "_qualified_name", "") or type(module).__name__
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise QuantizationError(f"{name}: the input must be float [..., {features}], got {given}")
    return x.detach().float()


def float_weight_dtype(qconfig: Any) -> torch.dtype | None:
    """torch.float16 or bfloat16 if the qconfig keeps weights in that, None if it quantizes them."""
    dtype = getattr(qconfig.weight(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and not is_qdtype(dtype) and dtype.is_floating_point else None


class Linear(StaticLinear):
    """Float in, float out; the input is quantized to its own range, the product is int8.

    With ``per_row`` (an attribute, default False as in torch) each row of ``in_features`` values, a token, has
    a range of its own, which loses far less where tokens differ; ``quantize_dynamic(..., per_row=True)`` sets
    it. NaN in the input is real 0 in the product; infinities are an error, since they leave no range. bfloat16
    and float16 inputs give outputs of their dtype.

    With ``group_size`` (None, or a multiple of 32 up to 256) each row has a symmetric range per group of inputs, so
    that an outlier costs its group alone; ``quantize_dynamic(..., group_size=128)`` sets it.

    Weights of dtype float16 (``quantize_dynamic(dtype=torch.float16)``) stay float16 and the product is float32.

    Shape: [..., in_features] to [..., out_features]. Replaces ``torch.ao.nn.quantized.dynamic.Linear``; the
    activations use all 8 bits, since these kernels do not saturate.
    """

    per_row = False
    _group_size: int | None = None
    _grouped: tuple[torch.Tensor, torch.Tensor | None]  # scales and zero points as the grouped product takes them
    _float_weight: torch.Tensor | None = None

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: Any = qint8) -> None:
        half = dtype if isinstance(dtype, torch.dtype) and dtype == torch.float16 else None
        super().__init__(in_features, out_features, bias_, qint8 if half else dtype)
        if half:
            self.set_weight_bias(torch.zeros(out_features, in_features, dtype=half), self._bias)

    def _get_name(self) -> str:
        return "DynamicQuantizedLinear"

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        if self._float_weight is not None:
            return f"{text}, dtype={self._float_weight.dtype}"
        text += f", dtype={qint8}, qscheme={self.weight().qscheme()}"
        if self._group_size is not None:
            return f"{text}, group_size={self._group_size}"
        return text + ", per_row=True" if self.per_row else text

    def set_weight_bias(self, w: Any, b: torch.Tensor | None) -> None:
        """A qint8 weight, or a float16 one to keep as it is."""
        if isinstance(w, QTensor) or not isinstance(w, torch.Tensor) or w.dtype != torch.float16:
            self._float_weight = None
            super().set_weight_bias(w, b)
            return
        if tuple(w.shape) != self._weight_shape():
            raise QuantizationError(
                f"Linear.set_weight_bias: the weight must have shape {self._weight_shape()}, got {tuple(w.shape)}"
            )
        self._float_weight = w.detach().contiguous()
        self._bias = None if b is None else b.detach().float().contiguous()

    def _kernel_form(
        self, data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # One scale per column: the operator would spread a single one on every call.
        return super()._kernel_form(data, scale.expand(self.out_features), zero_point)

    def weight(self) -> Any:
        return self._weight if self._float_weight is None else self._float_weight

    @property
    def group_size(self) -> int | None:
        return self._group_size

    @group_size.setter
    def group_size(self, value: int | None) -> None:
        if value is not None:
            check_group_size("Linear", value)
        self._group_size, self._packed = value, None

    def pack(self) -> Packed:
        return torch.empty(0) if self._float_weight is not None else super().pack()

    def _pack_weight(self) -> Packed:
        if self._group_size is None:
            return super()._pack_weight()
        groups, zero_point = -(-self.in_features // self._group_size), self._w_zero_point
        if zero_point is not None:
            zero_point = zero_point.expand(self.out_features).float().unsqueeze(1).repeat(1, groups)
        self._grouped = (self._w_scale.unsqueeze(1).contiguous(), zero_point)
        return ops.linear_grouped_pack(self._int_weight, *self._grouped, self._group_size, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        # The usual case in as few steps as can be: a call costs about as much as a small product.
        usual = type(x) is torch.Tensor and x.dtype == torch.float32 and x.shape[-1:] == (self.in_features,)
        value = x if usual else float_input(self, x, self.in_features)
        if value.requires_grad:
            value = value.detach()
        if self._float_weight is not None:
            out = torch.nn.functional.linear(value, self._float_weight.float(), self._bias)
            out = torch.relu(out) if self._relu else out
        elif self._group_size is not None:
            packed = self.pack()
            out = ops.linear_grouped(
                value, self._int_weight, packed, *self._grouped, self._bias, self._group_size, 8, 8, self._relu
            )
        else:
            out = ops.linear_dynamic(
                value, self._int_weight, self.pack(), self._w_scale, self._w_zero_point, self._bias, self.per_row, False,
                self._relu,
            )  # fmt: skip
        return out if usual or isinstance(x, QTensor) else out.to(x.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._float_weight is not None:
            destination[prefix + "weight"] = self._float_weight
            for name in ("weight_scale", "weight_zero_point"):
                destination.pop(prefix + name)
        if self.per_row:
            destination[prefix + "per_row"] = torch.tensor(True)
        if self._group_size is not None:
            destination[prefix + "group_size"] = torch.tensor(self._group_size)

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), "per_row", "group_size")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.per_row = bool(state_dict.get(prefix + "per_row", False))
        group_size = state_dict.get(prefix + "group_size")
        self.group_size = None if group_size is None else int(group_size)
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, torch.Tensor) and not isinstance(weight, QTensor) and weight.dtype == torch.float16:
            self.set_weight_bias(weight, state_dict.get(prefix + "bias"))
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Linear:
        """From a float Linear (or LinearReLU, or QAT Linear) with a qconfig; needs no calibration."""
        if not isinstance(mod, (nn.Linear, nni.LinearReLU, nnqat.Linear)):
            raise QuantizationError(
                f"dynamic Linear.from_float works for Linear and LinearReLU, got {type(mod).__name__}"
            )
        linear: Any = mod[0] if isinstance(mod, nni.LinearReLU) else mod
        result = cls(linear.in_features, linear.out_features, linear.bias is not None)
        qconfig: Any = getattr(mod, "qconfig", None) or getattr(linear, "qconfig", None)
        half = None if qconfig is None or hasattr(linear, "weight_fake_quant") else float_weight_dtype(qconfig)
        if half is not None:
            result.set_weight_bias(linear.weight.detach().to(half), linear.bias)
        else:
            result.set_weight_bias(quantize_weight(linear.weight, weight_observer(mod, linear)), linear.bias)
        result._relu = result._relu or isinstance(mod, nni.LinearReLU)
        return result

    @classmethod
    def from_reference(cls, ref_qlinear: Any, *unused: Any) -> Linear:
        """From a reference Linear."""
        result = cls(ref_qlinear.in_features, ref_qlinear.out_features, ref_qlinear.bias is not None)
        result.set_weight_bias(ref_qlinear.get_quantized_weight(), ref_qlinear.bias)
        return result
