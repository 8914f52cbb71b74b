"""Convolution with a residual addition in its epilogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.nn.quantized.modules.conv import Conv2d
from zeropoint.nn.quantized.modules.weighted import quantized_input
from zeropoint.tensor import QTensor

__all__ = ["ConvAdd2d", "ConvAddReLU2d"]


class ConvAdd2d(Conv2d):
    """``conv(x) + extra`` to ``scale`` and ``zero_point``, in one pass.

    The sum is taken as real numbers are: the convolution keeps its accumulator's resolution in float32,
    the residual its own scale, and both are rounded once.
    """

    def forward(self, input: Any, extra_input: Any) -> QTensor:  # type: ignore[override]
        packed = self._ready()
        x, extra = quantized_input(self, input), quantized_input(self, extra_input)
        self._check_input(x._data)
        value = self._convolution(
            x._data, self._int_weight, packed, self._w_scale, self._w_zero_point, self._bias, self.kernel_size, x._scale,
            x._zero_point, 1.0, 0, 0, 0, torch.float32,
        )  # fmt: skip
        total = value + extra.dequantize()
        if self._relu:
            total = torch.relu(total)
        dtype = self._output_dtype
        return self._output(ops.quantize_per_tensor(total, self._scale, self._zero_point, dtype.storage))

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared ConvAdd2d (or ConvAddReLU2d)."""
        return super().from_float(mod, use_precomputed_fake_quant)


class ConvAddReLU2d(ConvAdd2d):
    """``relu(conv(x) + extra)``."""

    _relu = True
