"""Scale and zero point from a range: the one implementation of these formulas (docs/numerics.md)."""

from __future__ import annotations

import torch

from zeropoint.errors import QuantizationError
from zeropoint.tensor._dtype import (
    QDtype,
    QScheme,
    as_qdtype,
    as_qscheme,
    is_per_channel,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    quint8,
)

__all__ = ["EPS", "choose_qparams", "qparams_of_range", "quant_range"]

EPS = torch.finfo(torch.float32).eps
"""Smallest scale: keeps 1 / scale finite for an all-zero range."""


def quant_range(
    dtype: QDtype, quant_min: int | None = None, quant_max: int | None = None, reduce_range: bool = False
) -> tuple[int, int]:
    """The integer range of ``dtype``, narrowed by ``quant_min``/``quant_max`` or by one bit.

    Raises:
        QuantizationError: the range is empty, lies outside the dtype, or excludes 0 for a signed one.
    """
    if quant_min is None or quant_max is None:
        low, high = dtype.quant_min, dtype.quant_max
        if reduce_range:
            low, high = (low // 2, high // 2)
        return low, high
    if not quant_min < quant_max:
        raise QuantizationError(f"quant_min must be less than quant_max, got [{quant_min}, {quant_max}]")
    if not quant_min <= 0 <= quant_max:
        raise QuantizationError(f"the range must include 0, got [{quant_min}, {quant_max}]")
    if quant_max - quant_min + 1 > 1 << dtype.bits:
        raise QuantizationError(
            f"[{quant_min}, {quant_max}] does not fit into {dtype!r}: [{dtype.quant_min}, {dtype.quant_max}]"
        )
    if reduce_range:
        return quant_min // 2, quant_max // 2
    return quant_min, quant_max


def choose_qparams(
    min_val: torch.Tensor,
    max_val: torch.Tensor,
    dtype: object = quint8,
    qscheme: object = per_tensor_affine,
    quant_min: int | None = None,
    quant_max: int | None = None,
    eps: float | torch.Tensor = EPS,
    custom_range: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero point (int32) that cover ``[min_val, max_val]`` and real 0.

    Formulas, in float32, of ``torch.ao.quantization.observer._calculate_qparams``:

    * affine: ``scale = max((max - min) / (qmax - qmin), eps)``,
      ``zero_point = clamp(qmin - round(min / scale), qmin, qmax)``;
    * symmetric: ``scale = max(max(-min, max) / ((qmax - qmin) / 2), eps)``, zero point 0 for signed
      dtypes, the middle of the range (128 for all of quint8) for unsigned ones;
    * float qparams: ``scale = max - min`` over the range, zero point ``-min / scale`` kept as float.

    Args:
        min_val, max_val: observed range, 0-d or one value per channel.
        custom_range: whether the range is narrower than the dtype by request; then the symmetric
            zero point of quint8 is the middle of that range.

    Raises:
        QuantizationError: min above max, or NaN or inf in either.
    """
    dtype, qscheme = as_qdtype(dtype), as_qscheme(qscheme)
    low, high = quant_range(dtype, quant_min, quant_max)
    if min_val.numel() and not bool(
        (min_val <= max_val).all() and torch.isfinite(min_val).all() and torch.isfinite(max_val).all()
    ):
        raise QuantizationError(
            f"choose_qparams: the range must be finite with min <= max, got min_val={min_val}, max_val={max_val}"
        )
    return qparams_of_range(min_val, max_val, dtype, qscheme, low, high, eps, custom_range)


def qparams_of_range(
    min_val: torch.Tensor,
    max_val: torch.Tensor,
    dtype: QDtype,
    qscheme: QScheme,
    low: int,
    high: int,
    eps: float | torch.Tensor,
    custom_range: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formulas of :func:`choose_qparams` alone, for a range known to be one: no question that a tracer could not answer."""
    min_val, max_val = min_val.float(), max_val.float()
    zero = torch.zeros_like(min_val)
    below, above = torch.min(min_val, zero), torch.max(max_val, zero)
    eps_value = torch.as_tensor(eps, dtype=torch.float32, device=min_val.device)
    if qscheme in (per_tensor_symmetric, per_channel_symmetric):
        scale = torch.max(torch.max(-below, above) / (float(high - low) / 2), eps_value)
        middle = 0
        if not dtype.signed:
            middle = (low + high) // 2 if custom_range else 1 << (dtype.bits - 1)
        zero_point = torch.full(min_val.shape, middle, dtype=torch.int32, device=min_val.device)
    elif qscheme is per_channel_affine_float_qparams:
        scale = (max_val - min_val) / float(high - low)
        scale = torch.where(scale > eps_value, scale, torch.ones_like(scale))
        return scale, -1 * min_val / scale
    else:
        scale = torch.max((above - below) / float(high - low), eps_value)
        zero_point = torch.clamp(low - torch.round(below / scale).to(torch.int32), low, high)
    if is_per_channel(qscheme) or min_val.dim() > 0:
        return scale, zero_point
    return scale.reshape(1), zero_point.reshape(1)
