"""Reference of zeropoint::normalize, softmax (on integers) and add_norm (on float32)."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import f32, quantize_per_tensor, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["add_norm", "normalize", "softmax", "sum_in_parts"]


def normalize(
    x: torch.Tensor,
    rows: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    inner: int,
    x_scale: float,
    x_zero_point: int,
    eps: float,
    centered: bool,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Layer, group and instance norm (``centered``) and RMS norm over each of ``rows`` equal parts of ``x``.

    Element ``i`` of the contiguous ``x`` is scaled by ``weight[(i // inner) % len(weight)]``. With integer
    sums ``S1`` of ``q - z`` and ``S2`` of its square over K elements: ``variance = (K * S2 - S1^2) / K^2`` and
    ``rstd = s / sqrt(variance * s^2 + eps)`` in float64, rounded to float32 as ``mean = S1 / K``; then in float32
    ``y = ((q - z - mean) * rstd) * f32(w / scale) + f32(b / scale)``, each operation rounded, and
    ``clamp(round_half_even(y) + zero_point)``. The sums are exact up to K = 2^23.
    """
    values = (x.to(torch.int64) - x_zero_point).reshape(rows, -1)
    count = values.shape[1]
    s, inverse = f32(x_scale), 1.0 / f32(scale)
    square = (values * values).sum(1, keepdim=True)
    if centered:
        total = values.sum(1, keepdim=True)
        variance = (count * square - total * total).double() / float(count * count)
        mean = (total.double() / count).float()
    else:
        variance, mean = square.double() / count, torch.zeros(rows, 1, device=x.device)
    rstd = (s / torch.sqrt(variance * (s * s) + eps)).float()
    affine = weight if weight is not None else bias
    channels = 1 if affine is None else affine.numel()
    index = (torch.arange(values.numel(), device=x.device) // inner % channels).reshape(values.shape)
    one = torch.ones(channels, device=x.device)
    w = ((one if weight is None else weight).double() * inverse).float()[index]
    b = ((one * 0 if bias is None else bias).double() * inverse).float()[index]
    y = ((values.float() - mean) * rstd) * w + b
    return (
        round_clamp(y.clamp(-65536.0, 65536.0), zero_point, quant_min, quant_max, dtype).reshape(x.shape).contiguous()
    )


_NORM_LANES = 64


def sum_in_parts(rows: torch.Tensor) -> torch.Tensor:
    """Of each row: part ``j`` adds elements ``j, j + 64, ...`` in this order; then halves of the parts are added."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % _NORM_LANES))
    parts = torch.zeros(rows.shape[0], _NORM_LANES, device=rows.device)
    for step in padded.split(_NORM_LANES, 1):
        parts = parts + step
    while parts.shape[1] > 1:
        half = parts.shape[1] // 2
        parts = parts[:, :half] + parts[:, half:]
    return parts


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    centered: bool,
    keep_sum: bool,
    keep_norm: bool,
    scale: float = 1.0,
    zero_point: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``s = x + residual``, its layer norm (``centered``) or RMS norm over the last dimension, and that in 8 bits.

    All in float32, each operation rounded by itself: ``mean = sum(s) / n`` (0 unless centered), ``rstd = 1 /
    sqrt(sum((s - mean)^2) / n + eps)``, ``((s - mean) * rstd) * weight + bias``; sums in 64 parts, so that their order is
    the same everywhere. What is not kept, and the third result without a dtype, is empty.
    """
    if x.dtype != torch.float32 or x.dim() < 1:
        raise QuantizationError(f"add_norm: x must be float32 [..., features], got {x.dtype} {tuple(x.shape)}")
    if residual is not None and (residual.dtype != torch.float32 or residual.shape != x.shape):
        raise QuantizationError(f"add_norm: residual must be float32 {tuple(x.shape)}, got {tuple(residual.shape)}")
    n = x.shape[-1]
    for fixed in (weight, bias):
        if fixed is not None and fixed.numel() != n:
            raise QuantizationError(f"add_norm: weight and bias must have {n} values, got {fixed.numel()}")
    total = x if residual is None else x + residual
    rows = total.reshape(-1, n) if n else total.reshape(0, 0)
    mean = sum_in_parts(rows) / n if centered and n else torch.zeros(rows.shape[0], 1, device=x.device)
    distance = rows - mean
    variance = sum_in_parts(distance * distance) / max(n, 1)
    # By way of float64: torch's own square root of float32 is not always the nearest one.
    rstd = 1.0 / torch.sqrt((variance + f32(eps)).double()).float()
    value = distance * rstd
    value = value if weight is None else value * weight
    value = (value if bias is None else value + bias).reshape(x.shape)
    nothing = torch.empty(0, device=x.device)
    q = nothing.to(torch.uint8) if dtype is None else quantize_per_tensor(value, scale, zero_point, dtype)
    return (
        total.clone(memory_format=torch.contiguous_format) if keep_sum else nothing,
        value.contiguous() if keep_norm else nothing.clone(),
        q,
    )


def _exp(x: torch.Tensor) -> torch.Tensor:
    """exp of float64 ``x <= 0`` from additions and multiplications alone: the same last bit everywhere."""
    x = x.clamp(min=-40.0)
    n = torch.round(x * 1.4426950408889634)
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = torch.full_like(x, 1.0 / 479001600.0)
    for divisor in (39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
        p = p * r + 1.0 / divisor
    return torch.ldexp(p, n.to(torch.int32))


def softmax(
    x: torch.Tensor,
    dim: int,
    x_scale: float,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``exp(s * (q - max)) / sum`` with exponentials in fixed point (2^-23): their sum is exact in any order.

    ``clamp(round_half_even(f32(power) * f32(1 / (sum * scale))) + zero_point)``, the factor taken in float64.
    """
    distance = torch.arange(256, dtype=torch.float64, device=x.device)
    table = torch.round(_exp(-distance * f32(x_scale)) * float(1 << 23)).to(torch.int64)
    q = x.to(torch.int64)
    powers = table[q.amax(dim, keepdim=True) - q] if x.numel() else q
    factor = (1.0 / (powers.sum(dim, keepdim=True).double() * f32(scale))).float()
    value = (powers.float() * factor).clamp(max=65536.0)
    return round_clamp(value, zero_point, quant_min, quant_max, dtype).contiguous()
