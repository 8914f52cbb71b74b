"""Reference of zeropoint::add, mul and lookup."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import f32, keep_layout, round_clamp

__all__ = ["add", "lookup", "mul"]


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device).float()


def add(
    a: torch.Tensor,
    a_scale: float,
    a_zero_point: int,
    b: torch.Tensor,
    b_scale: float,
    b_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``clamp(rhe(float32(a - za) * ma + float32(b - zb) * mb) + z)``, ``ma = float32(sa * (1 / s))``."""
    inverse = 1.0 / f32(scale)
    value_a = (a.to(torch.int32) - a_zero_point).float() * _scalar(f32(a_scale) * inverse, a)
    value_b = (b.to(torch.int32) - b_zero_point).float() * _scalar(f32(b_scale) * inverse, a)
    return keep_layout(round_clamp(value_a + value_b, zero_point, quant_min, quant_max, dtype), a)


def mul(
    a: torch.Tensor,
    a_scale: float,
    a_zero_point: int,
    b: torch.Tensor,
    b_scale: float,
    b_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``clamp(rhe(float32((a - za) * (b - zb)) * m) + z)``, ``m = float32(sa * sb * (1 / s))``."""
    product = (a.to(torch.int32) - a_zero_point) * (b.to(torch.int32) - b_zero_point)
    value = product.float() * _scalar(f32(a_scale) * f32(b_scale) * (1.0 / f32(scale)), a)
    return keep_layout(round_clamp(value, zero_point, quant_min, quant_max, dtype), a)


def lookup(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``table[x]`` by the byte of x: int8 -128 is entry 128."""
    return keep_layout(table[x.to(torch.int64) & 0xFF], x)
