"""What linear and conv2d do with their accumulators."""

from __future__ import annotations

import torch

from zeropoint._reference.elementwise import add, lookup
from zeropoint._reference.quantize import f32, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["check_accumulator", "epilogue"]


def check_accumulator(weight: torch.Tensor) -> None:
    """``weight`` is [out, ...], integer, zero point removed. The bound under which int32 is exact."""
    worst = int(weight.abs().reshape(weight.shape[0], -1).sum(1).max()) if weight.numel() else 0
    if worst * 255 > 2**31 - 1:
        raise QuantizationError(f"pack weight: sum |w| = {worst} of an output channel overflows an int32 accumulator")


def epilogue(
    acc: torch.Tensor,
    axis: int,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: float,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    sum_scale: float = 1.0,
    sum_zero_point: int = 0,
    sum_min: int = 0,
    sum_max: int = 255,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """``acc`` (exact integers in float64) to the output dtype.

    ``clamp(round_half_even(float32(acc) * m + b) + zero_point)`` with
    ``m = float32(x_scale * (1 / scale) * w_scale)`` and ``b = float32(bias * (1 / scale))`` taken in
    float64; int32 output is ``acc`` itself, float32 output has ``scale`` 1 and no rounding.
    """
    if dtype == torch.int32:
        return acc.to(torch.int32)
    shape = [1] * acc.dim()
    shape[axis] = -1
    quantized = dtype != torch.float32
    inverse = 1.0 / f32(scale) if quantized else 1.0
    multiplier = (f32(x_scale) * inverse * w_scale.double()).float().reshape(shape)
    # By way of integers: a float64 sum of products can be -0.
    value = acc.to(torch.int64).float() * multiplier
    if bias is not None:
        value = value + (bias.double() * inverse).float().reshape(shape)
    if not quantized:
        return value
    result = round_clamp(value, zero_point, quant_min, quant_max, dtype)
    if residual is not None:
        result = add(
            result,
            scale,
            zero_point,
            residual,
            residual_scale,
            residual_zero_point,
            sum_scale,
            sum_zero_point,
            sum_min,
            sum_max,
            dtype,
        )
    return result if table is None else lookup(result, table)
