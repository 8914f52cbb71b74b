"""Convolutions of 1 to 3 dimensions, transposed ones too, as calls of the 2-d operator.

* 1-d is 2-d of height 1.
* 3-d is 2-d over the depth slices of a window, which count as channels: one accumulator, one rounding.
* A transposed convolution is a convolution with the kernel flipped over the input with ``stride - 1`` zero
  points between its elements.

Padding and what is put between elements are real 0, thus the input's zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeropoint import ops

__all__ = ["Convolution"]


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution over ``len(stride)`` spatial dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def kernel_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """int8 ``[out, in / groups, *kernel]`` (transposed: ``[in, out / groups, *kernel]``) as the 2-d operator takes it."""
        dims = len(self.stride)
        if self.transposed:
            grouped = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            weight = grouped.flatten(0, 1).flip(list(range(2, 2 + dims)))
        if dims == 1:
            weight = weight.unsqueeze(2)
        elif dims == 3:
            weight = weight.transpose(1, 2).flatten(1, 2)
        return weight.contiguous()

    def per_output_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Scales or zero points of the weight's channel axis, one for each output channel."""
        return values.repeat(self.groups) if self.transposed and values.numel() > 1 else values

    def pack(self, kernel_weight: torch.Tensor, w_zero_point: torch.Tensor | None) -> torch.Tensor:
        dims = len(self.stride)
        dilation = (1, *self.dilation) if dims == 1 else self.dilation[-2:]
        return ops.conv2d_pack(kernel_weight, w_zero_point, dilation, self.groups)

    def __call__(
        self,
        x: torch.Tensor,
        kernel_weight: torch.Tensor,
        packed: torch.Tensor,
        w_scale: torch.Tensor,
        w_zero_point: torch.Tensor | None,
        bias: torch.Tensor | None,
        kernel_size: Sequence[int],
        x_scale: float,
        x_zero_point: int,
        *output: Any,
    ) -> torch.Tensor:
        """``x`` [N, C, *spatial] to [N, out, *spatial]; ``output`` as in ``ops.conv2d`` from ``scale`` on."""
        stride, padding = self.stride, self.padding
        if self.transposed:
            x = self._spread(x, kernel_size, x_zero_point)
            stride, padding = (1,) * len(stride), (0,) * len(stride)
        tail = (self.groups, x_scale, x_zero_point, *output)
        weight = (kernel_weight, packed, w_scale, w_zero_point, bias)
        dims = len(stride)
        if dims == 1:
            out = ops.conv2d(x.unsqueeze(2), *weight, (1, *stride), (0, *padding), (1, *self.dilation), *tail)
            return out.squeeze(2)
        if dims == 2:
            return ops.conv2d(x, *weight, stride, padding, self.dilation, *tail)
        slices = self._depth_windows(x, kernel_size[0], stride[0], padding[0], x_zero_point)
        depth = slices.shape[1]
        out = ops.conv2d(slices.flatten(0, 1), *weight, stride[1:], padding[1:], self.dilation[1:], *tail)
        return out.unflatten(0, (x.shape[0], depth)).transpose(1, 2)

    def _spread(self, x: torch.Tensor, kernel_size: Sequence[int], zero_point: int) -> torch.Tensor:
        """``x`` with ``stride - 1`` zero points between elements and the borders of a full convolution."""
        extra = self.output_padding or (0,) * len(self.stride)
        shape, inner, crop = list(x.shape[:2]), [slice(None), slice(None)], [slice(None), slice(None)]
        for i, size in enumerate(x.shape[2:]):
            border = self.dilation[i] * (kernel_size[i] - 1) - self.padding[i]
            span = (size - 1) * self.stride[i] + 1
            before, after = max(border, 0), max(border + extra[i], 0)
            shape.append(before + span + after)
            inner.append(slice(before, before + span, self.stride[i]))
            crop.append(slice(max(-border, 0), shape[-1] - max(-(border + extra[i]), 0)))
        spread = torch.full(shape, zero_point, dtype=x.dtype, device=x.device)
        spread[tuple(inner)] = x
        return spread[tuple(crop)]

    def _depth_windows(self, x: torch.Tensor, kernel: int, stride: int, padding: int, zero_point: int) -> torch.Tensor:
        """[N, D', groups * kernel * C / groups, H, W]: for each output depth its input slices, group by group."""
        if padding:
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, padding, padding), value=zero_point)
        reach = self.dilation[0] * (kernel - 1) + 1
        windows = x.unfold(2, reach, stride)[..., :: self.dilation[0]]  # [N, C, D', H, W, kernel]
        windows = windows.permute(0, 2, 1, 5, 3, 4).unflatten(2, (self.groups, -1))  # [N, D', g, C / g, kernel, H, W]
        return windows.transpose(3, 4).flatten(2, 4)
