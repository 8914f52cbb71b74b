"""Transposed convolutions as convolutions that compute all outputs of a stride side by side.

Output ``s * q + r`` of a transposed convolution of stride ``s`` sees the inputs ``q - t`` through the taps ``s * t + r``: for
each ``r`` a convolution of stride 1 with ``T = ceil(kernel / s)`` taps. All of them together are one convolution with ``s``
times the channels, whose result is spread over the positions (Shi et al., 2016, "Real-Time Single Image and Video
Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network"), of which the padding is cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from zeropoint.graph.canonicalize import arguments, numbers
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter

__all__ = ["TRANSPOSED", "replace_transposed"]

aten = torch.ops.aten

TRANSPOSED = {
    aten.conv_transpose1d.default: aten.conv1d.default,
    aten.conv_transpose2d.input: aten.conv2d.default,
    aten.conv_transpose3d.input: aten.conv3d.default,
}


def sub_pixel_weight(weight: torch.Tensor, stride: list[int], taps: list[int], groups: int) -> torch.Tensor:
    """``[in, out / groups, *kernel]`` as ``[out * prod(stride), in / groups, *taps]``."""
    dims = len(stride)
    sizes = [t * s for t, s in zip(taps, stride, strict=True)]
    short = [n - k for n, k in zip(sizes, weight.shape[2:], strict=True)]
    weight = torch.nn.functional.pad(weight, [side for n in reversed(short) for side in (0, n)])
    weight = weight.unflatten(0, (groups, -1))  # [groups, in / groups, out / groups, *sizes]
    for i in range(dims):
        weight = weight.unflatten(3 + 2 * i, (taps[i], stride[i]))
    steps, places = [4 + 2 * i for i in range(dims)], [3 + 2 * i for i in range(dims)]
    weight = weight.permute(0, 2, *steps, 1, *places).flatten(0, 1 + dims)
    return weight.flip(list(range(2, 2 + dims))).contiguous()


def _spread(rewriter: Rewriter, x: fx.Node, channels: int, stride: list[int]) -> fx.Node:
    """``[N, channels * prod(stride), *Q]`` to ``[N, channels, *(stride * Q)]``."""
    dims = len(stride)
    if dims == 2 and stride[0] == stride[1]:
        return rewriter.call(aten.pixel_shuffle.default, x, stride[0])
    x = rewriter.call(aten.unflatten.int, x, 1, [channels, *stride])
    order = [d for i in range(dims) for d in (2 + dims + i, 2 + i)]
    x = rewriter.call(aten.permute.default, x, [0, 1, *order])
    for i in range(dims):
        x = rewriter.call(aten.flatten.using_ints, x, 2 + i, 3 + i)
    return x


@dataclass(frozen=True)
class _Window:
    """One dimension of a transposed convolution as a convolution of stride 1, and what is cut off its spread result."""

    taps: int
    padding: int
    before: int
    behind: int

    @staticmethod
    def of(kernel: int, stride: int, padding: int, extra: int, dilation: int) -> _Window:
        """Of the full result, ``padding`` positions in front are not asked for, and ``extra`` more behind are.

        With H inputs the convolution has ``H + taps - 1`` results, of which ``padding + (H - 1) * stride - 2 * padding +
        kernel + extra`` positions are needed. Dilation comes with stride 1 alone.
        """
        if stride > 1:
            taps = math.ceil(max(kernel, kernel + extra - padding) / stride)
            return _Window(taps, taps - 1, padding, stride * taps + padding - kernel - extra)
        taps = kernel + (extra > padding)
        spare = dilation * (taps - kernel) + padding - extra
        inner = min(padding, dilation * (taps - 1), spare)  # not computed rather than cut off
        return _Window(taps, dilation * (taps - 1) - inner, padding - inner, spare - inner)


def replace_transposed(module: fx.GraphModule, node: fx.Node) -> None:
    """Rewrites ``node``; leaves it where its weight is computed, or stride and dilation mix."""
    a = arguments(node)
    weight, bias = (constant_of(module, a[k]) if is_constant(a[k]) else None for k in ("weight", "bias"))
    if weight is None or (bias is None and a["bias"] is not None) or a["input"].meta["val"].dim() != weight.dim():
        return
    dims = weight.dim() - 2
    stride, padding, extra, dilation = (
        numbers(a[key], dims) for key in ("stride", "padding", "output_padding", "dilation")
    )
    if any(s > 1 and d > 1 for s, d in zip(stride, dilation, strict=True)):
        return
    sizes = (weight.shape[2:], stride, padding, extra, dilation)
    windows = [_Window.of(*one) for one in zip(*sizes, strict=True)]
    rewriter = Rewriter(module, node)
    new_weight = rewriter.constant("w", sub_pixel_weight(weight, stride, [w.taps for w in windows], a["groups"]))
    new_bias = None if bias is None else rewriter.constant("b", bias.repeat_interleave(math.prod(stride)))
    geometry = ([1] * dims, [w.padding for w in windows], dilation, a["groups"])
    out = rewriter.call(TRANSPOSED[node.target], a["input"], new_weight, new_bias, *geometry)
    if max(stride) > 1:
        out = _spread(rewriter, out, node.meta["val"].shape[1], stride)
    for dim, window in enumerate(windows, 2):
        if window.before or window.behind:
            end = -window.behind if window.behind else torch.iinfo(torch.int64).max
            out = rewriter.call(aten.slice.Tensor, out, dim, window.before, end)
    rewriter.replace(out)
