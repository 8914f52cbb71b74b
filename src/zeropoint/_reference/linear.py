"""Reference of zeropoint::linear."""

from __future__ import annotations

from typing import Any

import torch

from zeropoint._reference.epilogue import check_accumulator, epilogue

__all__ = ["linear", "linear_pack", "without_zero_point"]


def without_zero_point(weight: torch.Tensor, w_zero_point: torch.Tensor | None) -> torch.Tensor:
    if w_zero_point is None:
        return weight.to(torch.int64)
    return weight.to(torch.int64) - w_zero_point.reshape(-1, *[1] * (weight.dim() - 1))


def linear_pack(weight: torch.Tensor, w_zero_point: torch.Tensor | None) -> torch.Tensor:
    """The reference needs no packing; the result only has to exist. Checks the accumulator bound."""
    check_accumulator(without_zero_point(weight, w_zero_point))
    return torch.empty(0, dtype=torch.uint8, device=weight.device)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    x_scale: float,
    x_zero_point: int,
    *output: Any,
    **tail: Any,
) -> torch.Tensor:
    """x [..., K], weight int8 [N, K] -> [..., N]."""
    w = without_zero_point(weight, w_zero_point).double()
    acc = (x.double() - x_zero_point) @ w.t()
    return epilogue(acc, acc.dim() - 1, w_scale, bias, x_scale, *output, **tail)
