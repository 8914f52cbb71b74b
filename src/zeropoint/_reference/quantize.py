"""Quantize, dequantize and the roundings they share."""

from __future__ import annotations

import ctypes

import torch

__all__ = [
    "dequantize_per_channel",
    "dequantize_per_tensor",
    "exp32",
    "f32",
    "fma32",
    "integer_range",
    "channels_last_format",
    "is_channels_last",
    "keep_layout",
    "quantize_per_channel",
    "quantize_per_tensor",
    "requantize",
    "round_clamp",
]


def f32(value: float) -> float:
    """``value`` rounded to float32, as a Python float."""
    return ctypes.c_float(value).value


def integer_range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def channels_last_format(dims: int) -> torch.memory_format:
    """The layout of [N, C, H, W] or [N, C, D, H, W] with channels side by side."""
    return torch.channels_last_3d if dims == 5 else torch.channels_last


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether ``x`` is channels_last, of images or volumes, and not contiguous."""
    dims = x.dim()
    return not x.is_contiguous() and dims in (4, 5) and x.is_contiguous(memory_format=channels_last_format(dims))


def keep_layout(result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``result`` in the layout kernels give: channels_last if ``like`` is that and not contiguous."""
    if is_channels_last(like):
        return result.contiguous(memory_format=channels_last_format(like.dim()))
    return result.contiguous()


def fma32(a: torch.Tensor, b: float | torch.Tensor, c: float | torch.Tensor) -> torch.Tensor:
    """``a * b + c`` for float32 values, rounded once to float32.

    The product of two float32 is exact in float64. The sum is rounded to odd there (its last bit set
    when anything was lost), after which rounding to float32 cannot round twice.
    """
    product = a.double() * b
    total = product + c
    virtual = total - product
    error = (product - (total - virtual)) + (c - virtual)
    even = (total.view(torch.int64) & 1) == 0
    infinity = torch.tensor(float("inf"), dtype=torch.float64, device=a.device)
    toward = torch.where(error > 0, infinity, -infinity)
    odd = torch.where((error != 0) & even & torch.isfinite(total), torch.nextafter(total, toward), total)
    return odd.float()


def exp32(x: torch.Tensor) -> torch.Tensor:
    """exp in float32 by the polynomial of the kernels, ``2^n * p(r)``, operation for operation; x within +-43."""
    x = torch.where(x > 43.0, 43.0, x)
    x = torch.where(x < -43.0, -43.0, x)
    shifted = fma32(x, f32(1.44269504), 12582912.0)
    n = shifted - 12582912.0
    r = fma32(n, f32(-0.693147182), x.double())
    p = fma32(r, f32(8.31243000e-3), f32(4.18910900e-2))
    for coefficient in (1.66671180e-1, 4.99992260e-1):
        p = fma32(p, r.double(), f32(coefficient))
    p = fma32(p * r, r.double(), r.double()) + 1.0
    power = (shifted.contiguous().view(torch.int32) - 0x4B400000 + 127) << 23
    return p * power.view(torch.float32)


def round_clamp(
    value: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int, dtype: torch.dtype
) -> torch.Tensor:
    """``clamp(round_half_even(value) + zero_point, low, high)``; float64 holds all of it exactly."""
    return torch.clamp(torch.round(value).double() + zero_point, low, high).to(dtype)


def quantize_per_tensor(x: torch.Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    """``clamp(round_half_even(fma(x, 1 / scale, zero_point)))``; NaN becomes ``zero_point``.

    x is float32, bfloat16 or half. For int32 the product is rounded before the sum. torch.quantize_per_tensor on CPU in 2.13, bit for bit,
    but for NaN.
    """
    x = x.float()
    inverse = torch.tensor(1.0) / torch.tensor(scale, dtype=torch.float32)
    offset = torch.tensor(float(zero_point), dtype=torch.float32)
    if dtype == torch.int32:
        value = x * inverse.to(x.device) + offset.to(x.device)
    else:
        value = fma32(x, float(inverse), float(offset))
    low, high = integer_range(dtype)
    clamped = torch.clamp(torch.round(value).double(), low, high)
    return keep_layout(torch.where(torch.isnan(value), float(zero_point), clamped).to(dtype), x)


def _along(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def quantize_per_channel(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``clamp(round_half_even(float32(x * (1 / scale)) + zero_point))``: two roundings before the last.

    torch.quantize_per_channel on CPU in 2.13, bit for bit, but for NaN (``zero_point`` here).
    """
    inverse = _along(1.0 / scales.float(), x, axis)
    offset = _along(zero_points.float(), x, axis)
    value = x * inverse + offset
    clamped = torch.clamp(torch.round(value).double(), quant_min, quant_max)
    return torch.where(torch.isnan(value), offset.double().clamp(quant_min, quant_max), clamped).to(dtype).contiguous()


def dequantize_per_tensor(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """``float32(q - zero_point) * scale`` in float32."""
    return keep_layout(
        (q.to(torch.int64) - zero_point).float() * torch.tensor(scale, dtype=torch.float32, device=q.device), q
    )


def dequantize_per_channel(q: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, axis: int) -> torch.Tensor:
    """``float32(q - zero_point[c]) * scale[c]`` in float32."""
    return (
        (q.to(torch.int64) - _along(zero_points.to(torch.int64), q, axis)).float() * _along(scales.float(), q, axis)
    ).contiguous()


def requantize(acc: torch.Tensor, multiplier: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    """``clamp(round_half_even(float32(acc) * multiplier) + zero_point)``."""
    value = acc.float() * torch.tensor(multiplier, dtype=torch.float32, device=acc.device)
    return keep_layout(round_clamp(value, zero_point, *integer_range(dtype), dtype), acc)
