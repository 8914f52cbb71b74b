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
from zeropoint.nn.intrinsic.qat.folded import FoldedBatchNorm
from zeropoint.nn.qat import conv as qat_conv
from zeropoint.nn.qat.linear import check_float_module

__all__ = [
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "freeze_bn_stats",
    "update_bn_stats",
]


class _ConvReLUNd(qat_conv._QatConvNd):
    """Fake-quantized convolution, then the fused activation (ReLU or ReLU6)."""

    relu: nn.Module

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
        self.relu = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(input))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        result: Any = super().from_float(mod, use_precomputed_fake_quant)
        result.relu = mod[1]
        return result

    def to_float(self) -> nn.Module:
        return self._FLOAT_MODULE(super().to_float(), self.relu)


class ConvReLU1d(_ConvReLUNd, qat_conv.Conv1d):
    """Fake-quantized Conv1d, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvReLU1d


class ConvReLU2d(_ConvReLUNd, qat_conv.Conv2d):
    """Fake-quantized Conv2d, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvReLU2d


class ConvReLU3d(_ConvReLUNd, qat_conv.Conv3d):
    """Fake-quantized Conv3d, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvReLU3d


# Names of the batch norm's state before torch 1.6 (version 1 of the modules).
_OLD_NAMES = {
    "gamma": "bn.weight", "beta": "bn.bias", "running_mean": "bn.running_mean", "running_var": "bn.running_var",
    "num_batches_tracked": "bn.num_batches_tracked",
}  # fmt: skip


class _ConvBnNd(FoldedBatchNorm, qat_conv._QatConvNd):
    """A convolution and its batch norm, folded as they will run.

    ``freeze_bn_stats()`` stops the batch norm's statistics: the convolution then trains with the weights
    it will have after conversion.
    """

    _version = 2
    _BATCH_NORM: type = nn.BatchNorm2d
    _RELU = False

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
        self.bn = self._BATCH_NORM(out_channels, eps, momentum)
        if self._RELU:
            self.relu: nn.Module = nn.ReLU()
        self.freeze_bn = freeze_bn if self.training else True
        if freeze_bn:
            self.freeze_bn_stats()

    def _conv_bn(self, input: torch.Tensor) -> torch.Tensor:
        if not self.bn.training:
            # Exactly what will run; also right where the batch norm's weight is 0.
            weight, bias = self.folded()
            return self._conv_forward(input, self.weight_fake_quant(weight), bias)
        safe = self.safe_factor()
        weight = self.weight_fake_quant(self.weight * self._along(safe, 0))
        out = self._conv_forward(input, weight, None) / self._along(safe, 1)
        if self.bias is not None:
            out = out + self._along(self.bias, 1)
        return self.bn(out)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_bn(input)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a fused float module with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        conv, bn = mod[0], mod[1]
        result = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            conv.bias is not None, conv.padding_mode, bn.eps, bn.momentum, False, mod.qconfig,
        )  # fmt: skip
        result.weight, result.bias, result.bn = conv.weight, conv.bias, bn
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """The float convolution with the batch norm folded in (in its fused form if a ReLU follows)."""
        make = next(c for c in qat_conv._FLOAT_CONVOLUTIONS if isinstance(self, c))
        weight, bias = self.folded()
        arguments = qat_conv._geometry(self)
        arguments[7] = True
        conv: nn.Module = make(*arguments)
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        relu = getattr(self, "relu", None)
        if relu is not None:
            conv = {1: nni.ConvReLU1d, 2: nni.ConvReLU2d, 3: nni.ConvReLU3d}[len(self.kernel_size)](conv, relu)
        return conv.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *rest: Any) -> None:
        version = local_metadata.get("version") if local_metadata else None
        if version is None or version == 1:
            for old, new in _OLD_NAMES.items():
                if prefix + old in state_dict:
                    state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class ConvBn1d(_ConvBnNd, nn.Conv1d):
    """Conv1d and BatchNorm1d, folded as they will run."""

    _FLOAT_MODULE: type = nni.ConvBn1d
    _BATCH_NORM = nn.BatchNorm1d


class ConvBn2d(_ConvBnNd, nn.Conv2d):
    """Conv2d and BatchNorm2d, folded as they will run."""

    _FLOAT_MODULE: type = nni.ConvBn2d
    _BATCH_NORM = nn.BatchNorm2d


class ConvBn3d(_ConvBnNd, nn.Conv3d):
    """Conv3d and BatchNorm3d, folded as they will run."""

    _FLOAT_MODULE: type = nni.ConvBn3d
    _BATCH_NORM = nn.BatchNorm3d


class _ConvBnReLUNd(_ConvBnNd):
    _RELU = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.relu(self._conv_bn(input))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        result: Any = super().from_float(mod, use_precomputed_fake_quant)
        result.relu = mod[2]
        return result


class ConvBnReLU1d(_ConvBnReLUNd, ConvBn1d):
    """:class:`ConvBn1d`, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvBnReLU1d


class ConvBnReLU2d(_ConvBnReLUNd, ConvBn2d):
    """:class:`ConvBn2d`, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvBnReLU2d


class ConvBnReLU3d(_ConvBnReLUNd, ConvBn3d):
    """:class:`ConvBn3d`, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.ConvBnReLU3d


def update_bn_stats(mod: nn.Module) -> None:
    """For ``model.apply``: let batch norms follow their batches again."""
    if isinstance(mod, FoldedBatchNorm):
        mod.update_bn_stats()


def freeze_bn_stats(mod: nn.Module) -> None:
    """For ``model.apply``: stop batch norm statistics."""
    if isinstance(mod, FoldedBatchNorm):
        mod.freeze_bn_stats()
