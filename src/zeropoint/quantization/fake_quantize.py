"""Fake quantization: float values rounded to the integer grid, with straight-through gradients.

Names and switches of ``torch.ao.quantization.fake_quantize``. The forward is ``dequantize(quantize(x))``
bit for bit (docs/numerics.md), so that what is trained is what runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from zeropoint import ops
from zeropoint._reference.quantize import fma32
from zeropoint.errors import QuantizationError
from zeropoint.quantization import observer as _observer
from zeropoint.quantization.observer import (
    FixedQParamsObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    _with_args,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)
from zeropoint.tensor import (
    as_qdtype,
    is_per_channel,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    qparams_of_range,
    quint4x2,
    quint8,
)

__all__ = [
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FusedMovingAvgObsFakeQuantize",
    "default_affine_fixed_qparams_fake_quant",
    "default_dynamic_fake_quant",
    "default_embedding_fake_quant",
    "default_embedding_fake_quant_4bit",
    "default_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
    "default_fixed_qparams_range_neg1to1_fake_quant",
    "default_fused_act_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "default_fused_wt_fake_quant",
    "default_histogram_fake_quant",
    "default_per_channel_weight_fake_quant",
    "default_symmetric_fixed_qparams_fake_quant",
    "default_weight_fake_quant",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127",
    "fused_wt_fake_quant_range_neg_127_to_127",
]


class _StraightThrough(torch.autograd.Function):
    """Forward gives ``rounded``; the gradient passes where ``inside`` holds and is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rounded: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inside)
        return rounded.clone()  # an input given back as it is could not be changed in place (ReLU(inplace=True))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def _check_range(operation: str, quant_min: int, quant_max: int, zero_point: torch.Tensor) -> None:
    if quant_min > quant_max:
        raise QuantizationError(
            f"{operation}: `quant_min` should be less than or equal to `quant_max`, got {quant_min} and {quant_max}"
        )
    if not bool(((zero_point >= quant_min) & (zero_point <= quant_max)).all()):
        raise QuantizationError(
            f"{operation}: `zero_point` must be between `quant_min` and `quant_max`, got {zero_point}"
        )


def _storage(quant_min: int, quant_max: int) -> torch.dtype:
    """The integers that the range would be kept in: their quantize is the one to simulate."""
    if quant_min >= 0 and quant_max <= 255:
        return torch.uint8
    return torch.int8 if quant_min >= -128 and quant_max <= 127 else torch.int32


def fake_quantize_per_tensor_affine(
    input: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> torch.Tensor:
    """``dequantize(quantize(x))`` on the grid ``[quant_min, quant_max]``; same shape and dtype as ``input``.

    The gradient is 1 where the integer before clamping lies in the range, 0 outside (straight-through).

    Raises:
        QuantizationError: an empty range or a zero point outside it.
    """
    scale = torch.as_tensor(scale, dtype=torch.float32).reshape(-1)
    zero_point = torch.as_tensor(zero_point).reshape(-1)
    _check_range("fake_quantize_per_tensor_affine", quant_min, quant_max, zero_point)
    x = input.detach().float()
    s, z = float(scale), int(zero_point)
    unclamped = ops.quantize_per_tensor(x, s, z, torch.int32)
    inside = (unclamped >= quant_min) & (unclamped <= quant_max)
    q = torch.clamp(ops.quantize_per_tensor(x, s, z, _storage(quant_min, quant_max)), quant_min, quant_max)
    rounded = ops.dequantize_per_tensor(q, s, z).to(input.dtype)
    return _StraightThrough.apply(input, rounded, inside)


def fake_quantize_per_channel_affine(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    """As :func:`fake_quantize_per_tensor_affine` with one scale and zero point per index of ``axis``."""
    _check_range("fake_quantize_per_channel_affine", quant_min, quant_max, zero_point)
    if not 0 <= axis < input.dim() or scale.numel() != input.shape[axis] or zero_point.numel() != input.shape[axis]:
        raise QuantizationError(
            f"fake_quantize_per_channel_affine: axis {axis} of an input of shape {tuple(input.shape)} needs as many scales and "
            f"zero points, got {scale.numel()} and {zero_point.numel()}"
        )
    x = input.detach().float()
    info = torch.iinfo(torch.int32)
    scale = scale.detach().float().contiguous()
    if zero_point.is_floating_point():
        shape = [1] * x.dim()
        shape[axis] = -1
        q = torch.round(x / scale.reshape(shape) + zero_point.reshape(shape))
        clamped = torch.clamp(q, quant_min, quant_max)
        rounded = (clamped - zero_point.reshape(shape)) * scale.reshape(shape)
        return _StraightThrough.apply(input, rounded.to(input.dtype), q == clamped)
    zero_point = zero_point.to(torch.int32).contiguous()
    q = ops.quantize_per_channel(x, scale, zero_point, axis, info.min, info.max, torch.int32)
    clamped = torch.clamp(q, quant_min, quant_max)
    rounded = ops.dequantize_per_channel(clamped, scale, zero_point, axis).to(input.dtype)
    return _StraightThrough.apply(input, rounded, q == clamped)


class FakeQuantizeBase(ABC, nn.Module):
    """Base of fake-quantize modules: two switches, as buffers so that they travel with the state."""

    fake_quant_enabled: torch.Tensor
    observer_enabled: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.uint8))

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def calculate_qparams(self, **kwargs: Any) -> Any: ...

    def enable_fake_quant(self, enabled: bool = True) -> None:
        self.fake_quant_enabled[0] = 1 if enabled else 0

    def disable_fake_quant(self) -> None:
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        self.observer_enabled[0] = 1 if enabled else 0

    def disable_observer(self) -> None:
        self.enable_observer(False)

    with_args = classmethod(_with_args)  # type: ignore[arg-type]


class FakeQuantize(FakeQuantizeBase):
    """Observes its input, derives qparams, and rounds the input to the grid.

    Args:
        observer: class or constructor of the observer.
        quant_min, quant_max: the integer range, by default the dtype's.
        observer_kwargs: passed to the observer.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if quant_min is not None and quant_max is not None:
            if quant_min > quant_max:
                raise QuantizationError("quant_min must be less than or equal to quant_max")
            dtype = as_qdtype(observer_kwargs.get("dtype", quint8))
            if quant_min < dtype.quant_min:
                raise QuantizationError("quant_min out of bound")
            if quant_max > dtype.quant_max:
                raise QuantizationError("quant_max out of bound")
            observer_kwargs.update(quant_min=quant_min, quant_max=quant_max)
        observer_kwargs["is_dynamic"] = is_dynamic
        self.activation_post_process = observer(**observer_kwargs)
        self.quant_min: int = self.activation_post_process.quant_min
        self.quant_max: int = self.activation_post_process.quant_max
        self.is_dynamic = is_dynamic
        float_qparams = self.activation_post_process.qscheme is per_channel_affine_float_qparams
        self.register_buffer("scale", torch.tensor([1.0], dtype=torch.float))
        self.register_buffer("zero_point", torch.tensor([0], dtype=torch.float if float_qparams else torch.int))
        self.dtype = self.activation_post_process.dtype
        self.qscheme = self.activation_post_process.qscheme
        self.ch_axis: int = getattr(self.activation_post_process, "ch_axis", -1)
        self.is_per_channel = is_per_channel(self.qscheme)

    @property
    def calibrated(self) -> bool:
        return bool(self.activation_post_process.calibrated)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.activation_post_process.calculate_qparams()

    def _observe(self, X: torch.Tensor) -> None:
        self.activation_post_process(X.detach())
        scale, zero_point = self.calculate_qparams()
        scale, zero_point = scale.to(self.scale.device), zero_point.to(self.zero_point.device)
        self.scale.resize_(scale.shape).copy_(scale)
        self.zero_point.resize_(zero_point.shape).copy_(zero_point)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return self._traced_forward(X)
        if self.observer_enabled[0] == 1 and X.numel():
            self._observe(X)
        return self.round_to_grid(X)

    def _traced_forward(self, X: torch.Tensor) -> torch.Tensor:
        """The same without a branch on values, for torch.compile: the switches select between results.

        NaN and infinities are not left out of the range here.
        """
        observing = self.observer_enabled[0] == 1
        for target, value in zip((self.scale, self.zero_point), self._traced_qparams(X, observing), strict=True):
            target.copy_(torch.where(observing, value.to(target.dtype), target))
        x, scale = X.detach().float(), self.scale.clone()
        zero_point = self.zero_point.clone().float()
        if self.is_per_channel:
            shape = [1] * X.dim()
            shape[self.ch_axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
            value = x * (1.0 / scale) + zero_point
        else:
            value = fma32(x, (1.0 / scale).double(), zero_point.double())
        rounded = torch.round(value)
        q = torch.where(torch.isnan(value), zero_point, torch.clamp(rounded, self.quant_min, self.quant_max))
        result = _StraightThrough.apply(X, ((q - zero_point) * scale).to(X.dtype), rounded == q)
        return torch.where(self.fake_quant_enabled[0] == 1, result, X)

    def _traced_qparams(self, X: torch.Tensor, observing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        observer: Any = self.activation_post_process
        low, high = observer.traced_range(X.detach(), observing)
        scale, zero_point = qparams_of_range(
            low, high, observer.dtype, observer.qscheme, observer.quant_min, observer.quant_max, observer.eps,
            observer.has_customized_qrange,
        )  # fmt: skip
        return scale, zero_point

    def round_to_grid(self, X: torch.Tensor) -> torch.Tensor:
        """Rounds without observing: for what is computed on this grid without an observer of its own (pools)."""
        if self.fake_quant_enabled[0] == 1:
            if self.is_per_channel:
                X = fake_quantize_per_channel_affine(
                    X, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
                )
            else:
                X = fake_quantize_per_tensor_affine(X, self.scale, self.zero_point, self.quant_min, self.quant_max)
        return X

    def extra_repr(self) -> str:
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"quant_min={self.quant_min}, quant_max={self.quant_max}, dtype={self.dtype}, qscheme={self.qscheme}, "
            f"ch_axis={self.ch_axis}, scale={self.scale}, zero_point={self.zero_point}"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in ("scale", "zero_point"):
            if prefix + name in state_dict:
                getattr(self, name).resize_(state_dict[prefix + name].shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class FixedQParamsFakeQuantize(FakeQuantize):
    """Fake quantization with qparams known beforehand."""

    def __init__(self, observer: Any) -> None:
        super().__init__(observer=observer)
        if not isinstance(self.activation_post_process, FixedQParamsObserver):
            raise QuantizationError(f"{type(self).__name__}'s observer must be a {FixedQParamsObserver.__name__}")
        self.scale = self.activation_post_process.scale
        self.zero_point = self.activation_post_process.zero_point

    def _observe(self, X: torch.Tensor) -> None:
        pass

    def _traced_qparams(self, X: torch.Tensor, observing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale, self.zero_point

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.scale, self.zero_point

    def extra_repr(self) -> str:
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, scale={self.scale}, "
            f"zero_point={self.zero_point}, dtype={self.dtype}, quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, qscheme={self.qscheme}"
        )


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """Moving-average observation and fake quantization in one; here a name for code that uses it."""

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        if not isinstance(
            self.activation_post_process, (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
        ):
            raise QuantizationError("Fused observer+fake_quant module only works with MovingAverageMinMaxObserver")
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.long))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.long))

    def extra_repr(self) -> str:
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, scale={self.scale}, "
            f"zero_point={self.zero_point}, dtype={self.dtype}, quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, qscheme={self.qscheme}, reduce_range={self.activation_post_process.reduce_range}"
        )


_per_tensor_weight = {"quant_min": -128, "quant_max": 127, "dtype": qint8, "qscheme": per_tensor_symmetric}
_per_channel_weight = {"quant_min": -128, "quant_max": 127, "dtype": qint8, "qscheme": per_channel_symmetric}

default_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=0,
    quant_max=255,
    dtype=quint8,
    qscheme=per_tensor_affine,
    reduce_range=True,
)
default_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, reduce_range=False, **_per_tensor_weight
)
default_dynamic_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=0,
    quant_max=255,
    is_dynamic=True,
    dtype=quint8,
    averaging_constant=1,
)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_neg1to1_observer
)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_0to1_observer
)
default_symmetric_fixed_qparams_fake_quant = default_fixed_qparams_range_neg1to1_fake_quant
default_affine_fixed_qparams_fake_quant = default_fixed_qparams_range_0to1_fake_quant
default_per_channel_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver, reduce_range=False, ch_axis=0, **_per_channel_weight
)
default_embedding_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    qscheme=per_channel_affine_float_qparams,
    dtype=quint8,
    quant_min=0,
    quant_max=255,
    ch_axis=0,
    averaging_constant=1,
)
default_embedding_fake_quant_4bit = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    qscheme=per_channel_affine_float_qparams,
    ch_axis=0,
    dtype=quint4x2,
    averaging_constant=1,
)
default_histogram_fake_quant = FakeQuantize.with_args(
    observer=_observer.HistogramObserver,
    quant_min=0,
    quant_max=255,
    dtype=quint8,
    qscheme=per_tensor_affine,
    reduce_range=True,
)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=quint8
)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, **_per_tensor_weight
)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver, **_per_channel_weight
)
fused_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-127,
    quant_max=127,
    dtype=qint8,
    qscheme=per_tensor_symmetric,
    eps=2**-12,
)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    quant_min=-127,
    quant_max=127,
    dtype=qint8,
    qscheme=per_channel_symmetric,
    eps=2**-12,
)


def disable_fake_quant(mod: nn.Module) -> None:
    """For ``model.apply``: stop rounding."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_fake_quant()


def enable_fake_quant(mod: nn.Module) -> None:
    """For ``model.apply``: round."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_fake_quant()


def disable_observer(mod: nn.Module) -> None:
    """For ``model.apply``: freeze the qparams."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_observer()


def enable_observer(mod: nn.Module) -> None:
    """For ``model.apply``: keep updating the qparams."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_observer()
