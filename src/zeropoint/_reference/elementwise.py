"""Reference of zeropoint::add, mul and lookup, and of add_float, rotary and silu_mul on float32."""

from __future__ import annotations

import torch

from zeropoint._reference.quantize import exp32, f32, is_channels_last, keep_layout, round_clamp
from zeropoint.errors import QuantizationError

__all__ = ["add", "add_float", "add_integers", "arange", "lookup", "mul", "rotary", "silu_mul"]


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device).float()


def _result(result: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In the layout of ``a``; NHWC where ``b`` has one value per channel, [N, C, 1, 1]."""
    if a.shape == b.shape:
        return keep_layout(result, a)
    by_channel = a.dim() == b.dim() == 4 and a.shape[:2] == b.shape[:2] and tuple(b.shape[2:]) == (1, 1)
    if not by_channel:
        raise QuantizationError(
            "add, mul: b must have the shape of a, or [N, C, 1, 1] where a is [N, C, H, W]; broadcast others first"
        )
    return result.contiguous(memory_format=torch.channels_last)


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
    return _result(round_clamp(value_a + value_b, zero_point, quant_min, quant_max, dtype), a, b)


def add_float(a: torch.Tensor, b: torch.Tensor, subtract: bool) -> torch.Tensor:
    """``a + b`` or ``a - b`` of float32 tensors, broadcast; contiguous, or NHWC where both are."""
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        raise QuantizationError(f"add_float: a and b must be float32, got {a.dtype} and {b.dtype}")
    result = a - b if subtract else a + b
    alike = a.shape == b.shape and is_channels_last(a) and is_channels_last(b)
    return keep_layout(result, a) if alike else result.contiguous()


def add_integers(a: torch.Tensor, b: torch.Tensor, subtract: bool) -> torch.Tensor:
    """``a + b`` or ``a - b`` of int64 tensors, broadcast: positions, lengths and their like."""
    if a.dtype != torch.int64 or b.dtype != torch.int64:
        raise QuantizationError(f"add_integers: a and b must be int64, got {a.dtype} and {b.dtype}")
    return (a - b if subtract else a + b).contiguous()


def arange(start: int, end: int, step: int) -> torch.Tensor:
    """int64 ``start, start + step, ...`` before ``end``: ``torch.arange`` of integers, whose own form takes ``Scalar``s.

    Raises:
        QuantizationError: a step of 0, or one that leads away from ``end``.
    """
    if step == 0 or (end - start) * step < 0:
        raise QuantizationError(f"arange: the step {step} does not lead from {start} to {end}")
    return torch.arange(start, end, step)


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
    return _result(round_clamp(value, zero_point, quant_min, quant_max, dtype), a, b)


def lookup(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``table[x]`` by the byte of x: int8 -128 is entry 128."""
    return keep_layout(table[x.to(torch.int64) & 0xFF], x)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x * cos + rotated * sin`` of float32, ``rotated`` the negative upper half of the features, then the lower half.

    x [..., D], D even; cos and sin have D features and the other dimensions of x, or 1. Rotary position embedding (Su et
    al., 2021) in the order of features that Llama has. Each operation is rounded by itself; contiguous.
    """
    if any(t.dtype != torch.float32 for t in (x, cos, sin)) or x.shape[-1] % 2:
        raise QuantizationError("rotary: x, cos and sin must be float32, with an even number of features")
    if any(t.shape[-1] != x.shape[-1] or torch.broadcast_shapes(t.shape, x.shape) != x.shape for t in (cos, sin)):
        raise QuantizationError("rotary: cos and sin must have the features of x, and its other dimensions or 1")
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).contiguous()


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``gate / (1 + exp(-gate)) * up`` of float32 with the exponential of :func:`exp32`; contiguous.

    The gated unit between the linear layers of a Llama (SwiGLU, Shazeer, 2020).
    """
    if gate.dtype != torch.float32 or up.dtype != torch.float32 or gate.shape != up.shape:
        raise QuantizationError("silu_mul: gate and up must be float32 of the same shape")
    return (gate / (1.0 + exp32(0.0 - gate)) * up).contiguous()
