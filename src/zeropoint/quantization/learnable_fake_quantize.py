"""Fake quantization whose scale and zero point are trained.

Esser et al., "Learned Step Size Quantization", 2020 (LSQ): the gradient of the scale is ``round(x / s) - x / s``
inside the range and the bound outside. Bhalgat et al., "LSQ+", 2020: the offset is learned too. Both gradients
are scaled by ``1 / sqrt(number of elements * quant_max)``, so that steps of scale and weights keep in proportion.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.quantization.fake_quantize import (
    FakeQuantizeBase,
    fake_quantize_per_channel_affine,
    fake_quantize_per_tensor_affine,
)
from zeropoint.quantization.observer import MovingAverageMinMaxObserver
from zeropoint.tensor import as_qdtype, is_per_channel, per_channel_symmetric, per_tensor_symmetric

__all__ = ["LearnableFakeQuantize"]


class _Learned(torch.autograd.Function):
    """Forward is the fake quantize of the contract; gradients as published. Scale and zero point are broadcast to x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        axis: int | None,
        low: int,
        high: int,
        factor: float,
    ) -> torch.Tensor:
        shape = [1] * x.dim()
        if axis is not None:
            shape[axis] = -1
        z = torch.clamp(torch.round(zero_point.detach()), low, high).to(torch.int32)
        s = scale.detach().float()
        if axis is None:
            out = fake_quantize_per_tensor_affine(x.detach(), s, z, low, high)
        else:
            out = fake_quantize_per_channel_affine(x.detach(), s, z, axis, low, high)
        ctx.save_for_backward(x, s.reshape(shape), z.reshape(shape).float())
        ctx.axis, ctx.low, ctx.high, ctx.factor = axis, low, high, factor
        ctx.shapes = (scale.shape, zero_point.shape)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, s, z = ctx.saved_tensors
        position = x / s + z
        q = torch.round(position)
        below, above = q < ctx.low, q > ctx.high
        inside = ~(below | above)
        d_scale = torch.where(below, ctx.low - z, torch.where(above, ctx.high - z, (q - z) - x / s))
        d_zero_point = torch.where(inside, 0.0, -s)

        def total(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
            dims = [i for i in range(values.dim()) if i != ctx.axis]
            summed = values.sum(dims) if dims else values
            return (summed * ctx.factor).reshape(shape)

        return (
            grad * inside, total(grad * d_scale, ctx.shapes[0]), total(grad * d_zero_point, ctx.shapes[1]), None, None, None, None,
        )  # fmt: skip


class LearnableFakeQuantize(FakeQuantizeBase):
    """Scale (LSQ) and, for affine schemes, zero point (LSQ+) as parameters, started by an observer.

    The first batch in train mode (or all batches until :meth:`enable_param_learning`, if
    :meth:`enable_static_estimate` was called) sets them from the observer; then they train with the weights.

    Args:
        observer: class or constructor of the observer that finds the start.
        quant_min, quant_max: the integer range, also narrower than the dtype's: [-8, 7] trains 4 bits.
        scale, zero_point: the values before the first batch.
        channel_len: number of channels for per-channel schemes, or -1 to take it from the first tensor.
        use_grad_scaling: the gradient scaling of the paper.
        observer_kwargs: passed to the observer.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    static_enabled: torch.Tensor
    learning_enabled: torch.Tensor
    eps: torch.Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        scale: float = 1.0,
        zero_point: float = 0.0,
        channel_len: int = -1,
        use_grad_scaling: bool = True,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if not quant_min < quant_max:
            raise QuantizationError("quant_min must be strictly less than quant_max.")
        observer_kwargs.update(quant_min=quant_min, quant_max=quant_max)
        self.activation_post_process = observer(**observer_kwargs)
        self.quant_min, self.quant_max, self.use_grad_scaling = quant_min, quant_max, use_grad_scaling
        self.dtype = as_qdtype(self.activation_post_process.dtype)
        self.qscheme = self.activation_post_process.qscheme
        self.ch_axis: int = getattr(self.activation_post_process, "ch_axis", -1)
        self.is_per_channel = is_per_channel(self.qscheme)
        self.is_dynamic = False
        count = max(channel_len, 1)
        self.scale = nn.Parameter(torch.full((count,), float(scale)))
        self.zero_point = nn.Parameter(
            torch.full((count,), float(zero_point)),
            requires_grad=self.qscheme not in (per_tensor_symmetric, per_channel_symmetric),
        )
        self.register_buffer("static_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("learning_enabled", torch.tensor([0], dtype=torch.uint8))
        self.register_buffer("eps", torch.tensor([torch.finfo(torch.float32).eps]))
        self._estimate_only = False

    def enable_param_learning(self) -> LearnableFakeQuantize:
        """Parameters train; the observer rests."""
        self.toggle_qparam_learning(True).toggle_fake_quant(True).toggle_observer_update(False)
        self._estimate_only = False
        return self

    def enable_static_estimate(self) -> LearnableFakeQuantize:
        """Parameters follow the observer and do not train."""
        self.toggle_qparam_learning(False).toggle_fake_quant(True).toggle_observer_update(True)
        self._estimate_only = True
        return self

    def enable_static_observation(self) -> LearnableFakeQuantize:
        """Only observe: no rounding, no training."""
        self.toggle_qparam_learning(False).toggle_fake_quant(False).toggle_observer_update(True)
        self._estimate_only = True
        return self

    def toggle_observer_update(self, enabled: bool = True) -> LearnableFakeQuantize:
        self.static_enabled[0] = int(enabled)
        return self

    def toggle_qparam_learning(self, enabled: bool = True) -> LearnableFakeQuantize:
        self.learning_enabled[0] = int(enabled)
        self.scale.requires_grad = enabled
        self.zero_point.requires_grad = enabled and self.qscheme not in (per_tensor_symmetric, per_channel_symmetric)
        return self

    def toggle_fake_quant(self, enabled: bool = True) -> LearnableFakeQuantize:
        self.fake_quant_enabled[0] = int(enabled)
        return self

    def enable_observer(self, enabled: bool = True) -> None:
        super().enable_observer(enabled)
        self.toggle_observer_update(enabled)

    @property
    def calibrated(self) -> bool:
        return not bool(self.static_enabled[0]) or bool(self.activation_post_process.calibrated)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """The trained scale and zero point, as they run: scale at least eps, zero point rounded into the range."""
        scale = torch.clamp(self.scale.detach(), min=float(self.eps))
        zero_point = torch.clamp(torch.round(self.zero_point.detach()), self.quant_min, self.quant_max).to(torch.int32)
        return scale, zero_point

    def _start(self, x: torch.Tensor) -> None:
        self.activation_post_process(x.detach())
        scale, zero_point = self.activation_post_process.calculate_qparams()
        with torch.no_grad():
            if self.scale.shape != scale.shape:
                self.scale.data = self.scale.data.new_empty(scale.shape)
                self.zero_point.data = self.zero_point.data.new_empty(scale.shape)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if self.static_enabled[0] == 1 and X.numel():
            self._start(X)
            if self.training and not self._estimate_only:
                self.enable_param_learning()
        return self.round_to_grid(X)

    def round_to_grid(self, X: torch.Tensor) -> torch.Tensor:
        """Rounds with the parameters as they are."""
        if self.fake_quant_enabled[0] != 1:
            return X
        with torch.no_grad():
            self.scale.clamp_(min=float(self.eps))
        factor = (
            1.0 / math.sqrt(max(X.numel(), 1) / self.scale.numel() * max(self.quant_max, 1))
            if self.use_grad_scaling
            else 1.0
        )
        axis = self.ch_axis if self.is_per_channel else None
        out = _Learned.apply(X.float(), self.scale, self.zero_point, axis, self.quant_min, self.quant_max, factor)
        return out.to(X.dtype)

    def extra_repr(self) -> str:
        return (
            f"quant_min={self.quant_min}, quant_max={self.quant_max}, dtype={self.dtype}, qscheme={self.qscheme}, "
            f"scale={self.scale}, zero_point={self.zero_point}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape != getattr(self, name).shape:
                getattr(self, name).data = getattr(self, name).data.new_empty(value.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
