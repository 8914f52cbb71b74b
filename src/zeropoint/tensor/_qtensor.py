"""The quantized tensor: plain integers with scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from zeropoint import backend, ops
from zeropoint._reference.quantize import f32
from zeropoint.errors import QuantizationError
from zeropoint.tensor import _functions
from zeropoint.tensor._dtype import (
    QDtype,
    QScheme,
    as_qdtype,
    is_qdtype,
    per_channel_affine,
    per_tensor_affine,
    qint8,
    qint32,
    quint8,
)

__all__ = [
    "QTensor",
    "dequantize",
    "make_per_channel_quantized_tensor",
    "make_per_tensor_quantized_tensor",
    "quantize_per_channel",
    "quantize_per_tensor",
]


class QTensor(torch.Tensor):
    """A tensor of reals ``scale * (q - zero_point)`` held as integers ``q``.

    Made by :func:`quantize_per_tensor` and :func:`quantize_per_channel`. It takes torch functions:
    those with an integer form stay quantized (views, indexing, cat, relu, pooling ...), the others run
    in float and are counted in ``zeropoint.backend.fallbacks()``. Outwardly it is a float32 tensor of
    the same shape and strides; ``dtype`` tells the quantized dtype.

    Replaces torch's quantized tensors (``torch.quint8`` and siblings), name for name.
    """

    _data: torch.Tensor
    _qdtype: QDtype
    _scale: Any  # float, or float32 tensor per channel
    _zero_point: Any  # int, or int32 (float32 for float qparams) tensor per channel
    _axis: int | None

    @staticmethod
    def __new__(
        cls,
        data: torch.Tensor,
        scale: float | torch.Tensor,
        zero_point: int | torch.Tensor,
        qdtype: QDtype,
        axis: int | None = None,
    ) -> QTensor:
        self: QTensor = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, data.stride(), data.storage_offset(), dtype=torch.float32, device=data.device
        )
        self._data = data
        self._scale = scale
        self._zero_point = zero_point
        self._qdtype = qdtype
        self._axis = axis
        return self

    # -- what torch's quantized tensors offer ---------------------------------------------------

    @property
    def is_quantized(self) -> bool:  # type: ignore[override]
        return True

    @property
    def dtype(self) -> QDtype:  # type: ignore[override]
        return self._qdtype

    def int_repr(self) -> torch.Tensor:
        """A copy of the integers: uint8, int8 or int32."""
        return self._data.clone()

    def dequantize(self) -> torch.Tensor:
        """float32 ``scale * (q - zero_point)``, same shape."""
        if self._axis is None:
            return ops.dequantize_per_tensor(self._data, self._scale, self._zero_point)
        if self._zero_point.is_floating_point():
            shape = [1] * self.dim()
            shape[self._axis] = -1
            zero_point = self._zero_point.reshape(shape)
            return (self._data.float() - zero_point) * self._scale.reshape(shape)
        return ops.dequantize_per_channel(self._data, self._scale, self._zero_point, self._axis)

    def qscheme(self) -> QScheme:  # type: ignore[override]
        if self._axis is None:
            return per_tensor_affine
        if self._zero_point.is_floating_point():
            return QScheme.PER_CHANNEL_AFFINE_FLOAT_QPARAMS
        return per_channel_affine

    def _require_scheme(self, method: str, per_tensor: bool) -> None:
        if (self._axis is None) != per_tensor:
            other = "q_per_channel_" + method.replace("q_", "") + "s()" if per_tensor else "q_scale()"
            raise QuantizationError(
                f"{method}: the tensor is quantized {'per channel' if per_tensor else 'per tensor'}; use {other}"
            )

    def q_scale(self) -> float:
        self._require_scheme("q_scale", True)
        return self._scale

    def q_zero_point(self) -> int:
        self._require_scheme("q_zero_point", True)
        return self._zero_point

    def q_per_channel_scales(self) -> torch.Tensor:
        """float64 copy, one per channel, as torch returns it."""
        self._require_scheme("q_per_channel_scales", False)
        return self._scale.double()

    def q_per_channel_zero_points(self) -> torch.Tensor:
        self._require_scheme("q_per_channel_zero_points", False)
        zero_point: torch.Tensor = self._zero_point
        return zero_point.clone() if zero_point.is_floating_point() else zero_point.to(torch.int64)

    def q_per_channel_axis(self) -> int:
        self._require_scheme("q_per_channel_axis", False)
        return self._axis  # type: ignore[return-value]

    def with_data(self, data: torch.Tensor, axis: int | None = None) -> QTensor:
        """A tensor over other integers with this one's qparams; ``axis`` where a view moved it."""
        return QTensor(data, self._scale, self._zero_point, self._qdtype, self._axis if axis is None else axis)

    # -- torch.Tensor protocol ------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _functions.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _functions.dispatch(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        if self._axis is None:
            return ["_data"], (self._scale, self._zero_point, self._qdtype.name, None)
        return ["_data", "_scale", "_zero_point"], (None, None, self._qdtype.name, self._axis)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], meta: tuple[Any, ...], outer_size: Any, outer_stride: Any
    ) -> QTensor:
        scale, zero_point, name, axis = meta
        if axis is not None:
            scale, zero_point = inner["_scale"], inner["_zero_point"]
        return QTensor(inner["_data"], scale, zero_point, as_qdtype(name), axis)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        if self._axis is None:
            qparams = f"scale={self._scale}, zero_point={self._zero_point}"
        else:
            qparams = f"scale={self._scale!r}, zero_point={self._zero_point!r}, axis={self._axis}"
        values = repr(self.dequantize()).removesuffix(")")
        return (
            f"{values}, size={tuple(self.shape)}, dtype={self._qdtype!r}, "
            f"quantization_scheme={self.qscheme()!r}, {qparams})"
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild_qtensor, (self._data, self._scale, self._zero_point, self._qdtype.name, self._axis)

    def __deepcopy__(self, memo: dict[int, Any]) -> QTensor:
        copy = QTensor(
            self._data.clone(),
            self._scale.clone() if isinstance(self._scale, torch.Tensor) else self._scale,
            self._zero_point.clone() if isinstance(self._zero_point, torch.Tensor) else self._zero_point,
            self._qdtype,
            self._axis,
        )
        memo[id(self)] = copy
        return copy


def _rebuild_qtensor(
    data: torch.Tensor, scale: float | torch.Tensor, zero_point: int | torch.Tensor, name: str, axis: int | None
) -> QTensor:
    """Checks everything, since it also serves files: a hostile one gives an error."""
    qdtype = as_qdtype(name)
    if not isinstance(data, torch.Tensor) or data.dtype != qdtype.storage:
        raise QuantizationError(f"a {qdtype!r} tensor must hold {qdtype.storage} integers")
    if axis is None:
        scale, zero_point = check_scale("load", scale), check_zero_point("load", zero_point, qdtype)
        return QTensor(data, scale, zero_point, qdtype)
    scales, zero_points, axis = _check_channels("load", data, scale, zero_point, axis, qdtype)
    return QTensor(data, scales, zero_points, qdtype, axis)


# torch.load(weights_only=True) may call this and nothing else of ours.
torch.serialization.add_safe_globals([_rebuild_qtensor])


def check_scale(operation: str, scale: Any) -> float:
    """A Python float that is finite and positive in float32."""
    if isinstance(scale, torch.Tensor):
        if scale.numel() != 1:
            raise QuantizationError(
                f"{operation}: scale must be a number or a one-element tensor, got shape {tuple(scale.shape)}"
            )
        scale = scale.item()
    value = float(scale)
    if not 0 < f32(value) < math.inf:
        raise QuantizationError(f"{operation}: scale must be finite and > 0 in float32, got {scale!r}")
    return value


def check_zero_point(operation: str, zero_point: Any, qdtype: QDtype) -> int:
    """A Python int within the dtype's range."""
    if isinstance(zero_point, torch.Tensor):
        if zero_point.numel() != 1:
            raise QuantizationError(
                f"{operation}: zero_point must be an integer or a one-element tensor, got shape {tuple(zero_point.shape)}"
            )
        zero_point = zero_point.item()
    if zero_point != int(zero_point) or not qdtype.quant_min <= zero_point <= qdtype.quant_max:
        raise QuantizationError(
            f"{operation}: zero_point {zero_point} is outside [{qdtype.quant_min}, {qdtype.quant_max}], the range of {qdtype!r}"
        )
    return int(zero_point)


def _check_channels(
    operation: str, x: torch.Tensor, scales: Any, zero_points: Any, axis: Any, qdtype: QDtype
) -> tuple[torch.Tensor, torch.Tensor, int]:
    if not isinstance(axis, int) or not -x.dim() <= axis < x.dim():
        raise QuantizationError(f"{operation}: axis {axis} is outside the {x.dim()} dimensions of the tensor")
    axis %= x.dim()
    scales, zero_points = torch.as_tensor(scales), torch.as_tensor(zero_points)
    channels = x.shape[axis]
    for name, values in (("scales", scales), ("zero_points", zero_points)):
        if values.dim() != 1 or values.numel() != channels:
            raise QuantizationError(
                f"{operation}: {name} must be 1-d with {channels} values, one per index of axis {axis}, got shape {tuple(values.shape)}"
            )
    scales = scales.float()
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise QuantizationError(f"{operation}: every scale must be finite and > 0 in float32, got {scales}")
    if zero_points.is_floating_point() and bool((zero_points == zero_points.round()).all()):
        zero_points = zero_points.to(torch.int64)
    if not zero_points.is_floating_point():
        if not bool(((zero_points >= qdtype.quant_min) & (zero_points <= qdtype.quant_max)).all()):
            raise QuantizationError(
                f"{operation}: every zero_point must be in [{qdtype.quant_min}, {qdtype.quant_max}], the range of {qdtype!r}"
            )
        zero_points = zero_points.to(torch.int32)
    return scales.contiguous(), zero_points.contiguous(), axis


def _check_float(operation: str, x: torch.Tensor) -> torch.Tensor:
    if isinstance(x, QTensor):
        raise QuantizationError(f"{operation}: the input is quantized already; dequantize() it first")
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise QuantizationError(
            f"{operation}: the input must be a float32, float64, float16 or bfloat16 tensor, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    x = x.detach().float()
    backend.note_values(x)
    return x


_KERNEL_DTYPES = (quint8, qint8, qint32)


def quantize_per_tensor(input: torch.Tensor, scale: Any, zero_point: Any, dtype: Any) -> QTensor:
    """Quantizes with one scale and zero point: ``clamp(round_half_even(x / scale + zero_point))``.

    Same integers as torch.quantize_per_tensor on CPU (docs/numerics.md has the exact roundings);
    NaN becomes ``zero_point``, infinities saturate.

    Args:
        input: float tensor of any shape; float64, float16 and bfloat16 are taken to float32 first.
        scale: number or one-element tensor, finite and > 0.
        zero_point: integer or one-element tensor, within the dtype's range.
        dtype: ``quint8``, ``qint8`` or ``qint32``, ours or torch's token.

    Raises:
        QuantizationError: an argument outside what is said here.
    """
    qdtype = as_qdtype(dtype)
    if qdtype not in _KERNEL_DTYPES:
        raise QuantizationError(f"quantize_per_tensor: dtype must be quint8, qint8 or qint32, got {qdtype!r}")
    x = _check_float("quantize_per_tensor", input)
    scale = check_scale("quantize_per_tensor", scale)
    zero_point = check_zero_point("quantize_per_tensor", zero_point, qdtype)
    return QTensor(ops.quantize_per_tensor(x, scale, zero_point, qdtype.storage), scale, zero_point, qdtype)


def quantize_per_channel(
    input: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, axis: int, dtype: Any
) -> QTensor:
    """Quantizes with one scale and zero point per index of ``axis``.

    Same integers as torch.quantize_per_channel on CPU, NaN apart.

    Raises:
        QuantizationError: an argument of wrong shape, range or dtype.
    """
    qdtype = as_qdtype(dtype)
    x = _check_float("quantize_per_channel", input)
    scales, zero_points, axis = _check_channels("quantize_per_channel", x, scales, zero_points, axis, qdtype)
    if zero_points.is_floating_point():
        shape = [1] * x.dim()
        shape[axis] = -1
        value = torch.round(x / scales.reshape(shape) + zero_points.reshape(shape))
        return QTensor(
            value.clamp(qdtype.quant_min, qdtype.quant_max).to(qdtype.storage), scales, zero_points, qdtype, axis
        )
    data = ops.quantize_per_channel(x, scales, zero_points, axis, qdtype.quant_min, qdtype.quant_max, qdtype.storage)
    return QTensor(data, scales, zero_points, qdtype, axis)


def make_per_tensor_quantized_tensor(data: torch.Tensor, scale: Any, zero_point: Any) -> QTensor:
    """A quantized tensor over given integers (uint8, int8 or int32), as torch._make_per_tensor_quantized_tensor."""
    qdtype = next((d for d in _KERNEL_DTYPES if d.storage == data.dtype), None)
    if qdtype is None:
        raise QuantizationError(
            f"make_per_tensor_quantized_tensor: data must be uint8, int8 or int32, got {data.dtype}"
        )
    operation = "make_per_tensor_quantized_tensor"
    return QTensor(data.clone(), check_scale(operation, scale), check_zero_point(operation, zero_point, qdtype), qdtype)


def make_per_channel_quantized_tensor(
    data: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, axis: int
) -> QTensor:
    """A quantized tensor over given integers with qparams per index of ``axis``."""
    qdtype = next((d for d in _KERNEL_DTYPES if d.storage == data.dtype), None)
    if qdtype is None:
        raise QuantizationError(
            f"make_per_channel_quantized_tensor: data must be uint8, int8 or int32, got {data.dtype}"
        )
    scales, zero_points, axis = _check_channels(
        "make_per_channel_quantized_tensor", data, scales, zero_points, axis, qdtype
    )
    return QTensor(data.clone(), scales, zero_points, qdtype, axis)


def dequantize(tensor: Any) -> Any:
    """float32 values of a quantized tensor, or of each in a list or tuple."""
    if isinstance(tensor, (list, tuple)):
        return type(tensor)(dequantize(t) for t in tensor)
    if isinstance(tensor, QTensor):
        return tensor.dequantize()
    if isinstance(tensor, torch.Tensor) and not is_qdtype(tensor.dtype):
        return tensor.float()
    raise QuantizationError(f"dequantize: a quantized tensor or a list of them is needed, got {type(tensor).__name__}")
