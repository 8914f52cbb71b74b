"""The borders between float and int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import backend, ops
from zeropoint.errors import QuantizationError, UncalibratedError
from zeropoint.nn.quantized.modules.weighted import observed_qparams
from zeropoint.tensor import QTensor, as_qdtype, check_scale, check_zero_point

__all__ = ["DeQuantize", "Quantize"]


class Quantize(nn.Module):
    """Float in, quantized out, with fixed qparams. A quantized tensor passes through.

    State: ``scale`` (float32 [1], NaN if converted without calibration) and ``zero_point`` (int64 [1]).
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, scale: Any, zero_point: Any, dtype: Any, factory_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([float(scale)], **(factory_kwargs or {})))
        self.register_buffer("zero_point", torch.tensor([int(zero_point)], dtype=torch.long))
        self.dtype = as_qdtype(dtype)
        self._qualified_name = ""
        self._read_qparams()

    def _read_qparams(self) -> None:
        """Takes the buffers' values as numbers, checked; NaN stays for a module without calibration."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        if scale == scale:
            check_scale("Quantize", scale)
            check_zero_point("Quantize", zero_point, self.dtype)
        self._qparams = (scale, zero_point)

    def forward(self, X: torch.Tensor) -> QTensor:
        if isinstance(X, QTensor):
            return X
        # Under torch.compile and torch.export the numbers of the last run outside are constants.
        if not torch.compiler.is_compiling() and (self.scale.item(), self.zero_point.item()) != self._qparams:
            self._read_qparams()
        scale, zero_point = self._qparams
        if scale != scale:
            raise UncalibratedError(
                f"{self._qualified_name or 'Quantize'}: this Quantize was converted without calibration and has no scale. Run "
                "calibration data through the prepared model before convert(), or load_state_dict() a calibrated one"
            )
        if not X.is_floating_point():
            raise QuantizationError(
                f"{self._qualified_name or 'Quantize'}: the input must be a float tensor, got {X.dtype}"
            )
        X = X.detach().float()
        if not torch.compiler.is_compiling():
            backend.note_values(X)
        return QTensor(
            ops.quantize_per_tensor(X, scale, zero_point, self.dtype.storage),
            scale,
            zero_point,
            self.dtype,
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read_qparams()

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Quantize:
        """From a prepared QuantStub."""
        scale, zero_point, dtype, calibrated = observed_qparams(mod)
        return Quantize(scale if calibrated else float("nan"), zero_point, dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}, dtype={self.dtype}"


class DeQuantize(nn.Module):
    """Quantized in, float32 out. A float tensor passes through."""

    def forward(self, Xq: torch.Tensor) -> torch.Tensor:
        return Xq.dequantize() if isinstance(Xq, QTensor) else Xq

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> DeQuantize:
        return DeQuantize()
