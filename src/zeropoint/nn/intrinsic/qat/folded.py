"""The batch norm of a layer that trains folded: its switches, shared by convolutions and Linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["FoldedBatchNorm"]


class FoldedBatchNorm(nn.Module):
    """Mixed into a layer with ``weight``, ``bias`` and a batch norm ``bn``."""

    bn: Any
    freeze_bn: bool

    def _along(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """Per-channel values to multiply a weight (axis 0) or a convolution's output (axis 1)."""
        weight: Any = self.weight
        return values.reshape([-1 if i == axis else 1 for i in range(weight.dim())])

    def factor(self) -> torch.Tensor:
        """``gamma / sqrt(running_var + eps)`` per output channel."""
        return self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias with the batch norm's running statistics folded in, not yet quantized."""
        weight: Any = self.weight
        factor = self.factor()
        bias: Any = torch.zeros_like(factor) if self.bias is None else self.bias
        return weight * self._along(factor, 0), self.bn.bias + (bias - self.bn.running_mean) * factor

    def safe_factor(self) -> torch.Tensor:
        """:meth:`factor` with 1 in place of 0, which could not be scaled back.

        Such channels run with their own weights, and the batch norm multiplies the result by its weight of 0.
        """
        factor = self.factor()
        return torch.where(factor == 0, torch.ones_like(factor), factor)

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
