"""Convolutions with fake-quantized weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn.qat.linear import check_float_module, require_qconfig

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def _geometry(conv: Any) -> list[Any]:
    """The constructor arguments of a float convolution up to ``padding_mode``."""
    bias = conv.bias is not None
    head = [conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding]
    if conv.transposed:
        return [*head, conv.output_padding, conv.groups, bias, conv.dilation, conv.padding_mode]
    return [*head, conv.dilation, conv.groups, bias, conv.padding_mode]


class _QatConv(nn.modules.conv._ConvNd):
    """What the QAT convolutions share: the weight goes through ``qconfig.weight()`` on its way."""

    _FLOAT_MODULE: type = nn.Conv2d
    weight_fake_quant: nn.Module
    qconfig: Any

    def _fake_quantize_weights(self, qconfig: Any) -> None:
        self.qconfig = require_qconfig(type(self).__name__, qconfig)
        self.weight_fake_quant = qconfig.weight()
        if self.transposed and getattr(self.weight_fake_quant, "ch_axis", -1) != -1:
            # Output channels are axis 1 of a transposed convolution's weight.
            fake_quant: Any = self.weight_fake_quant
            fake_quant.ch_axis = 1
            fake_quant.activation_post_process.ch_axis = 1

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a float module (or its fused form) with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        conv: Any = mod[0] if isinstance(mod, nn.Sequential) else mod
        result: Any = cls(*_geometry(conv), qconfig=mod.qconfig)  # type: ignore[call-arg]
        result.weight, result.bias = conv.weight, conv.bias
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float convolution with these parameters; its ReLU, if it has one, behind it in the fused form."""
        make = next(c for c in _FLOAT_CONVOLUTIONS if isinstance(self, c))
        conv: nn.Module = make(*_geometry(self))
        conv.weight = nn.Parameter(self.weight.detach())
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach())
        return conv.train(self.training)


_FLOAT_CONVOLUTIONS: tuple[Any, ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


class _QatConvNd(_QatConv):
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
        nn_class: Any = next(c for c in _FLOAT_CONVOLUTIONS if isinstance(self, c))
        nn_class.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._fake_quantize_weights(qconfig)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)


class Conv1d(_QatConvNd, nn.Conv1d):
    """``torch.nn.Conv1d`` whose weight goes through ``qconfig.weight()`` on the way into the convolution."""

    _FLOAT_MODULE: type = nn.Conv1d


class Conv2d(_QatConvNd, nn.Conv2d):
    """``torch.nn.Conv2d`` whose weight goes through ``qconfig.weight()`` on the way into the convolution."""

    _FLOAT_MODULE: type = nn.Conv2d


class Conv3d(_QatConvNd, nn.Conv3d):
    """``torch.nn.Conv3d`` whose weight goes through ``qconfig.weight()`` on the way into the convolution."""

    _FLOAT_MODULE: type = nn.Conv3d


class _QatConvTransposeNd(_QatConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: Any = "zeros",
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn_class: Any = next(c for c in _FLOAT_CONVOLUTIONS if isinstance(self, c))
        nn_class.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype,
        )  # fmt: skip
        self._fake_quantize_weights(qconfig)

    def forward(self, input: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        function = getattr(nn.functional, f"conv_transpose{len(self.kernel_size)}d")
        return function(
            input, self.weight_fake_quant(self.weight), self.bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation,
        )  # fmt: skip


class ConvTranspose1d(_QatConvTransposeNd, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with a fake-quantized weight; torch has none."""

    _FLOAT_MODULE: type = nn.ConvTranspose1d


class ConvTranspose2d(_QatConvTransposeNd, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with a fake-quantized weight; torch has none."""

    _FLOAT_MODULE: type = nn.ConvTranspose2d


class ConvTranspose3d(_QatConvTransposeNd, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with a fake-quantized weight; torch has none."""

    _FLOAT_MODULE: type = nn.ConvTranspose3d
