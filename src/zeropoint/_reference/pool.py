"""Reference of the pools. They keep scale and zero point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from zeropoint._reference.quantize import f32, integer_range, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "global_avg_pool2d", "max_pool2d", "pool_extent"]


def pool_extent(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def max_pool2d(
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> torch.Tensor:
    """Maximum of the integers: quantization is monotone, so it is the maximum of the reals."""
    out = F.max_pool2d(x.double(), list(kernel_size), list(stride), list(padding), list(dilation), ceil_mode)
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _average(sums: torch.Tensor, divisor: torch.Tensor, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    """``clamp(rhe(float32(sum of (q - z)) * float32(1 / divisor)) + z)``."""
    value = sums.float() * (1.0 / divisor.float())
    return round_clamp(value, zero_point, *integer_range(dtype), dtype).contiguous(memory_format=torch.channels_last)


def _check_window(operation: str, rows: int, columns: int) -> None:
    if rows * columns > 1 << 23:
        raise QuantizationError(
            f"{operation}: a window of {rows}x{columns} is averaged, at most 2^23 positions fit sums of 32 bits"
        )


def avg_pool2d(
    x: torch.Tensor,
    zero_point: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Mean of ``q - zero_point``; padding counts as real 0, in the divisor only if asked."""
    if divisor_override == 0:
        raise QuantizationError("avg_pool2d: divisor_override must not be 0")
    _check_window("avg_pool2d", *(min(k, n) for k, n in zip(kernel_size, x.shape[2:], strict=True)))
    window = (list(kernel_size), list(stride), list(padding), ceil_mode)
    sums = F.avg_pool2d(x.double() - zero_point, *window, True, 1)
    if divisor_override:
        divisor = torch.full_like(sums, float(divisor_override))
    else:
        # avg_pool2d of ones gives (taps inside) / (taps counted): count what torch counts.
        ones = torch.ones_like(x[:, :1], dtype=torch.float64)
        inside = F.avg_pool2d(ones, *window, True, 1)
        divisor = inside / F.avg_pool2d(ones, *window, True, None) if count_include_pad else inside
    return _average(sums, torch.round(divisor), zero_point, x.dtype)


def adaptive_avg_pool2d(x: torch.Tensor, zero_point: int, output_size: Sequence[int]) -> torch.Tensor:
    """Output i averages rows floor(i * H / out) to ceil((i + 1) * H / out), columns likewise."""
    (out_h, out_w), (height, width) = output_size, x.shape[2:]
    _check_window(
        "adaptive_avg_pool2d", *(min(n // max(o, 1) + 2, n) for o, n in zip(output_size, x.shape[2:], strict=True))
    )
    values = x.double() - zero_point
    shape = (x.shape[0], x.shape[1], out_h, out_w)
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for i in range(out_h):
        rows = slice(i * height // out_h, -(-(i + 1) * height // out_h))
        for j in range(out_w):
            window = values[:, :, rows, slice(j * width // out_w, -(-(j + 1) * width // out_w))]
            count = torch.tensor(float(window.shape[2] * window.shape[3]), device=x.device)
            sums = window.sum((2, 3), keepdim=True)
            result[:, :, i : i + 1, j : j + 1] = _average(sums, count, zero_point, x.dtype)
    return result


def global_avg_pool2d(
    x: torch.Tensor,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``clamp(rhe(float32(sum of (q - zx)) * m) + z)``, ``m = float32(sx / (H * W * s))``; [N, C, H, W] to [N, C, 1, 1]."""
    count = x.shape[2] * x.shape[3]
    if count == 0:
        raise QuantizationError("global_avg_pool2d: height and width must not be 0")
    _check_window("global_avg_pool2d", *x.shape[2:])
    sums = (x.to(torch.int64) - x_zero_point).sum((2, 3), keepdim=True)
    factor = torch.tensor(f32(x_scale) / (count * f32(scale)), dtype=torch.float64, device=x.device).float()
    result = round_clamp(sums.float() * factor, zero_point, quant_min, quant_max, dtype)
    return result.contiguous(memory_format=torch.channels_last)
