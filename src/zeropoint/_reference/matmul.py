"""Reference of zeropoint::matmul, the product of two activations."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import f32, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["matmul"]

# |q - zero_point| <= 255: 256 products sum to at most 256 * 255 * 255 < 2^24, exact in float32 in any order.
_EXACT_K = 256


def matmul(
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
    """``clamp(rhe(float32(sum (a - za) * (b - zb)) * m) + z)``, ``m = float32(sa * sb * (1 / s))``.

    Shapes broadcast as in torch.matmul. Blocks of K that are exact in float32 run on the float matrix product.
    """
    if a.dim() == 0 or b.dim() == 0:
        raise QuantizationError("matmul: both arguments must have at least one dimension")
    k = a.shape[-1]
    if k != b.shape[-2 if b.dim() > 1 else 0]:
        raise QuantizationError(f"matmul: shapes {tuple(a.shape)} and {tuple(b.shape)} do not multiply")
    if k > 33025:
        raise QuantizationError(
            f"matmul: the inner dimension may be at most 33025, so that int32 holds every sum, got {k}"
        )
    x, y = a.float() - a_zero_point, b.float() - b_zero_point
    total: torch.Tensor | None = None
    for start in range(0, max(k, 1), _EXACT_K):
        part = x[..., start : start + _EXACT_K]
        other = y[start : start + _EXACT_K] if y.dim() == 1 else y[..., start : start + _EXACT_K, :]
        product = torch.matmul(part, other).to(torch.int64)
        total = product if total is None else total + product
    assert total is not None
    multiplier = torch.tensor(f32(a_scale) * f32(b_scale) * (1.0 / f32(scale)), dtype=torch.float64).float()
    value = total.float() * multiplier.to(a.device)
    return round_clamp(value, zero_point, quant_min, quant_max, dtype).contiguous()
