"""Reference of zeropoint::interpolate_bilinear2d."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zeropoint.errors import QuantizationError

__all__ = ["bilinear_extent", "interpolate_bilinear2d"]


def bilinear_extent(size: int, scale: float) -> int:
    """What torch makes of a scale factor: rounded down."""
    return int(size * scale)


def _sources(
    size: int, out: int, align_corners: bool, factor: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and second position that each output looks at, and the float32 weight of the second."""
    position = torch.arange(out, dtype=torch.float64, device=device)
    if align_corners:
        at = position * ((size - 1) / (out - 1) if out > 1 else 0.0)
    else:
        at = ((1.0 / factor if factor > 0 else size / out) * (position + 0.5) - 0.5).clamp(min=0.0)
    first = at.to(torch.int64).clamp(max=size - 1)
    return first, (first + 1).clamp(max=size - 1), (at - first.double()).float()


def interpolate_bilinear2d(
    x: torch.Tensor, output_size: Sequence[int], align_corners: bool, scale_h: float, scale_w: float
) -> torch.Tensor:
    """x [N, C, H, W] to [N, C, *output_size], or by factors where that is empty; scale and zero point stay.

    On bytes of the uint8 domain, each operation rounded to float32: ``a = q00 + (q01 - q00) * ww``, ``b`` of the lower pair
    likewise, ``rhe(a + (b - a) * wh)``. Positions are torch's, in float64; factors of 0 stand for the ratio of sizes.
    """
    if x.dim() != 4 or x.dtype not in (torch.uint8, torch.int8):
        raise QuantizationError("interpolate_bilinear2d: x must be uint8 or int8 [N, C, H, W]")
    height, width = x.shape[2:]
    size = list(output_size) or [bilinear_extent(height, scale_h), bilinear_extent(width, scale_w)]
    if len(size) != 2 or min(size) <= 0:
        raise QuantizationError(
            "interpolate_bilinear2d: output_size needs 2 positive values, or factors that give them"
        )
    shift = 128 if x.dtype == torch.int8 else 0
    value = (x.to(torch.int32) + shift).float()
    top, bottom, wh = _sources(height, size[0], align_corners, scale_h, x.device)
    left, right, ww = _sources(width, size[1], align_corners, scale_w, x.device)
    mix = lambda first, second, weight: first + (second - first) * weight
    upper, lower = (mix(v[..., left], v[..., right], ww) for v in (value[:, :, top], value[:, :, bottom]))
    out = torch.round(mix(upper, lower, wh.unsqueeze(1))).clamp(0, 255).to(torch.int32) - shift
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)
