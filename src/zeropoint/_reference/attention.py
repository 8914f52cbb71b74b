"""Reference of zeropoint::attention (on integers) and cached_attention (on float32)."""

from __future__ import annotations

import math

import torch

from zeropoint._reference.normalization import sum_in_parts
from zeropoint._reference.quantize import exp32, f32, fma32, integer_range, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["attention", "cached_attention"]


def _added(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys a mask leaves, and what it adds to the scores; 0 where it takes the key away."""
    added = torch.where(mask, 0.0, -math.inf).float() if mask.dtype == torch.bool else mask
    visible = added > torch.tensor(-1e29)
    return visible, added.clamp(max=1e30).masked_fill(~visible, 0.0)


def _probabilities(y: torch.Tensor) -> torch.Tensor:
    """``rhe(255 * 2^y)`` for float32 y <= 0 by a polynomial of degree 3, operation for operation; float64."""
    y = y.clamp(min=-24.0)
    shifted = y + 12582912.0
    r = y - (shifted - 12582912.0)
    p = fma32(r, f32(14.0687761), f32(61.8658371))
    for coefficient in (176.781555, 254.981659):
        p = fma32(p, r.double(), f32(coefficient))
    bits = p.contiguous().view(torch.int32) + (shifted.contiguous().view(torch.int32) << 23)
    return torch.round(bits.view(torch.float32)).double()


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

    Scores ``s`` are exact integers. ``p = rhe(255 * 2^(float32(s - max of the row) * float32(sq * sk * factor *
    log2(e))))`` in float32 (:func:`_probabilities`); the row's result is ``clamp(rhe(float32(sum p (v - zv)) *
    float32(sv / s / sum p)) + z)``. With a mask, ``p = rhe(255 * 2^((z - max of the row) * float32(log2(e))))``,
    ``z = float32(s) * float32(sq * sk * factor) + min(mask, 1e30)``; keys whose mask is at or below -1e29, or NaN, are taken away, and a row without keys gives real 0.
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
    of_scores = f32(q_scale) * f32(k_scale) * factor * (1.0 if mask is not None else 1.4426950408889634)
    multiplier = torch.tensor(of_scores, dtype=torch.float64).float()
    seen = torch.ones(scores.shape, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril()
    if mask is None:
        largest = scores.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
        distances = (scores - largest).float() * multiplier
    else:
        visible, added = _added(mask)
        seen = seen & visible
        z = scores.float() * multiplier + added
        distances = (z - z.masked_fill(~seen, -math.inf).amax(-1, keepdim=True)).masked_fill(~seen, 0.0)
        distances = distances * f32(1.44269504)
    p = torch.where(seen, _probabilities(distances), 0.0)
    sums = p.sum(-1, keepdim=True)
    rate = torch.where(sums > 0, f32(v_scale) / f32(scale) / sums, 0.0).float()
    value = (p @ centred(v, v_zero_point)).float() * rate
    out = round_clamp(value, zero_point, *integer_range(dtype), dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def cached_attention(
    q: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    factor: float,
    mask: torch.Tensor | None = None,
    keep_cache: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of a decoder: ``softmax(q [past_k, k]' * factor + mask) [past_v, v]`` of float32.

    q [B, H, 1, D], past_k [B, G, S, D], past_v [B, G, S, E], k [B, G, N, D], v [B, G, N, E] to [B, H, 1, E]; ``H / G`` heads
    of queries share one of keys. ``mask`` as in :func:`attention`. With ``keep_cache`` the joined keys and values are the
    second and third result, else these are empty.

    All in float32, each operation rounded by itself: scores are sums over features in 64 parts, times ``factor``, plus the
    mask; ``w = exp(score - max(largest score, -1e30))``, 0 for keys that are taken away; values times ``w`` are added key by
    key, and the sum is multiplied by ``1 / sum(w)``, which is in 64 parts, too, or by 0 where no key is left.
    """
    if any(t.dim() != 4 or t.dtype != torch.float32 for t in (q, past_k, past_v, k, v)):
        raise QuantizationError("cached_attention: q, keys and values must be float32 [batch, heads, rows, features]")
    joined = (past_k.shape[:2] == k.shape[:2] == past_v.shape[:2] == v.shape[:2] and past_k.shape[3] == k.shape[3]
              and past_v.shape[3] == v.shape[3] and past_k.shape[2] == past_v.shape[2] and k.shape[2] == v.shape[2])  # fmt: skip
    if not joined or q.shape[0] != k.shape[0] or q.shape[2] != 1 or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise QuantizationError(
            "cached_attention: q [B, H, 1, D], keys [B, G, rows, D] and values [B, G, rows, E], G dividing H, do not fit together"
        )
    keys, values = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    shared = q.shape[1] // k.shape[1]
    all_keys, all_values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    products = q * all_keys
    z = sum_in_parts(products.reshape(-1, q.shape[3])).reshape(products.shape[:3]) * f32(factor)
    seen = torch.ones(z.shape, dtype=torch.bool, device=q.device)
    if mask is not None:
        visible, added = _added(mask)
        seen = seen & visible.squeeze(2)
        z = z + added.squeeze(2)
    largest = z.masked_fill(~seen, -1e30).amax(-1, keepdim=True).clamp(min=-1e30)
    w = exp32(z - largest).masked_fill(~seen, 0.0)
    total = sum_in_parts(w.reshape(-1, w.shape[-1])).reshape(*w.shape[:2], 1)
    out = torch.zeros(*q.shape[:2], v.shape[3], device=q.device)
    for key in range(keys.shape[2]):
        out = out + w[..., key, None] * all_values[:, :, key]
    out = (out * torch.where(total == 0, 0.0, 1.0 / total)).unsqueeze(2)
    if not keep_cache:
        return out, torch.empty(0, device=q.device), torch.empty(0, device=q.device)
    return out, keys, values
