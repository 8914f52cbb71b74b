"""Linear and ReLU for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn import intrinsic as nni
from zeropoint.nn.qat.linear import Linear

__all__ = ["LinearReLU"]


class LinearReLU(Linear):
    """Fake-quantized Linear, then the fused activation (ReLU or ReLU6)."""

    _FLOAT_MODULE: type = nni.LinearReLU

    def __init__(self, in_features: int, out_features: int, bias: bool = True, qconfig: Any = None) -> None:
        super().__init__(in_features, out_features, bias, qconfig)
        self.relu: nn.Module = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(input))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> LinearReLU:
        result: Any = super().from_float(mod, use_precomputed_fake_quant)
        result.relu = mod[1]
        return result

    def to_float(self) -> nn.Module:
        return nni.LinearReLU(super().to_float(), self.relu)  # type: ignore[arg-type]
