"""Linear that trains together with its batch norm, as it will run: folded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint.nn import intrinsic as nni
from zeropoint.nn.qat.linear import check_float_module, require_qconfig

__all__ = ["LinearBn1d"]


class LinearBn1d(nn.Linear):
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

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias with the batch norm's running statistics folded in, not yet quantized."""
        factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        bias = torch.zeros_like(factor) if self.bias is None else self.bias
        return self.weight * factor.unsqueeze(1), self.bn.bias + (bias - self.bn.running_mean) * factor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.bn.training:
            weight, bias = self.folded()
            return F.linear(input, self.weight_fake_quant(weight), bias)
        factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        safe = torch.where(factor == 0, torch.ones_like(factor), factor)
        out = F.linear(input, self.weight_fake_quant(self.weight * safe.unsqueeze(1))) / safe
        return self.bn(out if self.bias is None else out + self.bias)

    def train(self, mode: bool = True) -> Any:
        """Switches mode; the batch norm stays frozen if it was frozen."""
        self.training = mode
        for child in self.children():
            child.train(mode if child is not self.bn else mode and not self.freeze_bn)
        return self

    def update_bn_stats(self) -> Any:
        self.freeze_bn = False
        self.bn.training = self.training
        return self

    def freeze_bn_stats(self) -> Any:
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
