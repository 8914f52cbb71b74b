"""Convolutions that train together with their batch norm, as they will run: folded.

Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 3.2.2: the
weight is scaled by ``gamma / sqrt(running_var + eps)`` before it is fake-quantized, the convolution's result
is scaled back, and the batch norm then works on batch statistics as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn import intrinsic as nni
from zeropoint.nn.qat.conv import Conv2d
from zeropoint.nn.qat.linear import check_float_module

__all__ = ["ConvBn2d", "ConvBnReLU2d", "ConvReLU2d", "freeze_bn_stats", "update_bn_stats"]


class ConvReLU2d(Conv2d):
    """Fake-quantized Conv2d, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvReLU2d

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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, qconfig
        )
        self.relu: nn.Module = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(input))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> ConvReLU2d:
        result: Any = super().from_float(mod, use_precomputed_fake_quant)
        result.relu = mod[1]
        return result


class ConvBn2d(Conv2d):
    """Conv2d and BatchNorm2d, folded as they will run.

    ``freeze_bn_stats()`` stops the batch norm's statistics: the convolution then trains with the weights
    it will have after conversion.
    """

    _FLOAT_MODULE: type = nni.ConvBn2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: Any = None,
        padding_mode: Any = "zeros",
        eps: float = 1e-05,
        momentum: float = 0.1,
        freeze_bn: bool = False,
        qconfig: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bool(bias), padding_mode, qconfig
        )
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)
        self.freeze_bn = freeze_bn
        if freeze_bn:
            self.freeze_bn_stats()

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias with the batch norm's running statistics folded in, not yet quantized."""
        assert self.bn.running_mean is not None
        assert self.bn.running_var is not None
        factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        bias = torch.zeros_like(factor) if self.bias is None else self.bias
        return self.weight * factor.reshape(-1, 1, 1, 1), self.bn.bias + (bias - self.bn.running_mean) * factor

    def _conv_bn(self, input: torch.Tensor) -> torch.Tensor:
        assert self.bn.running_var is not None
        if not self.bn.training:
            # Exactly what will run; also right where the batch norm's weight is 0.
            weight, bias = self.folded()
            return self._conv_forward(input, self.weight_fake_quant(weight), bias)
        factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        # A factor of 0 cannot be scaled back: such channels convolve with their own weights, and the batch
        # norm multiplies the result by its weight of 0.
        safe = torch.where(factor == 0, torch.ones_like(factor), factor)
        weight = self.weight_fake_quant(self.weight * safe.reshape(-1, 1, 1, 1))
        out = self._conv_forward(input, weight, None) / safe.reshape(1, -1, 1, 1)
        if self.bias is not None:
            out = out + self.bias.reshape(1, -1, 1, 1)
        return self.bn(out)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_bn(input)

    def train(self, mode: bool = True) -> ConvBn2d:
        """Switches mode; the batch norm stays frozen if it was frozen."""
        self.training = mode
        for child in self.children():
            child.train(mode if child is not self.bn else mode and not self.freeze_bn)
        return self

    def update_bn_stats(self) -> ConvBn2d:
        self.freeze_bn = False
        self.bn.training = self.training
        return self

    def freeze_bn_stats(self) -> ConvBn2d:
        self.freeze_bn = True
        self.bn.training = False
        return self

    def reset_running_stats(self) -> None:
        self.bn.reset_running_stats()

    def reset_bn_parameters(self) -> None:
        self.bn.reset_running_stats()
        nn.init.uniform_(self.bn.weight)
        nn.init.zeros_(self.bn.bias)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> ConvBn2d:
        """From a fused float ConvBn2d (or ConvBnReLU2d) with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        conv, bn = mod[0], mod[1]
        result = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            conv.bias is not None, conv.padding_mode, bn.eps, bn.momentum, False, mod.qconfig,
        )  # fmt: skip
        result.weight, result.bias, result.bn = conv.weight, conv.bias, bn
        return result.train(mod.training)


class ConvBnReLU2d(ConvBn2d):
    """:class:`ConvBn2d`, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvBnReLU2d

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relu: nn.Module = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.relu(self._conv_bn(input))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> ConvBnReLU2d:
        result: Any = super().from_float(mod, use_precomputed_fake_quant)
        result.relu = mod[2]
        return result


def update_bn_stats(mod: nn.Module) -> None:
    """For ``model.apply``: let batch norms follow their batches again."""
    if isinstance(mod, ConvBn2d):
        mod.update_bn_stats()


def freeze_bn_stats(mod: nn.Module) -> None:
    """For ``model.apply``: stop batch norm statistics."""
    if isinstance(mod, ConvBn2d):
        mod.freeze_bn_stats()
