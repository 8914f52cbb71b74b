"""Pooling that insists on quantized input; torch.nn's own pooling modules take it as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn.quantized.modules.weighted import quantized_input

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d"]


class MaxPool2d(nn.MaxPool2d):
    """Maximum over windows of the integers."""

    def _get_name(self) -> str:
        return "QuantizedMaxPool2d"

    def forward(self, input: Any) -> torch.Tensor:
        return super().forward(quantized_input(self, input))

    @staticmethod
    def from_float(mod: nn.MaxPool2d, use_precomputed_fake_quant: bool = False) -> MaxPool2d:
        return MaxPool2d(mod.kernel_size, mod.stride, mod.padding, mod.dilation, ceil_mode=mod.ceil_mode)


class AvgPool2d(nn.AvgPool2d):
    """Mean over windows, rounded half to even; keeps the input's qparams."""

    def _get_name(self) -> str:
        return "QuantizedAvgPool2d"

    def forward(self, input: Any) -> torch.Tensor:
        return super().forward(quantized_input(self, input))

    @staticmethod
    def from_float(mod: nn.AvgPool2d, use_precomputed_fake_quant: bool = False) -> AvgPool2d:
        return AvgPool2d(
            mod.kernel_size, mod.stride, mod.padding, mod.ceil_mode, mod.count_include_pad, mod.divisor_override
        )


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Mean over adaptive windows, rounded half to even; keeps the input's qparams."""

    def _get_name(self) -> str:
        return "QuantizedAdaptiveAvgPool2d"

    def forward(self, input: Any) -> torch.Tensor:
        return super().forward(quantized_input(self, input))

    @staticmethod
    def from_float(mod: nn.AdaptiveAvgPool2d, use_precomputed_fake_quant: bool = False) -> AdaptiveAvgPool2d:
        return AdaptiveAvgPool2d(mod.output_size)
