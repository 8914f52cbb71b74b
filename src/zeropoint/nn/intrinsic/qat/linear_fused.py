"""Linear that trains together with its batch norm, as it will run: folded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint.nn import intrinsic as nni
from zeropoint.nn.intrinsic.qat.folded import FoldedBatchNorm
from zeropoint.nn.qat.linear import check_float_module, require_qconfig

__all__ = ["LinearBn1d"]


class LinearBn1d(FoldedBatchNorm, nn.Linear):
    """Linear and BatchNorm1d; see :class:`~zeropoint.nn.intrinsic.qat.ConvBn2d` for the numerics."""

    _FLOAT_MODULE: type = nni.LinearBn1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-05,
        momentum: float = 0.1,
        freeze_bn: bool = False,
        qconfig: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.qconfig = require_qconfig(type(self).__name__, qconfig)
        self.bn: Any = nn.BatchNorm1d(out_features, eps, momentum)
        self.weight_fake_quant = qconfig.weight()
        self.freeze_bn = freeze_bn
        if freeze_bn:
            self.freeze_bn_stats()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.bn.training:
            weight, bias = self.folded()
            return F.linear(input, self.weight_fake_quant(weight), bias)
        safe = self.safe_factor()
        out = F.linear(input, self.weight_fake_quant(self.weight * safe.unsqueeze(1))) / safe
        return self.bn(out if self.bias is None else out + self.bias)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> LinearBn1d:
        """From a fused float LinearBn1d with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        linear, bn = mod[0], mod[1]
        result = cls(
            linear.in_features, linear.out_features, linear.bias is not None, bn.eps, bn.momentum, False, mod.qconfig
        )
        result.weight, result.bias, result.bn = linear.weight, linear.bias, bn
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float Linear with the batch norm folded in."""
        linear = nn.Linear(self.in_features, self.out_features)
        weight, bias = self.folded()
        linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return linear.train(self.training)
