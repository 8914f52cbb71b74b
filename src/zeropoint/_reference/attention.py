"""Reference of zeropoint::attention."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import exp32, f32, integer_range, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["attention"]


def attention(
    q: torch.Tensor,
    q_scale: float,
    q_zero_point: int,
    k: torch.Tensor,
    k_scale: float,
    k_zero_point: int,
    v: torch.Tensor,
    v_scale: float,
    v_zero_point: int,
    factor: float,
    scale: float,
    zero_point: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``softmax(q k' * factor) v``: q [B, H, M, D], k [B, H, T, D], v [B, H, T, E] to [B, H, M, E], heads side by side.

    Scores ``s`` are exact integers. ``p = rhe(255 * exp(float32(s - max of the row) * float32(sq * sk * factor)))`` in
    float32; the row's result is ``clamp(rhe(float32(sum p (v - zv)) * float32(sv / s / sum p)) + z)``.
    """
    if q.dim() != 4 or k.shape[:2] != q.shape[:2] or v.shape[:3] != k.shape[:3] or k.shape[3] != q.shape[3]:
        raise QuantizationError("attention: q [B, H, M, D], k [B, H, T, D] and v [B, H, T, E] do not fit together")
    centred = lambda x, zero: x.double() - zero
    scores = centred(q, q_zero_point) @ centred(k, k_zero_point).transpose(-1, -2)
    multiplier = torch.tensor(f32(q_scale) * f32(k_scale) * factor, dtype=torch.float64).float()
    distances = (scores - scores.amax(-1, keepdim=True)).float() * multiplier
    p = torch.round(exp32(distances) * 255.0).double()
    sums = p.sum(-1, keepdim=True)
    rate = (f32(v_scale) / f32(scale) / sums).float()
    value = (p @ centred(v, v_zero_point)).float() * rate
    out = round_clamp(value, zero_point, *integer_range(dtype), dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)
