"""Layer, group, instance and RMS norm on int8: exact integer sums, one rounding (ops.normalize)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput, observed_qparams, quantized_input
from zeropoint.tensor import QTensor

__all__ = ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "RMSNorm"]


class _Norm(QuantizedOutput):
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    _centered = True

    def _set_affine(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        for name, value in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().float().clone())

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def _rows(self, data: torch.Tensor) -> tuple[int, int]:
        """How many parts are normalized, and how many elements share one weight."""
        raise NotImplementedError

    def forward(self, input: Any) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        x = quantized_input(self, input)
        data = x._data.contiguous()
        rows, inner = self._rows(data)
        dtype = self._output_dtype
        out = ops.normalize(
            data, rows, self.weight, self.bias, inner, x._scale, x._zero_point, self.eps, self._centered, self._scale,
            self._zero_point, dtype.quant_min, dtype.quant_max, dtype.storage,
        )  # fmt: skip
        return QTensor(out, self._scale, self._zero_point, dtype)

    def _wrong(self, data: torch.Tensor, accepted: str) -> QuantizationError:
        name = self._qualified_name or type(self).__name__
        return QuantizationError(f"{name}: the input must be {accepted}, got {tuple(data.shape)}")

    def _qparams_text(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def _observed(self, mod: nn.Module) -> Any:
        self.set_output(*observed_qparams(mod))
        return self


class LayerNorm(_Norm):
    """``torch.nn.LayerNorm`` on int8. Replaces ``torch.ao.nn.quantized.LayerNorm``.

    Shape: [..., *normalized_shape].
    """

    def __init__(
        self,
        normalized_shape: Any,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        zero_point: int,
        eps: float = 1e-05,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        self._set_affine(weight, bias)
        self.scale, self.zero_point = scale, zero_point

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, {self._qparams_text()}"

    def _rows(self, data: torch.Tensor) -> tuple[int, int]:
        n = len(self.normalized_shape)
        if tuple(data.shape[data.dim() - n :]) != self.normalized_shape:
            raise self._wrong(data, f"[..., {', '.join(map(str, self.normalized_shape))}]")
        return math.prod(data.shape[: data.dim() - n]), 1

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float LayerNorm."""
        return cls(mod.normalized_shape, mod.weight, mod.bias, 1.0, 0, mod.eps, mod.elementwise_affine)._observed(mod)

    @classmethod
    def from_reference(cls, mod: Any, scale: float, zero_point: int) -> Any:
        return cls(
            mod.normalized_shape, mod.weight, mod.bias, float(scale), int(zero_point), mod.eps, mod.elementwise_affine
        )


class RMSNorm(_Norm):
    """``torch.nn.RMSNorm`` on int8; torch had none. Shape: [..., *normalized_shape]."""

    _centered = False

    def __init__(
        self,
        normalized_shape: Any,
        weight: torch.Tensor | None,
        scale: float,
        zero_point: int,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps
        self._set_affine(weight, None)
        self.scale, self.zero_point = scale, zero_point

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, {self._qparams_text()}"

    _rows = LayerNorm._rows

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float RMSNorm."""
        return cls(mod.normalized_shape, mod.weight, 1.0, 0, mod.eps)._observed(mod)


class GroupNorm(_Norm):
    """``torch.nn.GroupNorm`` on int8. Replaces ``torch.ao.nn.quantized.GroupNorm``. Shape: [N, C, ...]."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        zero_point: int,
        eps: float = 1e-05,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise QuantizationError(f"GroupNorm: {num_channels} channels do not divide into {num_groups} groups")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self._set_affine(weight, bias)
        self.scale, self.zero_point = scale, zero_point

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, {self._qparams_text()}"

    def _rows(self, data: torch.Tensor) -> tuple[int, int]:
        if data.dim() < 2 or data.shape[1] != self.num_channels:
            raise self._wrong(data, f"[N, {self.num_channels}, ...]")
        return data.shape[0] * self.num_groups, math.prod(data.shape[2:])

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float GroupNorm."""
        return cls(mod.num_groups, mod.num_channels, mod.weight, mod.bias, 1.0, 0, mod.eps, mod.affine)._observed(mod)


class _InstanceNorm(_Norm):
    _spatial = 2

    def __init__(
        self,
        num_features: int,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        zero_point: int,
        eps: float = 1e-05,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.track_running_stats = track_running_stats
        self._set_affine(weight, bias)
        self.scale, self.zero_point = scale, zero_point

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, {self._qparams_text()}"

    def _rows(self, data: torch.Tensor) -> tuple[int, int]:
        batched = data.dim() == self._spatial + 2
        if data.dim() not in (self._spatial + 1, self._spatial + 2) or data.shape[int(batched)] != self.num_features:
            raise self._wrong(
                data, f"[N, {self.num_features}, ...] or [{self.num_features}, ...] with {self._spatial} more"
            )
        inner = math.prod(data.shape[-self._spatial :])
        return data.numel() // max(inner, 1), inner

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float instance norm without running statistics.

        Raises:
            QuantizationError: ``track_running_stats``: in eval mode that is a batch norm of each sample.
        """
        if mod.track_running_stats:
            raise QuantizationError(
                f"{cls.__name__}.from_float: track_running_stats=True is not supported; set the module's qconfig to None"
            )
        return cls(mod.num_features, mod.weight, mod.bias, 1.0, 0, mod.eps, mod.momentum, mod.affine)._observed(mod)


class InstanceNorm1d(_InstanceNorm):
    """``torch.nn.InstanceNorm1d`` on int8. Shape: [N, C, L] or [C, L]."""

    _spatial = 1


class InstanceNorm2d(_InstanceNorm):
    """``torch.nn.InstanceNorm2d`` on int8. Shape: [N, C, H, W] or [C, H, W]."""


class InstanceNorm3d(_InstanceNorm):
    """``torch.nn.InstanceNorm3d`` on int8. Shape: [N, C, D, H, W] or [C, D, H, W]."""

    _spatial = 3
