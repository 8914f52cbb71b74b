"""Linear with fake-quantized weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint.errors import QuantizationError

__all__ = ["Linear", "check_float_module", "require_qconfig"]


def require_qconfig(name: str, qconfig: Any) -> Any:
    if not qconfig:
        raise QuantizationError(f"{name}: qconfig must be provided for a QAT module")
    return qconfig


def check_float_module(cls: type, mod: nn.Module, accepted: type) -> None:
    if type(mod) is not accepted:
        raise QuantizationError(
            f"{cls.__name__}.from_float only works for {accepted.__name__}, got {type(mod).__name__}"
        )
    require_qconfig(f"{cls.__name__}.from_float", getattr(mod, "qconfig", None))


class Linear(nn.Linear):
    """``torch.nn.Linear`` whose weight goes through ``qconfig.weight()`` on the way into the product."""

    _FLOAT_MODULE: type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.qconfig = require_qconfig(type(self).__name__, qconfig)
        self.weight_fake_quant = qconfig.weight()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight_fake_quant(self.weight), self.bias)

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Linear:
        """From a float module (or its fused form) with a qconfig; shares its parameters."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        linear: Any = mod[0] if isinstance(mod, nn.Sequential) else mod
        result = cls(linear.in_features, linear.out_features, linear.bias is not None, mod.qconfig)
        result.weight, result.bias = linear.weight, linear.bias
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float Linear with these parameters."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        linear.weight = nn.Parameter(self.weight.detach())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach())
        return linear.train(self.training)
