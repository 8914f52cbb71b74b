"""Fake kernels: shapes, dtypes and strides of the results, for torch.compile, torch.export and opcheck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zeropoint._reference.conv import conv_extent
from zeropoint._reference.pool import pool_extent
from zeropoint._reference.quantize import channels_last_format, is_channels_last
from zeropoint._reference.resample import bilinear_extent

__all__: list[str] = []

_FakeKernel = Callable[..., Any]


def _fake(name: str) -> Callable[[_FakeKernel], _FakeKernel]:
    def register(function: _FakeKernel) -> _FakeKernel:
        torch.library.register_fake(f"zeropoint::{name}", function)
        return function

    return register


def _like(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keeps contiguous and channels_last layouts, makes any other contiguous, as the kernels do."""
    if is_channels_last(x):
        return _channels_last(x, x.shape, dtype)
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _channels_last(x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=channels_last_format(len(shape)))


def _nhwc(x: torch.Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return _channels_last(x, (x.shape[0], channels, height, width), dtype)


@_fake("quantize_per_tensor")
def _quantize_per_tensor(x: torch.Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    return _like(x, dtype)


@_fake("quantize_per_channel")
def _quantize_per_channel(
    x: torch.Tensor, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@_fake("dequantize_per_tensor")
def _dequantize_per_tensor(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return _like(q, torch.float32)


@_fake("dequantize_per_channel")
def _dequantize_per_channel(q: torch.Tensor, scales: Any, zero_points: Any, axis: int) -> torch.Tensor:
    return torch.empty(q.shape, dtype=torch.float32, device=q.device)


@_fake("requantize")
def _requantize(acc: torch.Tensor, multiplier: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    return _like(acc, dtype)


@_fake("linear_pack")
def _linear_pack(weight: torch.Tensor, w_zero_point: Any) -> torch.Tensor:
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


@_fake("conv2d_pack")
@_fake("conv3d_pack")
def _conv_pack(
    weight: torch.Tensor, w_zero_point: Any, dilation: Sequence[int], groups: int, stride: Sequence[int] = ()
) -> torch.Tensor:
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


@_fake("linear")
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: Any,
    w_scale: Any,
    w_zero_point: Any,
    bias: Any,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *tail: Any,
    **kwargs: Any,
) -> torch.Tensor:
    torch._check(
        x.shape[-1] == weight.shape[1],
        lambda: f"linear: x has {x.shape[-1]} features, the weight expects {weight.shape[1]}",
    )
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype, device=x.device)


@_fake("linear_dynamic")
def _linear_dynamic(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    torch._check(
        x.shape[-1] == weight.shape[1],
        lambda: f"linear_dynamic: x has {x.shape[-1]} features, the weight expects {weight.shape[1]}",
    )
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32, device=x.device)


@_fake("linear_grouped_pack")
def _linear_grouped_pack(weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


@_fake("linear_grouped")
def _linear_grouped(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    features = weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)  # two weights in a byte
    torch._check(
        x.shape[-1] == features,
        lambda: f"linear_grouped: x has {x.shape[-1]} features, the weight expects {features}",
    )
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)


@_fake("linear_grouped_split")
def _linear_grouped_split(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    out = _linear_grouped(x, weight)
    return [out.new_empty((*out.shape[:-1], n)) for n in rest[-1]]


@_fake("rnn_dynamic")
def _rnn_dynamic(
    x: torch.Tensor, batch_sizes: Any, h: torch.Tensor, c: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty((*x.shape[:-1], h.shape[1])), torch.empty(h.shape), torch.empty(c.shape)


@_fake("rnn_static")
def _rnn_static(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty((x.shape[0], *h.shape)), torch.empty_like(h), torch.empty_like(c)


@_fake("conv2d")
@_fake("conv3d")
def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: Any,
    w_scale: Any,
    w_zero_point: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *tail: Any,
    **kwargs: Any,
) -> torch.Tensor:
    window = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return _channels_last(x, (x.shape[0], weight.shape[0], *(conv_extent(*one) for one in window)), dtype)


def _binary(
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
    by_channel = a.dim() == 4 and b.dim() == 4 and tuple(b.shape[2:]) == (1, 1) and a.shape[:2] == b.shape[:2]
    if by_channel and tuple(a.shape[2:]) != (1, 1):
        return _nhwc(a, a.shape[1], a.shape[2], a.shape[3], dtype)
    torch._check(a.shape == b.shape, lambda: f"a and b must have the same shape, got {a.shape} and {b.shape}")
    return _like(a, dtype)


_fake("add")(_binary)
_fake("mul")(_binary)


@_fake("add_float")
def _add_float(a: torch.Tensor, b: torch.Tensor, subtract: bool) -> torch.Tensor:
    alike = a.shape == b.shape and is_channels_last(a) and is_channels_last(b)
    return (
        _like(a, a.dtype)
        if alike
        else torch.empty(torch.broadcast_shapes(a.shape, b.shape), dtype=a.dtype, device=a.device)
    )


@_fake("attention")
def _attention(
    q: torch.Tensor,
    q_scale: float,
    q_zero_point: int,
    k: torch.Tensor,
    k_scale: float,
    k_zero_point: int,
    v: torch.Tensor,
    v_scale: float,
    v_zero_point: int,
    factor: float,
    scale: float,
    zero_point: int,
    dtype: torch.dtype,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    batch, heads, rows, features = *q.shape[:3], v.shape[3]
    return torch.empty((batch, rows, heads, features), dtype=dtype, device=q.device).transpose(1, 2)


@_fake("matmul")
def _matmul(
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
    return torch.matmul(a.to(torch.float32), b.to(torch.float32)).to(dtype)


@_fake("normalize")
def _normalize(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=arguments[-1], device=x.device)


@_fake("softmax")
def _softmax(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=arguments[-1], device=x.device)


@_fake("lookup")
def _lookup(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return _like(x, table.dtype)


@_fake("max_pool2d")
def _max_pool2d(
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> torch.Tensor:
    extents = [
        pool_extent(x.shape[2 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1)
    ]
    return _nhwc(x, x.shape[1], extents[0], extents[1], x.dtype)


@_fake("avg_pool2d")
def _avg_pool2d(
    x: torch.Tensor,
    zero_point: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    extents = [pool_extent(x.shape[2 + i], kernel_size[i], stride[i], padding[i], 1, ceil_mode) for i in (0, 1)]
    return _nhwc(x, x.shape[1], extents[0], extents[1], x.dtype)


@_fake("global_avg_pool2d")
def _global_avg_pool2d(
    x: torch.Tensor,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return _nhwc(x, x.shape[1], 1, 1, dtype)


@_fake("interpolate_bilinear2d")
def _interpolate_bilinear2d(
    x: torch.Tensor, output_size: Sequence[int], align_corners: bool, scale_h: float, scale_w: float
) -> torch.Tensor:
    height, width = output_size or (bilinear_extent(x.shape[2], scale_h), bilinear_extent(x.shape[3], scale_w))
    return _nhwc(x, x.shape[1], height, width, x.dtype)


@_fake("embedding")
def _embedding(
    indices: torch.Tensor, weight: torch.Tensor, scale: Any, zero_point: Any, bits: int, features: int
) -> torch.Tensor:
    return torch.empty((*indices.shape, features), dtype=torch.float32, device=indices.device)


@_fake("add_integers")
def _add_integers(a: torch.Tensor, b: torch.Tensor, subtract: bool) -> torch.Tensor:
    return torch.empty(torch.broadcast_shapes(a.shape, b.shape), dtype=a.dtype, device=a.device)


@_fake("arange")
def _arange(start: int, end: int, step: int) -> torch.Tensor:
    return torch.arange(start, end, step)


@_fake("embedding_bag")
def _embedding_bag(
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    weight: Any,
    scale: Any,
    zero_point: Any,
    bits: int,
    features: int,
    mode: int,
    include_last_offset: bool,
    per_sample_weights: Any = None,
    padding_idx: int | None = None,
) -> torch.Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - (1 if include_last_offset else 0)
    return torch.empty((bags, features), dtype=torch.float32, device=indices.device)


@_fake("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(x: torch.Tensor, zero_point: int, output_size: Sequence[int]) -> torch.Tensor:
    return _nhwc(x, x.shape[1], output_size[0], output_size[1], x.dtype)


@_fake("add_norm")
def _add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: Any,
    bias: Any,
    eps: float,
    centered: bool,
    keep_sum: bool,
    keep_norm: bool,
    scale: float = 1.0,
    zero_point: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def result(wanted: bool, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(x.shape if wanted else (0,), dtype=kind, device=x.device)

    return (
        result(keep_sum, torch.float32),
        result(keep_norm, torch.float32),
        result(dtype is not None, dtype or torch.uint8),
    )


@_fake("cached_attention")
def _cached_attention(
    q: torch.Tensor,
    past_k: torch.Tensor,
    past_v: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    factor: float,
    mask: torch.Tensor | None = None,
    keep_cache: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keys = past_k.shape[2] + k.shape[2]
    shapes = ((*k.shape[:2], keys, k.shape[3]), (*v.shape[:2], keys, v.shape[3])) if keep_cache else ((0,), (0,))
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(shapes[0]), q.new_empty(shapes[1])


@_fake("rotary")
def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


@_fake("silu_mul")
def _silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate.new_empty(gate.shape)
