"""Reference of zeropoint::normalize and softmax: sums of integers are exact, the rest is elementwise float64."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import f32, round_clamp

__all__ = ["normalize", "softmax"]


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
    sums ``S1`` of ``q - z`` and ``S2`` of its square over K elements, in float64:
    ``variance = (K * S2 - S1^2) / K^2``, ``y = (q - z - S1 / K) * (s / sqrt(variance * s^2 + eps)) * w + b``,
    then ``clamp(round_half_even(y / scale) + zero_point)``. K * S2 is exact in int64 up to K = 2^23.
    """
    values = (x.to(torch.int64) - x_zero_point).reshape(rows, -1)
    count = values.shape[1]
    s = f32(x_scale)
    square = (values * values).sum(1, keepdim=True)
    if centered:
        total = values.sum(1, keepdim=True)
        variance = (count * square - total * total).double() / float(count * count)
        deviation = values.double() - total.double() / count
    else:
        variance, deviation = square.double() / count, values.double()
    y = deviation * (s / torch.sqrt(variance * (s * s) + eps))
    if weight is not None or bias is not None:
        affine = weight if weight is not None else bias
        assert affine is not None
        index = (torch.arange(values.numel(), device=x.device) // inner % affine.numel()).reshape(values.shape)
        if weight is not None:
            y = y * weight.double()[index]
        if bias is not None:
            y = y + bias.double()[index]
    return round_clamp(y / f32(scale), zero_point, quant_min, quant_max, dtype).reshape(x.shape).contiguous()


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
    """``exp(s * (q - max)) / sum`` with exponentials in fixed point (2^-30): their sum is exact in any order."""
    distance = torch.arange(256, dtype=torch.float64, device=x.device)
    table = torch.round(torch.exp(-distance * f32(x_scale)) * float(1 << 30)).to(torch.int64)
    q = x.to(torch.int64)
    powers = table[q.amax(dim, keepdim=True) - q] if x.numel() else q
    share = powers.double() / powers.sum(dim, keepdim=True).double()
    return round_clamp(share / f32(scale), zero_point, quant_min, quant_max, dtype).contiguous()
