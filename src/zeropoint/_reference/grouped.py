"""Reference of zeropoint::linear_grouped: exact integer products per group of K, added in float32."""

from __future__ import annotations

import torch

from zeropoint.errors import QuantizationError

__all__ = ["PART", "check_group_size", "linear_grouped", "linear_grouped_pack", "linear_grouped_split", "pair"]

PART = 64  # columns: every instruction set's panels end with them
_SMALLEST = 2.0**-100
_TOP = {8: 127.0, 15: 16383.0}


def check_group_size(operation: str, group_size: int) -> None:
    """Above 256 inputs a product of 15-bit activations with bytes could leave int32."""
    if group_size not in range(32, 257, 32):
        raise QuantizationError(f"{operation}: group_size must be a multiple of 32 from 32 to 256, got {group_size}")


def pair(weight: torch.Tensor) -> torch.Tensor:
    """int8 [N, K] in [-8, 7], K even, as uint8 [N, K / 2]: each plus 8, the first of two in the low bits."""
    q = (weight + 8).to(torch.uint8)
    return (q[:, ::2] | q[:, 1::2] << 4).contiguous()


def _unpaired(weight: torch.Tensor) -> torch.Tensor:
    if weight.dtype != torch.uint8:
        return weight
    return torch.stack([weight & 15, weight >> 4], 2).flatten(1).to(torch.int8) - 8


def linear_grouped_pack(
    weight: torch.Tensor, w_scale: torch.Tensor, w_zero_point: torch.Tensor | None, group_size: int, w_bits: int
) -> torch.Tensor:
    """The reference needs no packing; the result only has to exist."""
    if w_bits not in (8, 4):
        raise QuantizationError(f"linear_grouped_pack: weights have 8 or 4 bits, got {w_bits}")
    check_group_size("linear_grouped_pack", group_size)
    if weight.dtype == torch.uint8 and w_bits != 4:
        raise QuantizationError("linear_grouped_pack: two weights in a byte (uint8) have 4 bits")
    if (
        w_bits == 4
        and weight.dtype == torch.int8
        and weight.numel()
        and (int(weight.min()) < -8 or int(weight.max()) > 7)
    ):
        raise QuantizationError("linear_grouped_pack: weights of 4 bits lie in [-8, 7]")
    return torch.empty(0, dtype=torch.uint8, device=weight.device)


def linear_grouped(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
    w_bits: int,
    x_bits: int,
    relu: bool,
) -> torch.Tensor:
    """x float [..., K], weight int8 [N, K] with ``w_scale`` [N, 1 or groups] -> [..., N] of x's dtype.

    Weights of 4 bits may also be uint8 [N, K / 2], see :func:`pair`.

    Each group of ``group_size`` values of a row is quantized symmetrically to ``x_bits``: 8, or 15, which keeps
    more than bfloat16 does. Weights mean ``w_scale * (w - z)`` with a float32 ``z`` per group (``w_zero_point``
    [N, groups], None: 0). With ``s`` the scale of a row's group, its part is
    ``float32(sum w * q) * s + (-(float32(sum q) * s)) * z``, times the group's weight scale if it has one of its
    own; parts are added in the order of K, each operation rounded to float32. A scale per output channel
    multiplies the sum. NaN is real 0.

    Raises:
        QuantizationError: infinite values.
    """
    weight = _unpaired(weight)
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = torch.where(torch.isnan(rows), 0.0, rows)
    groups = -(-weight.shape[1] // group_size)
    per_group = w_scale.shape[1] > 1
    total = torch.zeros(rows.shape[0], weight.shape[0], device=x.device)
    for g in range(groups):
        part = slice(g * group_size, (g + 1) * group_size)
        values = rows[:, part]
        scale = torch.clamp(values.abs().amax(1, keepdim=True) / _TOP[x_bits], min=_SMALLEST)
        if not bool(torch.isfinite(scale).all()):
            raise QuantizationError(
                "linear_grouped: the input has infinite values, which leave no range to quantize to"
            )
        q = torch.round((values * (1.0 / scale)).double()).clamp(-_TOP[x_bits], _TOP[x_bits])
        value = torch.round(q @ weight[:, part].double().t()).to(torch.int64).float() * scale
        if w_zero_point is not None:
            value = value + -(q.sum(1, keepdim=True).float() * scale) * w_zero_point[:, g]
        total = total + (value * w_scale[:, g] if per_group else value)
    if not per_group:
        total = total * w_scale[:, 0]
    if bias is not None:
        total = total + bias
    if relu:
        total = torch.where(total > 0, total, 0.0)
    return total.reshape(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def linear_grouped_split(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
    w_bits: int,
    x_bits: int,
    relu: bool,
    parts: list[int],
) -> list[torch.Tensor]:
    """:func:`linear_grouped` of several layers with the same input, their weights one below the other: x is quantized once.

    ``parts`` are the layers' numbers of outputs, multiples of 64 but for the last one.

    Raises:
        QuantizationError: parts that are not the weight's, or infinite values.
    """
    if min(parts, default=0) < 1 or sum(parts) != weight.shape[0] or any(n % PART for n in parts[:-1]):
        raise QuantizationError(
            f"linear_grouped_split: parts must be multiples of {PART} but for the last one, with the weight's {weight.shape[0]} "
            f"outputs together; got {list(parts)}"
        )
    out = linear_grouped(x, weight, packed, w_scale, w_zero_point, bias, group_size, w_bits, x_bits, relu)
    return [part.contiguous() for part in out.split(parts, -1)]
