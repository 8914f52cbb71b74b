"""Reference of zeropoint::attention."""

from __future__ import annotations

import math

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
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """``softmax(q k' * factor) v``: q [B, H, M, D], k [B, G, T, D], v [B, G, T, E] to [B, H, M, E], heads side by side.

    ``H / G`` heads of queries share one of keys. ``mask`` [B, H, M, T], each or 1: bool, where False takes a key away, or
    float32, added to the scores. ``causal`` takes the keys behind the query's index away.

    Scores ``s`` are exact integers. ``p = rhe(255 * exp(float32(s - max of the row) * float32(sq * sk * factor)))`` in
    float32; the row's result is ``clamp(rhe(float32(sum p (v - zv)) * float32(sv / s / sum p)) + z)``. With a mask,
    ``p = rhe(255 * exp(z - max of the row))``, ``z = float32(s) * float32(sq * sk * factor) + min(mask, 1e30)``; keys whose
    mask is at or below -1e29, or NaN, are taken away, and a row without keys gives real 0.
    """
    if (
        q.dim() != 4 or k.shape[0] != q.shape[0] or v.shape[:3] != k.shape[:3] or k.shape[3] != q.shape[3]
        or q.shape[1] % k.shape[1]
    ):  # fmt: skip
        raise QuantizationError(
            "attention: q [B, H, M, D], k [B, G, T, D] and v [B, G, T, E], G dividing H, do not fit together"
        )
    if causal and mask is not None:
        raise QuantizationError("attention: give a mask or causal, not both")
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    centred = lambda x, zero: x.double() - zero
    scores = centred(q, q_zero_point) @ centred(k, k_zero_point).transpose(-1, -2)
    multiplier = torch.tensor(f32(q_scale) * f32(k_scale) * factor, dtype=torch.float64).float()
    seen = torch.ones(scores.shape, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril()
    if mask is None:
        largest = scores.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
        distances = (scores - largest).float() * multiplier
    else:
        added = torch.where(mask, 0.0, -math.inf).float() if mask.dtype == torch.bool else mask
        seen = seen & (added > torch.tensor(-1e29))
        z = scores.float() * multiplier + added.clamp(max=1e30).masked_fill(~seen, 0.0)
        distances = (z - z.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)).masked_fill(~seen, 0.0)
    p = torch.where(seen, torch.round(exp32(distances) * 255.0).double(), 0.0)
    sums = p.sum(-1, keepdim=True)
    rate = torch.where(sums > 0, f32(v_scale) / f32(scale) / sums, 0.0).float()
    value = (p @ centred(v, v_zero_point)).float() * rate
    out = round_clamp(value, zero_point, *integer_range(dtype), dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)
