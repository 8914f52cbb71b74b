"""Convolutions of 1 to 3 dimensions, transposed ones too, as calls of the operators for 2 and 3.

* 1-d is 2-d of height 1; 3-d has an operator of its own.
* A transposed convolution is a convolution with the kernel flipped over the input with ``stride - 1`` zero
  points between its elements. The outputs at each offset within a stride see one part of the kernel and no zero
  points between: they are computed apart, as convolutions of stride 1, unless dilation mixes the parts.

Padding and what is put between elements are real 0, thus the input's zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from zeropoint import ops

__all__ = ["Convolution", "Packed"]

Packed = torch.Tensor | tuple[torch.Tensor, ...]
"""A packed weight, or those of a transposed convolution's parts."""


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
        """int8 ``[out, in / groups, *kernel]`` (transposed: ``[in, out / groups, *kernel]``) as the operator takes it."""
        dims = len(self.stride)
        if self.transposed:
            grouped = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            weight = grouped.flatten(0, 1).flip(list(range(2, 2 + dims)))
        if dims == 1:
            weight = weight.unsqueeze(2)
        return weight.contiguous()

    def per_output_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Scales or zero points of the weight's channel axis, one for each output channel."""
        return values.repeat(self.groups) if self.transposed and values.numel() > 1 else values

    def pack(self, kernel_weight: torch.Tensor, w_zero_point: torch.Tensor | None) -> Packed:
        dims = len(self.stride)
        if self._in_phases(kernel_weight.shape[4 - dims :]):
            parts = [self._phase_weight(kernel_weight, phase) for phase in self._phases()]
            return tuple(ops.conv2d_pack(w, w_zero_point, (1, 1), self.groups, (1, 1)) for w in parts)
        stride = (1,) * dims if self.transposed else self.stride
        if dims == 3:
            return ops.conv3d_pack(kernel_weight, w_zero_point, self.dilation, self.groups, stride)
        dilation = (1, *self.dilation) if dims == 1 else self.dilation
        return ops.conv2d_pack(
            kernel_weight, w_zero_point, dilation, self.groups, (1, *stride) if dims == 1 else stride
        )

    def __call__(
        self,
        x: torch.Tensor,
        kernel_weight: torch.Tensor,
        packed: Packed,
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
        if isinstance(packed, tuple):
            weights = (kernel_weight, packed, w_scale, w_zero_point, bias)
            return self._by_phases(x, weights, kernel_size, x_scale, x_zero_point, *output)
        if self.transposed:
            x = self._spread(x, kernel_size, x_zero_point)
            stride, padding = (1,) * len(stride), (0,) * len(stride)
        tail = (self.groups, x_scale, x_zero_point, *output)
        weight = (kernel_weight, packed, w_scale, w_zero_point, bias)
        dims = len(stride)
        if dims == 1:
            out = ops.conv2d(x.unsqueeze(2), *weight, (1, *stride), (0, *padding), (1, *self.dilation), *tail)
            return out.squeeze(2)
        conv = ops.conv2d if dims == 2 else ops.conv3d
        return conv(x, *weight, stride, padding, self.dilation, *tail)

    def _in_phases(self, kernel_size: Sequence[int]) -> bool:
        """Whether the outputs are computed apart by their offset within the stride: each has taps of its own."""
        return (
            self.transposed
            and len(self.stride) < 3
            and max(self.stride) > 1
            and max(self.dilation) == 1
            and all(k >= s for k, s in zip(kernel_size, self.stride, strict=True))
        )

    def _phases(self) -> list[tuple[int, ...]]:
        return list(product(*(range(s) for s in self.stride)))

    def _phase_weight(self, kernel_weight: torch.Tensor, phase: Sequence[int]) -> torch.Tensor:
        steps = [slice(r, None, s) for r, s in zip(phase, self.stride, strict=True)]
        return kernel_weight[(slice(None), slice(None), *([slice(None)] if len(steps) == 1 else []), *steps)]

    def _by_phases(
        self,
        x: torch.Tensor,
        weights: tuple[Any, ...],
        kernel_size: Sequence[int],
        x_scale: float,
        x_zero_point: int,
        *output: Any,
    ) -> torch.Tensor:
        """Output ``o`` sees the taps ``r, r + s, ...`` of the flipped kernel, ``r = (border - o) mod s``.

        With ``o = border - r + s * q`` they meet the inputs ``q, q + 1, ...``: a convolution of stride 1.
        """
        kernel_weight, packed, *rest = weights
        dims = len(self.stride)
        extra = self.output_padding or (0,) * dims
        sizes = [
            (n - 1) * s - 2 * p + k + e
            for n, s, p, k, e in zip(x.shape[2:], self.stride, self.padding, kernel_size, extra, strict=True)
        ]
        plain = Convolution((1,) * dims, (0,) * dims, (1,) * dims, self.groups)
        result: torch.Tensor | None = None
        for phase, blob in zip(self._phases(), packed, strict=True):
            weight = self._phase_weight(kernel_weight, phase)
            pads: list[int] = []
            where: list[Any] = [slice(None), slice(None)]
            for i, r in enumerate(phase):
                border, s = kernel_size[i] - 1 - self.padding[i], self.stride[i]
                taps = -(-(kernel_size[i] - r) // s)
                first, last = -((border - r) // s), (sizes[i] - 1 - border + r) // s  # of q
                pads = [-first, last + taps - x.shape[2 + i], *pads]
                where.append(slice(border - r + s * first, border - r + s * last + 1, s))
            if any(part.start >= part.stop for part in where[2:]):
                continue  # fewer outputs than offsets
            padded = torch.nn.functional.pad(x, pads, value=x_zero_point)
            part = plain(padded, weight, blob, *rest, weight.shape[4 - dims :], x_scale, x_zero_point, *output)
            if result is None:
                layout = torch.channels_last if dims == 2 else torch.contiguous_format
                shape = (x.shape[0], part.shape[1], *sizes)
                if torch.compiler.is_exporting():  # memory as it is has no place in a graph that goes to a file
                    result = torch.zeros(shape, dtype=part.dtype).contiguous(memory_format=layout)
                else:
                    result = torch.empty(shape, dtype=part.dtype, device=x.device, memory_format=layout)
            result[tuple(where)] = part
        assert result is not None
        return result

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
