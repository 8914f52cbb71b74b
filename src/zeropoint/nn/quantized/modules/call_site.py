"""Scale and zero point of functions without a module: what ``prepare`` saw at each call site."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn.quantized.modules.weighted import QuantizedOutput
from zeropoint.tensor import QTensor, quantize_per_tensor

__all__ = ["CallSite", "CallSites"]


class CallSite(QuantizedOutput):
    """The result of one function call in a module's forward, named ``add_0``, ``silu_0`` ..."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.empty(0)  # the last table of a pointwise function, and what it was made for
        self.table_key: Any = None

    def _get_name(self) -> str:
        return "QuantizedCallSite"

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def quantize(self, value: torch.Tensor) -> QTensor:
        """A float result, quantized."""
        if not self._calibrated:
            self._require_calibration()
        return quantize_per_tensor(value, self._scale, self._zero_point, self._output_dtype)

    def constants(self, key: str) -> tuple[str, float, int, str]:
        """What a graph of Dynamo keeps of the site named ``key``."""
        return key, self._scale, self._zero_point, self._output_dtype.name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a call site holds qparams and is not called")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": torch.empty(0), "table_key": None}


class CallSites(nn.ModuleDict):
    """The call sites of one module, by name; they come back with its state_dict."""

    def _get_name(self) -> str:
        return "QuantizedCallSites"

    def ensure(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Makes the sites that a state_dict has."""
        for key in state_dict:
            if key.startswith(prefix):
                name = key[len(prefix) :].partition(".")[0]
                if name not in self:
                    self[name] = CallSite()
