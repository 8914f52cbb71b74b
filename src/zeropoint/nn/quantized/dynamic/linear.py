"""Dynamically quantized Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn import qat as nnqat
from zeropoint.nn.quantized.modules.linear import Linear as StaticLinear
from zeropoint.nn.quantized.modules.weighted import quantize_weight, weight_observer
from zeropoint.tensor import QTensor, choose_qparams, qint8

__all__ = ["Linear"]


class Linear(StaticLinear):
    """Float in, float out; the input is quantized per tensor to its own range, the product is int8.

    NaN in the input is real 0 in the product, as everywhere; infinities are an error, since they leave no
    range. bfloat16 and float16 inputs give outputs of their dtype.

    Shape: [..., in_features] to [..., out_features]. Replaces ``torch.ao.nn.quantized.dynamic.Linear``; the
    activations use all 8 bits, since these kernels do not saturate.
    """

    def __init__(self, in_features: int, out_features: int, bias_: bool = True, dtype: Any = qint8) -> None:
        super().__init__(in_features, out_features, bias_, dtype)

    def _get_name(self) -> str:
        return "DynamicQuantizedLinear"

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, dtype={qint8}, "
            f"qscheme={self.weight().qscheme()}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        packed = self._ready()
        if isinstance(x, QTensor):
            x = x.dequantize()
        if not x.is_floating_point() or x.shape[-1:] != (self.in_features,):
            name = self._qualified_name or "Linear"
            raise QuantizationError(
                f"{name}: the input must be float [..., {self.in_features}], got {x.dtype} {tuple(x.shape)}"
            )
        value = x.detach().float()
        if value.numel() == 0:
            return x.new_zeros((*x.shape[:-1], self.out_features))
        low, high = torch.aminmax(torch.nan_to_num(value, nan=0.0, posinf=torch.inf, neginf=-torch.inf))
        scale_tensor, zero_point_tensor = choose_qparams(low, high)
        scale, zero_point = float(scale_tensor), int(zero_point_tensor)
        q = ops.quantize_per_tensor(value, scale, zero_point, torch.uint8)
        out = ops.linear(
            q, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, scale, zero_point, 1.0, 0, 0, 0,
            torch.float32,
        )  # fmt: skip
        if self._relu:
            out = torch.relu(out)
        return out.to(x.dtype)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Linear:
        """From a float Linear (or LinearReLU, or QAT Linear) with a qconfig; needs no calibration."""
        if not isinstance(mod, (nn.Linear, nni.LinearReLU, nnqat.Linear)):
            raise QuantizationError(
                f"dynamic Linear.from_float works for Linear and LinearReLU, got {type(mod).__name__}"
            )
        linear: Any = mod[0] if isinstance(mod, nni.LinearReLU) else mod
        result = cls(linear.in_features, linear.out_features, linear.bias is not None)
        result.set_weight_bias(quantize_weight(linear.weight, weight_observer(mod, linear)), linear.bias)
        result._relu = isinstance(mod, nni.LinearReLU)
        return result
