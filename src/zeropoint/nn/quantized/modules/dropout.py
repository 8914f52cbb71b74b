"""Dropout after conversion: nothing is dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """The identity, in train mode too: a quantized model does not train."""

    def _get_name(self) -> str:
        return "QuantizedDropout"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Dropout:
        return cls(mod.p, mod.inplace)

    @classmethod
    def from_reference(cls, mod: Any, scale: float, zero_point: int) -> Dropout:
        return cls(mod.p, mod.inplace)
