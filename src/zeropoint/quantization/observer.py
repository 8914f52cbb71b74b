"""Observers: modules that watch tensors go by and turn what they saw into scale and zero point.

Names, arguments, buffers and results are those of ``torch.ao.quantization.observer``. Differences, all
deliberate: NaN and inf in the input are left out of every statistic with a warning (torch crashed or
spread them); observers merge (``observer.merge(other)``) so that calibration can run in pieces; and
``calibrated`` tells whether anything was observed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.tensor import (
    EPS,
    QTensor,
    as_qdtype,
    as_qscheme,
    choose_qparams,
    is_per_channel,
    is_per_tensor,
    is_qdtype,
    per_channel_affine,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    quant_range,
    quint4x2,
    quint8,
)

__all__ = [
    "AffineQuantizedObserverBase",
    "ClipWeightedHistogramObserver",
    "Granularity",
    "MappingType",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "TorchAODType",
    "ZeroPointDomain",
    "get_block_size",
    "FixedQParamsObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "Observer",
    "ObserverBase",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
    "UniformQuantizationObserverBase",
    "default_affine_fixed_qparams_observer",
    "default_debug_observer",
    "default_dynamic_quant_observer",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_observer",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_reuse_input_observer",
    "default_symmetric_fixed_qparams_observer",
    "default_weight_observer",
    "get_observer_state_dict",
    "is_activation_post_process",
    "load_observer_state_dict",
    "per_channel_weight_observer_range_neg_127_to_127",
    "sync_observers",
    "weight_observer_range_neg_127_to_127",
]


class _PartialWrapper:
    """A constructor with some arguments set; calling it constructs. ``with_args`` adds more."""

    def __init__(self, p: Any) -> None:
        self.p = p
        self.callable_args: dict[str, Any] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        for name, make in self.callable_args.items():
            if name not in keywords:
                keywords = {**keywords, name: make()}
        return self.p(*args, **keywords)

    def __repr__(self) -> str:
        return repr(self.p) + repr(self.callable_args)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _PartialWrapper):
            return NotImplemented
        if not (isinstance(self.p, partial) and isinstance(other.p, partial)):
            return self.p is other.p and self.callable_args == other.callable_args
        return (self.p.func, self.p.args, self.p.keywords, self.callable_args) == (
            other.p.func, other.p.args, other.p.keywords, other.callable_args,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.p.func if isinstance(self.p, partial) else self.p)

    def with_args(self, **kwargs: Any) -> _PartialWrapper:
        return _with_args(self, **kwargs)

    def with_callable_args(self, **kwargs: Any) -> _PartialWrapper:
        result = self.with_args()
        result.callable_args = {**self.callable_args, **kwargs}
        return result


def _with_args(cls_or_self: Any, **kwargs: Any) -> _PartialWrapper:
    """``Class.with_args(x=1)``: a constructor of Class with x set, usable in a qconfig."""
    if isinstance(cls_or_self, _PartialWrapper) and isinstance(cls_or_self.p, partial):
        inner = cls_or_self.p
        result = _PartialWrapper(partial(inner.func, *inner.args, **{**inner.keywords, **kwargs}))
        result.callable_args = dict(cls_or_self.callable_args)
        return result
    return _PartialWrapper(partial(cls_or_self, **kwargs))


class ObserverBase(ABC, nn.Module):
    """Base of all observers: ``forward`` records and returns its input, ``calculate_qparams`` concludes.

    Args:
        dtype: the quantized dtype (ours or torch's token), or a float dtype for placeholders.
        is_dynamic: whether the qparams are to be chosen at run time instead.
    """

    def __init__(self, dtype: Any, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = as_qdtype(dtype) if is_qdtype(dtype) else dtype
        self.is_dynamic = is_dynamic

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def calculate_qparams(self, **kwargs: Any) -> Any: ...

    @property
    def calibrated(self) -> bool:
        """Whether ``calculate_qparams`` rests on observations (or needs none)."""
        return True

    # The processes whose observations count as one (sync_observers); None: this process alone.
    _group: Any = None

    def _across_ranks(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The range over all ranks, in one collective."""
        if self._group is None or not torch.distributed.is_initialized():
            return low, high
        bounds = torch.stack([-low, high])
        group = None if self._group is _ALL_RANKS else self._group
        torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX, group)
        return -bounds[0], bounds[1]

    with_args = classmethod(_with_args)  # type: ignore[arg-type]

    @classmethod
    def with_callable_args(cls, **kwargs: Any) -> _PartialWrapper:
        return _PartialWrapper(partial(cls)).with_callable_args(**kwargs)


Observer = ObserverBase  # the name of torch 1.3

_ALL_RANKS = "all ranks"


def sync_observers(model: nn.Module, group: Any = None) -> nn.Module:
    """Makes every observer of ``model`` take in what all ranks of ``group`` see, from now on, in place.

    Without it each rank observes its own batches, and DistributedDataParallel hands rank 0's to all. Every rank has
    to run the same observers the same number of times: each observation is one small all-reduce.
    """
    for module in model.modules():
        module._group = _ALL_RANKS if group is None else group  # type: ignore[assignment]  # also for observers to come
    return model


def _observable(x_orig: torch.Tensor) -> torch.Tensor:
    """The finite float values to observe; quantized tensors are looked at as reals."""
    x = x_orig.dequantize() if isinstance(x_orig, QTensor) else x_orig.detach()
    if not x.is_floating_point():
        raise QuantizationError(f"an observer needs a float tensor, got {x.dtype}")
    return x


def _finite(x: torch.Tensor) -> torch.Tensor:
    """x without NaN and inf (flattened then), with a warning if there were any."""
    if x.numel() == 0 or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(x)):
        return x  # NaN and inf come out of the range: one pass instead of five
    finite = torch.isfinite(x)
    warnings.warn(
        "NaN or inf detected in an observed tensor; these values are left out of the statistics", stacklevel=3
    )
    return x[finite]


class UniformQuantizationObserverBase(ObserverBase):
    """Common part of the observers that lead to an affine or symmetric grid.

    Args:
        dtype: quint8, qint8, qint32 or quint4x2.
        qscheme: per_tensor_affine, per_tensor_symmetric, per_channel_affine, per_channel_symmetric or
            per_channel_affine_float_qparams.
        reduce_range: one bit less. Not needed for zeropoint's kernels, which never saturate.
        quant_min, quant_max: a narrower integer range, both or neither.
        eps: the smallest scale.

    Raises:
        QuantizationError: an unknown scheme or dtype, or an impossible range.
    """

    _version = 3
    eps: torch.Tensor

    def __init__(
        self,
        dtype: Any = quint8,
        qscheme: Any = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(as_qdtype(dtype), is_dynamic=is_dynamic, **kwargs)
        self.qscheme = as_qscheme(qscheme)
        self.reduce_range = reduce_range
        self.register_buffer("eps", torch.tensor([eps], **(factory_kwargs or {})))
        if (quant_min is None) != (quant_max is None):
            raise QuantizationError(f"give both quant_min and quant_max or neither, got {quant_min} and {quant_max}")
        self.has_customized_qrange = quant_min is not None
        self.quant_min, self.quant_max = quant_range(self.dtype, quant_min, quant_max, reduce_range)

    def _calculate_qparams(self, min_val: torch.Tensor, max_val: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32) and zero point (int32) of a range; see ``zeropoint.tensor.choose_qparams``."""
        if min_val.numel() == 0 or bool(((min_val == torch.inf) & (max_val == -torch.inf)).any()):
            warnings.warn(
                "must run observer before calling calculate_qparams. Returning default scale and zero point ",
                stacklevel=3,
            )
            return torch.tensor([1.0], device=min_val.device), torch.tensor([0], device=min_val.device)
        return choose_qparams(
            min_val,
            max_val,
            self.dtype,
            self.qscheme,
            self.quant_min,
            self.quant_max,
            self.eps,
            self.has_customized_qrange,
        )

    def reset_min_max_vals(self) -> None:
        raise NotImplementedError("Cannot reset min/max values in the given observer.")


def _take_traced(
    observer: Any, low: torch.Tensor, high: torch.Tensor, observing: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    known = observer.min_val <= observer.max_val
    combined = observer._combine(low, high)
    for buffer, first, later in zip((observer.min_val, observer.max_val), (low, high), combined, strict=True):
        buffer.copy_(torch.where(observing, torch.where(known, later, first), buffer))
    return observer.min_val.clone(), observer.max_val.clone()


class MinMaxObserver(UniformQuantizationObserverBase):
    """Running minimum and maximum of everything seen (per tensor).

    >>> import torch
    >>> observer = MinMaxObserver()
    >>> _ = observer(torch.tensor([-1.0, 3.0]))
    >>> scale, zero_point = observer.calculate_qparams()
    >>> round(float(scale), 6), int(zero_point)
    (0.015686, 64)
    """

    min_val: torch.Tensor
    max_val: torch.Tensor

    def __init__(
        self,
        dtype: Any = quint8,
        qscheme: Any = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_per_tensor(qscheme):
            raise NotImplementedError(
                "MinMaxObserver's qscheme only support torch.per_tensor_symmetric and torch.per_tensor_affine."
            )
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **kwargs)
        self.register_buffer("min_val", torch.tensor(float("inf"), **(factory_kwargs or {})))
        self.register_buffer("max_val", torch.tensor(float("-inf"), **(factory_kwargs or {})))
        if self.qscheme is per_tensor_symmetric and self.reduce_range and self.dtype == quint8:
            raise NotImplementedError("Cannot reduce range for symmetric quantization for quint8")

    @property
    def calibrated(self) -> bool:
        return bool(self.min_val <= self.max_val)

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if x_orig.numel() == 0:
            return x_orig
        x = _finite(_observable(x_orig).to(self.min_val.dtype))
        if x.numel():
            self._update(*self._across_ranks(*torch.aminmax(x)))
        return x_orig

    def _update(self, low: torch.Tensor, high: torch.Tensor) -> None:
        self.min_val.copy_(torch.min(low, self.min_val))
        self.max_val.copy_(torch.max(high, self.max_val))

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.min(low, self.min_val), torch.max(high, self.max_val)

    def traced_range(self, x: torch.Tensor, observing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes ``x`` in where ``observing`` holds, without a branch (torch.compile); gives the range after that."""
        return _take_traced(self, *torch.aminmax(x.to(self.min_val.dtype)), observing)

    def merge(self, other: MinMaxObserver) -> None:
        """Takes in what another observer of the same kind saw."""
        if type(other) is not type(self):
            raise QuantizationError(f"merge: cannot merge {type(other).__name__} into {type(self).__name__}")
        if other.calibrated:
            MinMaxObserver._update(self, other.min_val, other.max_val)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self._calculate_qparams(self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"

    def reset_min_max_vals(self) -> None:
        self.min_val.fill_(float("inf"))
        self.max_val.fill_(float("-inf"))


class MovingAverageMinMaxObserver(MinMaxObserver):
    """Moving average of each tensor's minimum and maximum: ``v += c * (new - v)``."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: Any = quint8,
        qscheme: Any = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_per_tensor(qscheme):
            raise NotImplementedError(
                "MovingAverageMinMaxObserver's qscheme only support torch.per_tensor_symmetric and torch.per_tensor_affine."
            )
        self.averaging_constant = averaging_constant
        if is_dynamic and averaging_constant != 1:
            raise NotImplementedError(
                "MovingAverageMinMaxObserver doesn't support dynamic quantization for averaging constant of 1"
            )
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps=eps, is_dynamic=is_dynamic, **kwargs)

    def _update(self, low: torch.Tensor, high: torch.Tensor) -> None:
        if self.calibrated:
            low, high = self._combine(low, high)
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.averaging_constant
        return self.min_val + c * (low - self.min_val), self.max_val + c * (high - self.max_val)


class PerChannelMinMaxObserver(UniformQuantizationObserverBase):
    """Running minimum and maximum of each index of ``ch_axis``."""

    min_val: torch.Tensor
    max_val: torch.Tensor

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: Any = quint8,
        qscheme: Any = per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_per_channel(qscheme):
            raise NotImplementedError(
                "PerChannelMinMaxObserver's qscheme only support torch.per_channel_symmetric, torch.per_channel_affine "
                "and torch.per_channel_affine_float_qparams."
            )
        if is_dynamic:
            raise NotImplementedError("PerChannelMinMaxObserver doesn't support dynamic quantization")
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **kwargs)
        self.ch_axis = ch_axis
        self.register_buffer("min_val", torch.tensor([], **(factory_kwargs or {})))
        self.register_buffer("max_val", torch.tensor([], **(factory_kwargs or {})))
        if self.qscheme is per_channel_symmetric and self.reduce_range and self.dtype == quint8:
            raise NotImplementedError("Cannot reduce range for symmetric quantization for quint8")

    @property
    def calibrated(self) -> bool:
        return self.min_val.numel() > 0

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if x_orig.numel() == 0:
            return x_orig
        x = _observable(x_orig).to(self.min_val.dtype)
        if not -x.dim() <= self.ch_axis < x.dim():
            raise QuantizationError(
                f"{type(self).__name__}: ch_axis {self.ch_axis} is outside the {x.dim()} dimensions of the observed tensor"
            )
        rows = x.transpose(0, self.ch_axis).reshape(x.shape[self.ch_axis], -1)
        if bool(torch.isfinite(rows).all()):
            self._update(*self._across_ranks(*torch.aminmax(rows, dim=1)))
        else:
            _finite(rows)  # warns
            finite = torch.isfinite(rows)
            low = torch.where(finite, rows, torch.inf).amin(1)
            high = torch.where(finite, rows, -torch.inf).amax(1)
            nothing = low > high  # a channel without one finite value: an empty range around 0
            self._update(*self._across_ranks(torch.where(nothing, 0.0, low), torch.where(nothing, 0.0, high)))
        return x_orig

    def _update(self, low: torch.Tensor, high: torch.Tensor) -> None:
        if self.calibrated and self.min_val.shape != low.shape:
            raise QuantizationError(
                f"{type(self).__name__}: observed {self.min_val.numel()} channels before and {low.numel()} now along axis {self.ch_axis}"
            )
        if self.calibrated:
            low, high = self._combine(low, high)
        self.min_val.resize_(low.shape).copy_(low)
        self.max_val.resize_(high.shape).copy_(high)

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.min(low, self.min_val), torch.max(high, self.max_val)

    def traced_range(self, x: torch.Tensor, observing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As MinMaxObserver's; the number of channels has to be known from a run before."""
        if self.min_val.numel() != x.shape[self.ch_axis]:
            raise QuantizationError(
                f"{type(self).__name__}: run the model once before torch.compile, so that the number of channels is known"
            )
        rows = x.to(self.min_val.dtype).transpose(0, self.ch_axis).reshape(x.shape[self.ch_axis], -1)
        return _take_traced(self, rows.amin(1), rows.amax(1), observing)

    def merge(self, other: PerChannelMinMaxObserver) -> None:
        """Takes in what another observer of the same kind saw."""
        if type(other) is not type(self):
            raise QuantizationError(f"merge: cannot merge {type(other).__name__} into {type(self).__name__}")
        if other.calibrated:
            self._update(other.min_val, other.max_val)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self._calculate_qparams(self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"

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
        for name in ("min_val", "max_val", "min_vals", "max_vals"):  # plural before torch 1.12
            key = prefix + name
            if key in state_dict:
                value = state_dict[key]
                if name.endswith("s"):
                    del state_dict[key]
                    state_dict[prefix + name[:-1]] = value
                getattr(self, name.removesuffix("s")).resize_(value.shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def reset_min_max_vals(self) -> None:
        self.min_val = torch.rand(0, device=self.min_val.device, dtype=self.min_val.dtype)
        self.max_val = torch.rand(0, device=self.max_val.device, dtype=self.max_val.dtype)


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """Moving average of each channel's minimum and maximum."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: Any = quint8,
        qscheme: Any = per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        self.averaging_constant = averaging_constant
        super().__init__(
            ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps=eps, is_dynamic=is_dynamic, **kwargs
        )

    def _combine(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.averaging_constant
        return self.min_val + c * (low - self.min_val), self.max_val + c * (high - self.max_val)


_UPSAMPLE = 16  # sub-bins per bin when a histogram is laid out over a wider range
_TURNS = 8  # of a search of two ends; each nearly reaches the optimum of one for the other
_QUANTILE_STEP = 1e-5  # fraction of the mass that the search gives up at a time


class HistogramObserver(UniformQuantizationObserverBase):
    """A histogram of everything seen, and the range that loses least when values outside are clipped.

    The search narrows the range from both ends by quantiles as long as the expected squared error
    falls, under the model that values are spread evenly within their bin. Same results as torch's.

    Args:
        bins: number of bins; the range they cover grows with what is seen.
    """

    histogram: torch.Tensor
    min_val: torch.Tensor
    max_val: torch.Tensor

    def __init__(
        self,
        bins: int = 2048,
        dtype: Any = quint8,
        qscheme: Any = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_per_tensor(qscheme):
            raise NotImplementedError(
                "HistogramObserver's qscheme only support torch.per_tensor_symmetric and torch.per_tensor_affine."
            )
        if is_dynamic:
            raise NotImplementedError("HistogramObserver doesn't support dynamic quantization")
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **kwargs)
        self.bins = bins
        self.dst_nbins = 1 << self.dtype.bits
        self.register_buffer("histogram", torch.zeros(bins, **(factory_kwargs or {})))
        self.register_buffer("min_val", torch.tensor(float("inf"), **(factory_kwargs or {})))
        self.register_buffer("max_val", torch.tensor(float("-inf"), **(factory_kwargs or {})))

    @property
    def calibrated(self) -> bool:
        return bool(self.min_val <= self.max_val)

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if x_orig.numel() == 0:
            return x_orig
        x = _finite(_observable(x_orig).to(self.min_val.dtype))
        if x.numel() == 0:
            return x_orig
        low, high = self._across_ranks(*torch.aminmax(x))
        if self.calibrated:
            low, high = torch.min(low, self.min_val), torch.max(high, self.max_val)
        counts = self._count(x, low, high)
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts, group=None if self._group is _ALL_RANKS else self._group)
        if self.calibrated:
            counts = counts + self._over(low, high)
        self.histogram.copy_(counts)
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        return x_orig

    def _count(self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return torch.histc(x, self.bins, min=float(low), max=float(high))

    def _over(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The histogram so far, laid out over the wider range [low, high]."""
        if low == self.min_val and high == self.max_val:
            return self.histogram
        if self.min_val == self.max_val:  # a single value
            return self._count(self.min_val, low, high) * self.histogram.sum()
        fine = self.bins * _UPSAMPLE
        mass = self.histogram.repeat_interleave(_UPSAMPLE) / _UPSAMPLE
        step = (self.max_val - self.min_val) / fine
        edges = torch.linspace(self.min_val, self.max_val, fine + 1, device=self.min_val.device)
        boundaries = torch.linspace(low, high, self.bins + 1, device=low.device)
        bucket = torch.bucketize(edges[:-1] + 0.5 * step, boundaries, right=True) - 1
        return torch.bincount(bucket.clamp(0, self.bins - 1), weights=mass, minlength=self.bins)

    def merge(self, other: HistogramObserver) -> None:
        """Takes in what another histogram of the same number of bins saw."""
        if type(other) is not type(self) or other.bins != self.bins:
            raise QuantizationError("merge: both must be HistogramObserver with the same number of bins")
        if not other.calibrated:
            return
        low, high = other.min_val.clone(), other.max_val.clone()
        if self.calibrated:
            low, high = torch.min(low, self.min_val), torch.max(high, self.max_val)
            counts = other._over(low, high) + self._over(low, high)
        else:
            counts = other.histogram
        self.histogram.copy_(counts)
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        if not self.calibrated:
            return self._calculate_qparams(self.min_val, self.max_val)
        return self._calculate_qparams(*self._search_range())

    def _search_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Moves whichever end gives up more bins for the next quantile step, until the error grows."""
        bin_width = (self.max_val - self.min_val) / self.bins
        total = self.histogram.sum().item()
        cumulative = torch.cumsum(self.histogram, 0).cpu().contiguous()
        start, end = 0, self.bins - 1
        alpha, beta = 0.0, 1.0
        best = float("inf")

        def first_reaching(mass: float) -> int:
            return int(torch.searchsorted(cumulative, torch.tensor(mass, dtype=cumulative.dtype)))

        def last_within(mass: float) -> int:
            return int(torch.searchsorted(cumulative, torch.tensor(mass, dtype=cumulative.dtype), right=True)) - 1

        while alpha < beta:
            next_alpha, next_beta = alpha + _QUANTILE_STEP, beta - _QUANTILE_STEP
            left = max(start, min(end, first_reaching(next_alpha * total)))
            right = min(end, max(start, last_within(next_beta * total)))
            next_start, next_end = start, end
            if left - start > end - right:
                next_start, alpha = left, next_alpha
            else:
                next_end, beta = right, next_beta
            if (next_start, next_end) == (start, end):
                continue
            error = self._quantization_error(next_start, next_end)
            if error > best:
                break
            best, start, end = error, next_start, next_end
        return self.min_val + bin_width * start, self.min_val + bin_width * (end + 1)

    def _quantization_error(self, start: int, end: int) -> float:
        """Expected squared error if bins ``start`` to ``end`` span the whole integer range.

        Within a bin the density is constant; a bin that covers several integers adds, for its first and
        last, the integral of the squared distance to their centres, and whole steps in between.
        """
        bin_width = (self.max_val.item() - self.min_val.item()) / self.bins
        step = bin_width * (end - start + 1) / self.dst_nbins
        if step == 0.0:
            return 0.0
        begin = (torch.arange(self.bins, device=self.histogram.device) - start) * bin_width
        finish = begin + bin_width
        last = self.dst_nbins - 1
        first_step = torch.clamp(torch.div(begin, step, rounding_mode="floor"), 0, last)
        last_step = torch.clamp(torch.div(finish, step, rounding_mode="floor"), 0, last)
        density = self.histogram / bin_width

        def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return density * ((b * b * b - a * a * a) / 3)

        half = torch.tensor(step / 2)
        error = squared(begin - (first_step + 0.5) * step, torch.ones(self.bins, device=density.device) * (step / 2))
        error = error + (last_step - first_step - 1) * squared(-half, half)
        error = error + squared(-half, finish - (last_step * step + step / 2))
        return float(error.sum().item())

    def reset_min_max_vals(self) -> None:
        self.histogram.zero_()
        self.min_val.fill_(float("inf"))
        self.max_val.fill_(float("-inf"))

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class ClipWeightedHistogramObserver(HistogramObserver):
    """A histogram, and the range of least squared error in which the error of clipping counts ``clip_weight`` times.

    An error of rounding is as often up as down and mostly cancels in the sums of the next layer. What clipping takes away has one
    sign and hits the same channels of every input, so it adds up, and a range of least squared error alone clips too much for
    networks of many thin layers. The default of :func:`zeropoint.quantize`; no such observer in torch.

    Args:
        clip_weight: 1 for the plain squared error, infinity for minima and maxima.

    Raises:
        QuantizationError: a ``clip_weight`` that is not positive.
    """

    def __init__(self, bins: int = 2048, clip_weight: float = 3.0, **kwargs: Any) -> None:
        if not clip_weight > 0:
            raise QuantizationError(f"ClipWeightedHistogramObserver: clip_weight must be positive, got {clip_weight}")
        super().__init__(bins, **kwargs)
        self.clip_weight = clip_weight

    def _count(self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Without zeros, of which ReLU makes many: they are exact in every range."""
        counts = super()._count(x, low, high)
        zeros = int(torch.count_nonzero(x == 0))
        return counts - zeros * super()._count(x.new_zeros(1), low, high) if zeros else counts

    def _search_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each end in turn at its best for the other; the error is convex in both."""
        seen_low, seen_high = float(self.min_val), float(self.max_val)
        mass = self.histogram.to("cpu", torch.float64)
        edges = torch.linspace(seen_low, seen_high, self.bins + 1, dtype=torch.float64)
        centres = (edges[1:] + edges[:-1]) / 2
        rounding = float(mass.sum()) / (12.0 * (self.quant_max - self.quant_min) ** 2)  # times the width squared
        if self.qscheme is per_tensor_symmetric:
            ends = torch.linspace(0.0, max(-seen_low, seen_high), self.bins + 1, dtype=torch.float64)[1:]
            clipped = _clipped(centres, mass, ends) + _clipped(-centres.flip(0), mass.flip(0), ends)
            best = float(ends[int((rounding * (2 * ends) ** 2 + self._weighted(clipped)).argmin())])
            return self.min_val.new_tensor(-best), self.max_val.new_tensor(best)
        zero = torch.zeros(1, dtype=torch.float64)
        lows = torch.cat([edges[edges < 0], zero])  # zero is always within the range
        highs = torch.cat([zero, edges[edges > 0]])
        below = self._weighted(_clipped(-centres.flip(0), mass.flip(0), -lows.flip(0)).flip(0))
        above = self._weighted(_clipped(centres, mass, highs))
        low, high = 0, len(highs) - 1
        for _ in range(_TURNS):
            high = int((rounding * (highs - lows[low]) ** 2 + above).argmin())
            low = int((rounding * (highs[high] - lows) ** 2 + below).argmin())
        return self.min_val.new_tensor(float(lows[low])), self.max_val.new_tensor(float(highs[high]))

    def _weighted(self, clipped: torch.Tensor) -> torch.Tensor:
        return torch.where(clipped > 0, clipped * self.clip_weight, 0.0)  # 0 * infinity is 0 here


def _clipped(centres: torch.Tensor, mass: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Squared error of clipping at each of ``ends`` what lies above it, with the mass of a bin in its (rising) centre."""
    count, first, second = ((mass * centres**k).flip(0).cumsum(0).flip(0) for k in range(3))
    tail = torch.searchsorted(centres, ends, right=True)
    count, first, second = (torch.cat([m, m.new_zeros(1)])[tail] for m in (count, first, second))
    return (second - 2 * ends * first + ends**2 * count).clamp_min(0.0)


class FixedQParamsObserver(ObserverBase):
    """Qparams known beforehand (the outputs of sigmoid, tanh, softmax); observes nothing."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: Any = quint8,
        qscheme: Any = per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if is_dynamic:
            raise NotImplementedError("FixedQParamsObserver doesn't support dynamic quantization")
        super().__init__(dtype, is_dynamic, **kwargs)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int))
        self.qscheme = as_qscheme(qscheme)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return self.scale, self.zero_point


class PlaceholderObserver(ObserverBase):
    """Carries a dtype and records nothing: dynamic and float16 qconfigs."""

    def __init__(
        self,
        dtype: Any = torch.float32,
        custom_op_name: str = "",
        compute_dtype: Any = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: Any = None,
        eps: float | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.qscheme = per_tensor_affine if qscheme is None else as_qscheme(qscheme)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.eps = EPS if eps is None else eps
        self.custom_op = custom_op_name
        if compute_dtype is not None:
            self.is_dynamic = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        raise QuantizationError("calculate_qparams should not be called for PlaceholderObserver")


class RecordingObserver(ObserverBase):
    """Keeps a copy of every tensor, for debugging (``get_tensor_value()``)."""

    def __init__(self, dtype: Any = quint8) -> None:
        super().__init__(dtype)
        self.tensor_val: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tensor_val.append(x.clone())
        return x

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        raise QuantizationError("calculate_qparams should not be called for RecordingObserver")

    def get_tensor_value(self) -> list[torch.Tensor]:
        return self.tensor_val


class NoopObserver(ObserverBase):
    """Does nothing and has no qparams."""

    def __init__(self, dtype: Any = torch.float16, custom_op_name: str = "") -> None:
        super().__init__(dtype)
        self.custom_op = custom_op_name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        raise QuantizationError("calculate_qparams should not be called for NoopObserver")


class ReuseInputObserver(ObserverBase):
    """Says that an operator keeps its input's qparams."""

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        raise QuantizationError("calculate_qparams should not be called for ReuseInputObserver")


def is_activation_post_process(module: nn.Module) -> bool:
    """Whether the module is an observer or fake quantize."""
    from zeropoint.quantization.fake_quantize import FakeQuantizeBase

    return isinstance(module, (ObserverBase, FakeQuantizeBase))


def get_observer_state_dict(mod: nn.Module) -> OrderedDict[str, Any]:
    """The part of ``mod.state_dict()`` that belongs to observers."""
    return OrderedDict((k, v) for k, v in mod.state_dict().items() if "activation_post_process" in k)


def load_observer_state_dict(mod: nn.Module, obs_dict: dict[str, Any]) -> None:
    """Loads what :func:`get_observer_state_dict` gave; raises QuantizationError on missing or unknown keys."""
    missing: list[str] = []
    unexpected: list[str] = []
    for name, module in mod.named_modules():
        prefix = name + "."
        if is_activation_post_process(module):
            module._load_from_state_dict(obs_dict, prefix, {}, False, missing, unexpected, [])
    missing = [k for k in mod.state_dict() if "activation_post_process" in k and k not in obs_dict]
    unexpected = [k for k in obs_dict if k not in mod.state_dict()]
    if missing or unexpected:
        raise QuantizationError(f"load_observer_state_dict: missing keys {missing}, unexpected keys {unexpected}")


default_observer = MinMaxObserver.with_args(quant_min=0, quant_max=127)
default_placeholder_observer = PlaceholderObserver
default_debug_observer = RecordingObserver
default_weight_observer = MinMaxObserver.with_args(dtype=qint8, qscheme=per_tensor_symmetric)
weight_observer_range_neg_127_to_127 = MinMaxObserver.with_args(
    dtype=qint8, qscheme=per_tensor_symmetric, quant_min=-127, quant_max=127, eps=2**-12
)
default_histogram_observer = HistogramObserver.with_args(quant_min=0, quant_max=127)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(dtype=qint8, qscheme=per_channel_symmetric)
per_channel_weight_observer_range_neg_127_to_127 = PerChannelMinMaxObserver.with_args(
    dtype=qint8, qscheme=per_channel_symmetric, quant_min=-127, quant_max=127, eps=2**-12
)
default_dynamic_quant_observer = PlaceholderObserver.with_args(
    dtype=quint8, quant_min=0, quant_max=255, is_dynamic=True
)
default_float_qparams_observer = PerChannelMinMaxObserver.with_args(
    dtype=quint8, qscheme=per_channel_affine_float_qparams, ch_axis=0
)
default_float_qparams_observer_4bit = PerChannelMinMaxObserver.with_args(
    dtype=quint4x2, qscheme=per_channel_affine_float_qparams, ch_axis=0
)
default_fixed_qparams_range_neg1to1_observer = FixedQParamsObserver.with_args(
    scale=2.0 / 256.0, zero_point=128, dtype=quint8, quant_min=0, quant_max=255
)
default_fixed_qparams_range_0to1_observer = FixedQParamsObserver.with_args(
    scale=1.0 / 256.0, zero_point=0, dtype=quint8, quant_min=0, quant_max=255
)
default_symmetric_fixed_qparams_observer = default_fixed_qparams_range_neg1to1_observer
default_affine_fixed_qparams_observer = default_fixed_qparams_range_0to1_observer
default_reuse_input_observer = ReuseInputObserver

# torch has them here too; they stand on this module.
from zeropoint.quantization.granularity import (  # noqa: E402
    AffineQuantizedObserverBase,
    Granularity,
    MappingType,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    TorchAODType,
    ZeroPointDomain,
    get_block_size,
)
