"""Conv2d with fake-quantized weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn.qat.linear import check_float_module, require_qconfig

__all__ = ["Conv2d"]


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` whose weight goes through ``qconfig.weight()`` on the way into the convolution."""

    _FLOAT_MODULE: type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.qconfig = require_qconfig(type(self).__name__, qconfig)
        self.weight_fake_quant = qconfig.weight()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Conv2d:
        """From a float module (or its fused form) with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        conv: Any = mod[0] if isinstance(mod, nn.Sequential) else mod
        result = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            conv.bias is not None, conv.padding_mode, mod.qconfig,
        )  # fmt: skip
        result.weight, result.bias = conv.weight, conv.bias
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float Conv2d with these parameters."""
        make: Any = nn.Conv2d
        conv: nn.Conv2d = make(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation, self.groups,
            self.bias is not None, self.padding_mode,
        )  # fmt: skip
        conv.weight = nn.Parameter(self.weight.detach())
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach())
        return conv.train(self.training)
