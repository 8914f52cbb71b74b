"""Batch norm that could not be folded into a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import backend, ops
from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput, observed_qparams, quantized_input, relu_bound
from zeropoint.tensor import QTensor

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class _BatchNorm(QuantizedOutput):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, on int8.

    Runs as a depthwise 1x1 convolution whose weights are the signs of the channels' factors and whose
    weight scales are their magnitudes: exact but for the final rounding, with no kernel of its own.
    """

    _shapes: dict[int, str]  # by number of dimensions

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._prepared: tuple[Any, ...] = ()
        self._prepared_for: tuple[Any, ...] = ()

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, scale={self.scale}, zero_point={self.zero_point}"

    def _affine(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Signs (the int8 weight), its packed form, magnitudes (the weight scales) and offsets (the bias)."""
        if torch.compiler.is_exporting():  # the graph may run on another CPU: the packing is in it
            return self._prepare()
        tensors = (self.weight, self.bias, self.running_mean, self.running_var)
        key = (backend.layout_id(), *(t._version for t in tensors), *(id(t) for t in tensors))
        if key != self._prepared_for:
            self._prepared, self._prepared_for = self._prepare(), key
        return self._prepared

    def _prepare(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        factor = self.weight.double() / torch.sqrt(self.running_var.double() + self.eps)
        offset = (self.bias.double() - self.running_mean.double() * factor).float()
        sign = torch.sign(factor).to(torch.int8).reshape(-1, 1, 1, 1)
        magnitude = torch.where(factor == 0, 1.0, factor.abs()).float()
        return sign, ops.conv2d_pack(sign, None, (1, 1), self.num_features), magnitude, offset

    def forward(self, input: QTensor) -> QTensor:
        if not self._calibrated:
            self._require_calibration()
        x = quantized_input(self, input)
        data = x._data
        shape = data.shape
        if data.dim() not in self._shapes or shape[1] != self.num_features:
            name = self._qualified_name or type(self).__name__
            accepted = " or ".join(f"[N, {self.num_features}{rest}]" for rest in self._shapes.values())
            raise QuantizationError(f"{name}: the input must be {accepted}, got {tuple(shape)}")
        if data.dim() != 4:
            data = data.reshape(shape[0], shape[1], -1, 1)
        sign, packed, magnitude, offset = self._affine()
        dtype = self._output_dtype
        low, high = self._clamp()
        result = ops.conv2d(
            data, sign, packed, magnitude, None, offset, (1, 1), (0, 0), (1, 1), self.num_features, x._scale, x._zero_point,
            self._scale, self._zero_point, low, high, dtype.storage,
        )  # fmt: skip
        return QTensor(result if len(shape) == 4 else result.reshape(shape), self._scale, self._zero_point, dtype)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """From a prepared float batch norm (or its fused form with a ReLU) in eval mode."""
        bn: Any = mod[0] if isinstance(mod, nni._FusedModule) else mod
        if bn.running_mean is None:
            raise QuantizationError(
                f"{cls.__name__}.from_float: the batch norm needs running statistics (track_running_stats=True)"
            )
        result = cls(bn.num_features, bn.eps, bn.momentum)
        with torch.no_grad():
            if bn.affine:
                result.weight.copy_(bn.weight)
                result.bias.copy_(bn.bias)
            result.running_mean.copy_(bn.running_mean)
            result.running_var.copy_(bn.running_var)
        result.relu_max = relu_bound(mod)
        result.set_output(*observed_qparams(mod))
        return result

    @classmethod
    def from_reference(cls, bn: Any, output_scale: float, output_zero_point: int) -> Any:
        """From a float batch norm and given output qparams."""
        result = cls(bn.num_features, bn.eps, bn.momentum)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(result, name).copy_(getattr(bn, name))
        result.scale, result.zero_point = float(output_scale), int(output_zero_point)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": (), "_prepared_for": ()}


class BatchNorm1d(_BatchNorm):
    """Batch norm of [N, C] or [N, C, L] on int8; torch had none."""

    _shapes = {2: "", 3: ", L"}


class BatchNorm2d(_BatchNorm):
    """Batch norm of [N, C, H, W] on int8; the output is channels_last. Replaces ``torch.ao.nn.quantized.BatchNorm2d``."""

    _shapes = {4: ", H, W"}


class BatchNorm3d(_BatchNorm):
    """Batch norm of [N, C, D, H, W] on int8. Replaces ``torch.ao.nn.quantized.BatchNorm3d``."""

    _shapes = {5: ", D, H, W"}
