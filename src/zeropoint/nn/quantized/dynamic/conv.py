"""Dynamically quantized convolutions: float in, float out, the input quantized to its own range."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.dynamic.linear import quantize_by_range
from zeropoint.nn.quantized.modules import conv as static
from zeropoint.nn.quantized.modules.weighted import quantize_weight, weight_observer
from zeropoint.tensor import QTensor

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _DynamicConv(static._ConvBase):
    """The int8 weight of the static convolution; scale and zero point of the input are chosen at run time."""

    def _get_name(self) -> str:
        return f"DynamicQuantized{type(self).__name__}"

    def forward(self, input: Any, reduce_range: bool = False) -> torch.Tensor:  # type: ignore[override]
        x = input.dequantize() if isinstance(input, QTensor) else input
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise QuantizationError(f"{self._qualified_name or type(self).__name__}: the input must be a float tensor")
        if x.dim() == self._dims + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        self._check_input(x)
        value = x.detach().float()
        if self._explicit_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            value = F.pad(value, self._explicit_padding, mode)
        data, scale, zero_point = quantize_by_range(value, reduce_range)
        out = self._convolution(
            data, self._int_weight, self.pack(), self._w_scale, self._w_zero_point, self._bias, self.kernel_size, scale,
            zero_point, 1.0, 0, 0, 0, torch.float32,
        )  # fmt: skip
        return out.to(x.dtype)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """From a float convolution with a qconfig; needs no calibration."""
        conv: Any = mod
        weight = quantize_weight(conv.weight, weight_observer(mod, mod, cls._weight_axis))
        result = cls._like(conv, conv.bias is not None)
        result.set_weight_bias(weight, conv.bias)
        return result


class Conv1d(_DynamicConv, static.Conv1d):
    """Dynamically quantized ``torch.nn.Conv1d``."""


class Conv2d(_DynamicConv, static.Conv2d):
    """Dynamically quantized ``torch.nn.Conv2d``."""


class Conv3d(_DynamicConv, static.Conv3d):
    """Dynamically quantized ``torch.nn.Conv3d``."""


class ConvTranspose1d(_DynamicConv, static.ConvTranspose1d):  # type: ignore[misc]
    """Dynamically quantized ``torch.nn.ConvTranspose1d``."""


class ConvTranspose2d(_DynamicConv, static.ConvTranspose2d):  # type: ignore[misc]
    """Dynamically quantized ``torch.nn.ConvTranspose2d``."""


class ConvTranspose3d(_DynamicConv, static.ConvTranspose3d):  # type: ignore[misc]
    """Dynamically quantized ``torch.nn.ConvTranspose3d``."""
