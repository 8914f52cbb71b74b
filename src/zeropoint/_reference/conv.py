"""Reference of zeropoint::conv2d and conv3d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zeropoint._reference.epilogue import check_accumulator, epilogue
from zeropoint._reference.linear import without_zero_point
from zeropoint._reference.quantize import channels_last_format

__all__ = ["conv2d", "conv2d_pack", "conv3d", "conv3d_pack", "conv_extent"]


def conv_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_pack(
    weight: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    dilation: Sequence[int],
    groups: int,
    stride: Sequence[int] = (),
) -> torch.Tensor:
    """The reference needs no packing; the result only has to exist. Checks the accumulator bound."""
    check_accumulator(without_zero_point(weight, w_zero_point))
    return torch.empty(0, dtype=torch.uint8, device=weight.device)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x_scale: float,
    x_zero_point: int,
    *output: Any,
    **tail: Any,
) -> torch.Tensor:
    """x [N, C, H, W], weight int8 [O, C / groups, kh, kw] -> [N, O, H', W'], channels_last; conv3d has a depth more.

    Padding is real 0: with the zero point taken off first, the float convolution's own zeros.
    """
    w = without_zero_point(weight, w_zero_point).double()
    convolve = torch.nn.functional.conv3d if x.dim() == 5 else torch.nn.functional.conv2d
    acc = convolve(x.double() - x_zero_point, w, None, list(stride), list(padding), list(dilation), groups)
    # Sums of integers below 2^53 are exact in float64 in any order; round() undoes nothing.
    result = epilogue(torch.round(acc), 1, w_scale, bias, x_scale, *output, **tail)
    return result.contiguous(memory_format=channels_last_format(x.dim()))


conv3d_pack, conv3d = conv2d_pack, conv2d
