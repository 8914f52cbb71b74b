"""Random cases: every instruction set, one and several threads, against the reference, bit for bit.

As a program (`make fuzz`) it runs for as long as it is told and prints the seed of every round.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zeropoint import _reference, backend, ops
from zeropoint._reference.grouped import pair

THREADS = (1, 2, 5)


@dataclass
class Case:
    description: str
    expected: Callable[[], torch.Tensor]
    actual: Callable[[], torch.Tensor]


class Generator:
    """Draws cases from a seeded source; the same seed gives the same cases."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)

    def one(self, *options: Any) -> Any:
        return self.random.choice(options)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def integers(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, shape, dtype=torch.int64).to(dtype)

    def byte_dtype(self) -> torch.dtype:
        return self.one(torch.uint8, torch.uint8, torch.int8)

    def zero_point(self, dtype: torch.dtype) -> int:
        info = torch.iinfo(dtype)
        return self.one(info.min, info.max, self.random.randint(info.min, info.max), (info.min + info.max + 1) // 2)

    def layout(self, x: torch.Tensor) -> torch.Tensor:
        """Contiguous, channels_last, or a view with gaps and an offset."""
        kind = self.random.random()
        if x.dim() in (4, 5) and kind < 0.5:
            return x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
        if x.dim() and kind > 0.8:
            wide = torch.zeros((*x.shape[:-1], x.shape[-1] + 3), dtype=x.dtype)
            wide[..., 2:-1] = x
            return wide[..., 2:-1]
        return x

    def weight(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        scale = torch.rand(self.one(1, shape[0])) * 0.01 + 1e-4
        zero_point = None if self.chance(0.7) else torch.randint(-128, 128, (self.one(1, shape[0]),))
        return self.integers(shape, torch.int8), scale, zero_point

    def output(self) -> tuple[list[Any], torch.dtype]:
        """scale, zero_point, quant_min, quant_max, dtype of an output."""
        dtype = self.one(torch.uint8, torch.uint8, torch.int8, torch.float32, torch.int32)
        scale = self.one(0.5, 5.0, 0.05, 1e-3) * (self.random.random() + 1e-3)
        if dtype not in (torch.uint8, torch.int8):
            return [scale, 0, 0, 0, dtype], dtype
        info = torch.iinfo(dtype)
        zero_point = self.zero_point(dtype)
        low = zero_point if self.chance(0.4) else info.min
        high = self.random.randint(low, info.max) if self.chance(0.2) else info.max
        return [scale, zero_point, low, high, dtype], dtype

    def tail(self, shape: torch.Size, dtype: torch.dtype) -> dict[str, Any]:
        tail: dict[str, Any] = {}
        if dtype not in (torch.uint8, torch.int8):
            return tail
        info = torch.iinfo(dtype)
        if self.chance(0.3):
            residual = self.layout(self.integers(shape, self.byte_dtype()))
            tail.update(residual=residual, residual_scale=0.03, residual_zero_point=self.zero_point(residual.dtype))
            tail.update(sum_scale=0.9, sum_zero_point=self.zero_point(dtype), sum_min=info.min, sum_max=info.max)
        if self.chance(0.3):
            tail["table"] = self.integers((256,), dtype)
        return tail

    def conv2d(self, volume: bool = False) -> Case:
        groups = self.one(1, 1, 1, 2, 4)
        if self.chance(0.4):
            groups = self.one(2, 3, 8, 17, 32, 64, 65, 130)
            channels = out_channels = groups
        elif self.chance(0.5):  # small groups
            groups = self.one(2, 3, 6, 8, 12, 17, 32)
            channels = groups * self.one(1, 2, 3, 4, 5, 8, 12, 16, 21, 24)
            out_channels = groups * self.one(1, 2, 3, 4, 5, 8, 9, 12, 16, 24)
        else:
            channels = groups * self.one(1, 2, 3, 4, 5, 8, 16, 20, 33)
            out_channels = groups * self.one(1, 2, 15, 16, 17, 31, 32, 40, 63, 64, 65, 70, 130)
        kernel = self.one((1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (9, 1), (7, 7), (2, 4))
        extra: tuple[int, ...] = (self.one(0, 1, 4, 9), self.one(0, 2, 5, 11, 40))
        if volume:
            kernel, extra = (self.one(1, 2, 3), *kernel), (self.one(0, 1, 3), *extra)
        stride, dilation = [self.one(1, 1, 2, 3) for _ in kernel], [self.one(1, 1, 1, 2) for _ in kernel]
        if not volume and self.chance(0.2):  # what Winograd's algorithm takes
            groups, channels, out_channels, kernel = 1, self.one(32, 33, 48, 70), self.one(32, 33, 48, 65), (3, 3)
            stride, dilation = [1, 1], [1, 1]
        packed_stride = stride if self.chance(0.8) else []
        padding = [self.one(0, 1, 2, k // 2) for k in kernel]
        size = [
            max(1, (k - 1) * d + 1 - 2 * p) + e for k, d, p, e in zip(kernel, dilation, padding, extra, strict=True)
        ]
        x = self.layout(self.integers((self.one(1, 1, 2, 3), channels, *size), self.byte_dtype()))
        weight, scale, zero_point = self.weight((out_channels, channels // groups, *kernel))
        bias = None if self.chance(0.3) else torch.randn(out_channels) * 3
        output, dtype = self.output()
        tail_arguments = [0.02, self.zero_point(x.dtype), *output]
        arguments = [scale, zero_point, bias, stride, padding, dilation, groups, *tail_arguments]
        none = torch.empty(0, dtype=torch.uint8)
        name = "conv3d" if volume else "conv2d"
        expected, actual, pack = (getattr(*part) for part in ((_reference, name), (ops, name), (ops, f"{name}_pack")))
        tail = self.tail(expected(x, weight, none, *arguments).shape, dtype)
        return Case(
            f"{name} {tuple(x.shape)} {x.stride()} {x.dtype} {tuple(weight.shape)} {arguments[3:]} tail {list(tail)}",
            lambda: expected(x, weight, none, *arguments, **tail),
            lambda: actual(x, weight, pack(weight, zero_point, dilation, groups, packed_stride), *arguments, **tail),
        )

    def conv3d(self) -> Case:
        return self.conv2d(volume=True)

    def linear(self) -> Case:
        m, k, n = (
            self.one(0, 1, 2, 5, 6, 7, 13, 49, 100),
            self.one(1, 2, 3, 4, 5, 16, 63, 64, 65, 257),
            self.one(1, 3, 15, 16, 17, 48, 63, 64, 65, 129, 200),
        )
        x = self.layout(self.integers(self.one((m, k), (2, m, k)), self.byte_dtype()))
        weight, scale, zero_point = self.weight((n, k))
        bias = None if self.chance(0.3) else torch.randn(n)
        output, dtype = self.output()
        arguments = [scale, zero_point, bias, 0.02, self.zero_point(x.dtype), *output]
        tail = self.tail(torch.Size((*x.shape[:-1], n)), dtype)
        none = torch.empty(0, dtype=torch.uint8)
        return Case(
            f"linear {tuple(x.shape)} {x.dtype} n={n} {arguments[3:]} tail {list(tail)}",
            lambda: _reference.linear(x, weight, none, *arguments, **tail),
            lambda: ops.linear(x, weight, ops.linear_pack(weight, zero_point), *arguments, **tail),
        )

    def floats(self, shape: Any) -> torch.Tensor:
        """Mostly ordinary values, with zeros, NaN, huge and tiny rows."""
        x = torch.randn(shape) * self.one(1.0, 30.0, 1e-3, 1e-30)
        if self.chance(0.3) and x.numel():
            x.view(-1)[self.random.randrange(x.numel())] = self.one(float("nan"), 0.0, 1e30, -1e-38)
        if self.chance(0.2):
            x = x.abs() * self.one(1.0, -1.0)
        return x

    def linear_dynamic(self) -> Case:
        m, k, n = self.one(1, 2, 7, 100), self.one(1, 3, 4, 17, 64, 130), self.one(1, 5, 16, 63, 64, 130)
        x = self.layout(self.floats((m, k)))
        weight, scale, zero_point = self.weight((n, k))
        bias = torch.randn(n) if self.chance(0.6) else None
        flags = (self.chance(0.5), self.chance(0.2), self.chance(0.3))
        head, tail = (x, weight), (scale, zero_point, bias, *flags)
        return Case(
            f"linear_dynamic {m}x{k}x{n} {flags}",
            lambda: _reference.linear_dynamic(*head, torch.empty(0), *tail),
            lambda: ops.linear_dynamic(*head, ops.linear_pack(weight, zero_point), *tail),
        )

    def linear_grouped(self) -> Case:
        m, k, n = self.one(1, 2, 3, 5, 13, 50), self.one(1, 8, 30, 64, 100, 300), self.one(1, 5, 16, 31, 33, 64, 130)
        group_size, w_bits, x_bits = self.one(32, 64, 128, 256), self.one(8, 4), self.one(8, 15)
        x = self.layout(self.floats((m, k))).to(self.one(torch.float32, torch.float32, torch.bfloat16, torch.float16))
        x = torch.where(torch.isinf(x), 1.0, x)
        info = (-128, 128) if w_bits == 8 else (-8, 8)
        weight, groups = torch.randint(*info, (n, k)).to(torch.int8), -(-k // group_size)
        scale = torch.rand(n, self.one(1, groups)) * 0.01
        zero_point = torch.randn(n, groups) * 5 if self.chance(0.5) else None
        if w_bits == 4 and k % 2 == 0 and self.chance(0.5):
            weight = self.layout(pair(weight))
        bias = torch.randn(n) if self.chance(0.6) else None
        tail = (scale, zero_point, bias, group_size, w_bits, x_bits, self.chance(0.3))
        return Case(
            f"linear_grouped {m}x{k}x{n} {x.dtype} {tuple(scale.shape)} {zero_point is None} {tail[3:]}",
            lambda: _reference.linear_grouped(x, weight, torch.empty(0), *tail),
            lambda: ops.linear_grouped(
                x, weight, ops.linear_grouped_pack(weight, scale, zero_point, group_size, w_bits), *tail
            ),
        )

    def linear_grouped_split(self) -> Case:
        m, k, parts = (
            self.one(1, 2, 7, 50),
            self.one(8, 30, 130),
            self.one([64, 5], [64, 128, 64], [192], [64, 64, 130]),
        )
        n, w_bits, groups = sum(parts), self.one(8, 4), -(-k // 32)
        x = torch.where(torch.isinf(x := self.floats((m, k))), 1.0, x)
        weight = torch.randint(*((-128, 128) if w_bits == 8 else (-8, 8)), (n, k)).to(torch.int8)
        scale = torch.rand(n, self.one(1, groups)) * 0.01
        zero_point = torch.randn(n, groups) * 5 if self.chance(0.5) else None
        bias = torch.randn(n) if self.chance(0.6) else None
        tail = (scale, zero_point, bias, 32, w_bits, self.one(8, 15), self.chance(0.3), parts)
        return Case(
            f"linear_grouped_split {m}x{k} {parts} {w_bits}",
            lambda: tuple(_reference.linear_grouped_split(x, weight, torch.empty(0), *tail)),
            lambda: tuple(
                ops.linear_grouped_split(
                    x, weight, ops.linear_grouped_pack(weight, scale, zero_point, 32, w_bits), *tail
                )
            ),
        )

    def rnn_dynamic(self) -> Case:
        kind = self.random.randrange(4)
        gates, hidden, features = (4, 3, 1, 1)[kind], self.one(1, 5, 16, 33, 64, 130), self.one(1, 4, 19)
        most = self.one(4, 4, 11)  # from 8 rows on, threads share rows
        steps = self.one(1, 2, 5)
        if kind < 2 and self.chance(0.05):  # the inputs' product comes in several chunks
            hidden, steps = 2800 // gates, 60
        sizes = sorted((self.random.randint(1, most) for _ in range(steps)), reverse=True)
        x, h = self.floats((sum(sizes), features)), self.floats((sizes[0], hidden))
        if self.chance(0.3):
            x, sizes = self.floats((min(steps, self.one(1, 3, 60)), sizes[0], features)), []
        c = self.floats(tuple(h.shape)) if kind == 0 else torch.empty(0)
        (ih, si, zi), (hh, sh, zh) = (self.weight((gates * hidden, n)) for n in (features, hidden))
        biases = [torch.randn(gates * hidden) if self.chance(0.7) else None for _ in "ih"]
        flags = (kind, self.chance(0.5), self.chance(0.4))
        run = lambda op, pi, ph: torch.cat(
            [t.flatten() for t in op(x, sizes, h, c, ih, pi, si, zi, biases[0], hh, ph, sh, zh, biases[1], *flags)]
        )
        return Case(
            f"rnn_dynamic {flags} {hidden} {features} {sizes}",
            lambda: run(_reference.rnn_dynamic, torch.empty(0), torch.empty(0)),
            lambda: run(ops.rnn_dynamic, ops.linear_pack(ih, zi), ops.linear_pack(hh, zh)),
        )

    def rnn_static(self) -> Case:
        kind = self.random.randrange(3)
        gates, tables, grids = ((4, 5, 15), (3, 3, 14), (1, 1, 6))[kind]
        hidden, features = self.one(1, 5, 16, 33, 64, 130, 192), self.one(1, 4, 19)
        steps, batch = self.one(0, 1, 2, 5), self.one(1, 2, 4, 11)
        u8 = torch.uint8
        x = self.layout(self.integers((steps, batch, features), u8))
        h, c = (self.integers((batch, hidden) if n else (0,), u8) for n in (1, kind == 0))
        (ih, si, zi), (hh, sh, zh) = (self.weight((gates * hidden, n)) for n in (features, hidden))
        biases = [torch.randn(gates * hidden) if self.chance(0.7) else None for _ in "ih"]
        table = self.integers((tables, 256), u8)
        grid = torch.tensor([[self.random.uniform(0.01, 0.1), self.zero_point(u8)] for _ in range(grids)]).double()
        reverse = self.chance(0.4)
        run = lambda op, pi, ph: torch.cat(
            [
                t.flatten()
                for t in op(x, h, c, ih, pi, si, zi, biases[0], hh, ph, sh, zh, biases[1], table, grid, kind, reverse)
            ]
        )
        return Case(
            f"rnn_static {kind} {reverse} {steps} {batch} {hidden} {features} {x.stride()}",
            lambda: run(_reference.rnn_static, torch.empty(0), torch.empty(0)),
            lambda: run(ops.rnn_static, ops.linear_pack(ih, zi), ops.linear_pack(hh, zh)),
        )

    def shape(self) -> tuple[int, ...]:
        return self.one((), (0,), (1,), (7,), (64,), (65,), (10007,), (2, 3, 5, 7), (1, 64, 9, 9), (2, 70, 6, 5))

    def _same(self, name: str, description: str, *arguments: Any) -> Case:
        return Case(
            f"{name} {description}",
            lambda: getattr(_reference, name)(*arguments),
            lambda: getattr(ops, name)(*arguments),
        )

    def quantize_per_tensor(self) -> Case:
        dtype, zero_point, scale = (
            self.one(torch.uint8, torch.int8, torch.int32),
            self.random.randint(0, 100),
            self.one(0.1, 0.037, 1e-3, 2.5, 1e-30),
        )
        x = torch.randn(self.shape()) * scale * 100
        x = torch.where(torch.rand(x.shape) < 0.3, (torch.randint(-300, 300, x.shape) + 0.5) * scale, x)
        odd = self.one(float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45)
        x = self.layout(torch.where(torch.rand(x.shape) < 0.02, torch.tensor(odd), x))
        x = x.to(self.one(torch.float32, torch.float32, torch.bfloat16, torch.half))
        return self._same(
            "quantize_per_tensor", f"{tuple(x.shape)} {scale} {zero_point} {dtype}", x, scale, zero_point, dtype
        )

    def _channels(self) -> tuple[tuple[int, ...], int, torch.Tensor, torch.Tensor, torch.dtype]:
        shape = self.one((3, 5), (2, 7, 4), (4, 1, 3, 3))
        axis = self.random.randrange(len(shape))
        dtype = self.one(torch.uint8, torch.int8)
        info = torch.iinfo(dtype)
        zero_points = torch.randint(info.min, info.max, (shape[axis],)).to(torch.int32)
        return shape, axis, torch.rand(shape[axis]) + 0.01, zero_points, dtype

    def quantize_per_channel(self) -> Case:
        shape, axis, scales, zero_points, dtype = self._channels()
        info = torch.iinfo(dtype)
        x = torch.randn(shape) * 50
        x = torch.where(torch.rand(shape) < 0.1, torch.tensor(float("nan")), x)
        return self._same(
            "quantize_per_channel", f"{shape} {axis}", x, scales, zero_points, axis, info.min, info.max, dtype
        )

    def dequantize_per_channel(self) -> Case:
        shape, axis, scales, zero_points, dtype = self._channels()
        return self._same(
            "dequantize_per_channel", f"{shape} {axis}", self.integers(shape, dtype), scales, zero_points, axis
        )

    def dequantize_per_tensor(self) -> Case:
        dtype = self.one(torch.uint8, torch.int8, torch.int32)
        q = self.layout(self.integers(self.shape(), dtype))
        zero_point = self.zero_point(dtype) if dtype != torch.int32 else 77
        return self._same("dequantize_per_tensor", f"{tuple(q.shape)} {dtype}", q, 0.037, zero_point)

    def requantize(self) -> Case:
        acc, dtype = self.integers(self.shape(), torch.int32), self.byte_dtype()
        multiplier = self.one(1e-8, 1e-3, 1.0, 1e4)
        return self._same("requantize", f"{multiplier} {dtype}", acc, multiplier, self.zero_point(dtype), dtype)

    def binary(self) -> Case:
        shape, dtype = self.shape(), self.byte_dtype()
        other = shape
        if self.chance(0.3):
            shape = (self.one(1, 3), self.one(1, 7, 16, 70), self.one(1, 2, 5), self.one(1, 4))
            other = (*shape[:2], 1, 1)
        a, b = (self.layout(self.integers(s, self.byte_dtype())) for s in (shape, other))
        info = torch.iinfo(dtype)
        scale = self.one(0.07, 1e-6, 10.0, 0.01)
        output = (scale, self.zero_point(dtype), info.min, info.max, dtype)
        name = self.one("add", "mul")
        return self._same(
            name, f"{shape} {output}", a, 0.03, self.zero_point(a.dtype), b, 0.05, self.zero_point(b.dtype), *output
        )

    def attention(self) -> Case:
        batch, groups, m, t = self.one(1, 2), self.one(1, 3), self.one(1, 7, 49, 60), self.one(1, 5, 17, 65, 130)
        d, e, heads = self.one(1, 6, 16, 64), self.one(1, 6, 16, 64, 70), groups * self.one(1, 1, 2)
        shapes = ((m, heads, d), (t, groups, d), (t, groups, e))
        q, k, v = (self.integers((batch, *shape), self.byte_dtype()) for shape in shapes)
        q, k, v = (
            x.transpose(1, 2) if self.chance(0.6) else x.reshape(batch, x.shape[2], x.shape[1], x.shape[3])
            for x in (q, k, v)
        )
        dtype = self.byte_dtype()
        arguments: tuple[Any, ...] = ()
        for tensor, scale in ((q, self.one(0.02, 0.3)), (k, self.one(0.02, 0.001)), (v, 0.05)):
            arguments += (tensor, scale, self.zero_point(tensor.dtype))
        arguments += (self.one(0.125, 1.0, 1e-4), self.one(0.03, 1e-3, 2.0), self.zero_point(dtype), dtype)
        mask = self.attention_mask((batch, heads, m, t)) if self.chance(0.5) else None
        arguments += (mask, mask is None and self.chance(0.3))
        return self._same("attention", f"{batch} {heads}/{groups} {m} {t} {d} {e} {arguments[9:13]}", *arguments)

    def attention_mask(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Bool or float, each dimension there or 1 or expanded, some rows without keys."""
        shape = tuple(self.one(n, 1) for n in shape)
        mask = torch.rand(shape) < self.one(0.0, 0.3, 0.9)
        if self.chance(0.6):
            values = torch.tensor([0.0, -1e4, -3.4e38, -math.inf, 2.5, math.nan, 1e38, -1.0001e29, -0.9999e29])
            mask = torch.where(mask, torch.randn(shape), values[torch.randint(self.one(1, 4, 9), shape)])
        return self.layout(mask)

    def cached_attention(self) -> Case:
        batch, groups, past, new = self.one(1, 2), self.one(1, 3), self.one(0, 1, 5, 16, 70), self.one(1, 1, 2)
        d, e, heads = self.one(1, 6, 16, 64, 80), self.one(1, 6, 16, 63, 64, 130), groups * self.one(1, 1, 2)
        size = self.one(0.1, 1.0, 30.0)
        q, *rows = (
            self.layout(torch.randn(batch, n, r, features) * size)
            for n, r, features in (
                (heads, 1, d),
                (groups, past, d),
                (groups, past, e),
                (groups, new, d),
                (groups, new, e),
            )
        )
        mask = self.attention_mask((batch, heads, 1, past + new)) if self.chance(0.5) else None
        rest = (self.one(0.125, 1.0), mask, self.chance(0.5))
        name = f"{batch} {heads}/{groups} {past}+{new} {d} {e} {rest[0]} {rest[2]} {mask is None}"
        return self._same("cached_attention", name, q, *rows, *rest)

    def rotary(self) -> Case:
        shape = (*self.one((), (7,), (2, 5), (2, 3, 5), (0, 3)), self.one(0, 2, 6, 16, 64, 80))
        x = self.layout(torch.randn(shape))
        angles = tuple(self.one(n, 1) for n in shape[:-1])[self.one(0, 1, len(shape) - 1) :]
        cos, sin = (self.layout(torch.randn(*angles, shape[-1])) for _ in "cs")
        return self._same("rotary", f"{shape} {tuple(cos.shape)}", x, cos, sin)

    def silu_mul(self) -> Case:
        shape = self.shape()
        gate, up = (self.layout(torch.randn(shape) * self.one(1.0, 40.0)) for _ in "gu")
        return self._same("silu_mul", f"{shape}", gate, up)

    def add_float(self) -> Case:
        shape = self.shape()
        other = self.one(shape, shape[1:], tuple(self.one(n, 1) for n in shape), (1, *shape))
        a, b = (self.layout(torch.randn(s)) for s in (shape, other))
        if self.chance(0.3):
            a, b = b, a
        return self._same("add_float", f"{tuple(a.shape)} {tuple(b.shape)}", a, b, self.chance(0.3))

    def add_norm(self) -> Case:
        shape = (*self.shape()[:2], self.one(1, 3, 16, 63, 64, 65, 130, 384, 1000))
        x = self.layout(torch.randn(shape) * self.one(0.0, 1.0, 1e4, 1e20))
        residual = self.layout(torch.randn(shape)) if self.chance(0.6) else None
        weight, bias = (torch.randn(shape[-1]) if self.chance(0.7) else None for _ in "wb")
        rest = (self.one(0.0, 1e-5, 1e-12), self.chance(0.5), self.chance(0.5), self.chance(0.5))
        if self.chance(0.7):
            dtype = self.byte_dtype()
            rest += (self.one(0.03, 1e-3, 2.0), self.zero_point(dtype), dtype)
        name = f"{shape} {residual is None} {weight is None} {bias is None} {rest}"
        return self._same("add_norm", name, x, residual, weight, bias, *rest)

    def matmul(self) -> Case:
        m, k, n = self.one(1, 2, 6, 7, 20), self.one(1, 3, 4, 16, 31, 64, 300), self.one(1, 5, 16, 31, 64, 65, 130)
        batch = self.one(((), ()), ((3,), (3,)), ((2, 3), (3,)), ((1,), (4,)), ((2, 1), (3,)))
        a, b = (
            self.integers((*extra, *shape), self.byte_dtype())
            for extra, shape in zip(batch, ((m, k), (k, n)), strict=True)
        )
        a = self.layout(a)
        if self.chance(0.4):
            b = b.transpose(-1, -2).contiguous().transpose(-1, -2)  # as k.transpose(-1, -2) in attention
        b = self.layout(b)
        if self.chance(0.1):
            a = a.flatten()[:k]
        if self.chance(0.1):
            b = b.flatten()[:k]
        dtype = self.byte_dtype()
        info = torch.iinfo(dtype)
        output = (self.one(0.5, 20.0, 1e-3), self.zero_point(dtype), info.min, info.max, dtype)
        arguments = (a, 0.03, self.zero_point(a.dtype), b, 0.05, self.zero_point(b.dtype), *output)
        return self._same("matmul", f"{tuple(a.shape)} {tuple(b.shape)} {a.dtype} {b.dtype} {output}", *arguments)

    def normalize(self) -> Case:
        rows, k = self.one(1, 3, 40), self.one(1, 2, 16, 63, 64, 100, 768)
        x, dtype = self.integers((rows, k), self.byte_dtype()), self.byte_dtype()
        if self.chance(0.1):
            x = torch.full_like(x, 7)
        kind, info = self.one("layer", "group", "none"), torch.iinfo(dtype)
        channels, inner = {"layer": (k, 1), "group": (self.one(1, k, 2 * k), self.one(1, 3, k)), "none": (1, 1)}[kind]
        weight = torch.randn(channels) if kind != "none" and self.chance(0.8) else None
        bias = torch.randn(channels) if kind != "none" and self.chance(0.7) else None
        output = (self.one(0.03, 1e-3, 2.0), self.zero_point(dtype), info.min, info.max, dtype)
        arguments = (
            x,
            rows,
            weight,
            bias,
            inner,
            0.05,
            self.zero_point(x.dtype),
            self.one(1e-5, 0.1),
            self.chance(0.7),
        )
        return self._same("normalize", f"{rows}x{k} {kind} {inner} {arguments[5:]} {output}", *arguments, *output)

    def softmax(self) -> Case:
        shape = self.one((3, 7), (2, 3, 65), (1, 128), (40,), (2, 5, 3, 4), ())
        x, dtype = self.layout(self.integers(shape, self.byte_dtype())), self.byte_dtype()
        info, dim = torch.iinfo(dtype), self.random.randrange(-len(shape), len(shape)) if shape else 0
        output = (self.one(1 / 256, 1 / 250, 1e-4), self.one(info.min, 0), info.min, info.max, dtype)
        arguments = (x, dim, self.one(0.05, 0.3, 1e-3, 9.0), *output)
        return self._same("softmax", f"{shape} {arguments[1:]}", *arguments)

    def lookup(self) -> Case:
        x = self.layout(self.integers(self.shape(), self.byte_dtype()))
        return self._same("lookup", f"{tuple(x.shape)}", x, self.integers((256,), self.byte_dtype()))

    def interpolate_bilinear2d(self) -> Case:
        shape = (self.one(1, 2), self.one(1, 3, 64, 70), self.random.randint(1, 9), self.random.randint(1, 9))
        x = self.layout(self.integers(shape, self.byte_dtype()))
        size = [self.random.randint(1, 20), self.random.randint(1, 20)]
        factors = [self.one(0.0, 2.0, 0.7, 1.3) for _ in size]
        if 0.0 not in factors and all(int(n * f) for n, f in zip(shape[2:], factors, strict=True)) and self.chance(0.7):
            size = []
        arguments = (size, self.chance(0.4), *factors)
        return self._same("interpolate_bilinear2d", f"{shape} {x.dtype} {arguments}", x, *arguments)

    def embedding(self) -> Case:
        rows, features, bits = self.one(1, 5, 40), self.one(1, 7, 16, 33, 200), self.one(8, 4)
        weight = self.integers((rows, features if bits == 8 else -(-features // 2)), torch.uint8)
        indices = torch.randint(0, rows, self.shape()).to(self.one(torch.int32, torch.int64))
        qparams = (torch.rand(rows) * 0.1, torch.randn(rows) * 50)
        name = f"{tuple(indices.shape)} {indices.dtype} {rows} {features} {bits}"
        return self._same("embedding", name, indices, weight, *qparams, bits, features)

    def add_integers(self) -> Case:
        shape = self.shape()
        other = tuple(1 if self.chance(0.3) else n for n in shape[self.random.randint(0, len(shape)) :])
        a, b = (torch.randint(-(2**63), 2**63 - 1, s) for s in (shape, other))
        if self.chance(0.3):
            a, b = b, a
        return self._same("add_integers", f"{tuple(a.shape)} {tuple(b.shape)}", a, b, self.chance(0.5))

    def arange(self) -> Case:
        start, step = self.random.randint(-50, 50), self.one(-7, -1, 1, 2, 5)
        bounds = (start, start + step * self.random.randint(0, 30) + self.one(0, step // 2), step)
        return self._same("arange", f"{bounds}", *bounds)

    def embedding_bag(self) -> Case:
        rows, features, bits = self.one(1, 5, 40), self.one(1, 7, 16, 33, 200), self.one(8, 4)
        weight = self.integers((rows, features if bits == 8 else -(-features // 2)), torch.uint8)
        n, kind = self.one(0, 1, 7, 30), self.one(torch.int32, torch.int64)
        indices = torch.randint(0, rows, (n,)).to(kind)
        last = self.chance(0.4)
        bags = self.one(1, 2, 6) if last else self.one(0, 1, 6)
        in_rows = bags > 0 and self.chance(0.3)
        indices = indices.reshape(1, n) if in_rows else indices
        offsets = (
            None
            if in_rows
            else torch.tensor(sorted([0, *(self.random.randint(0, n) for _ in range(bags - 1))])[:bags]).to(kind)
        )
        mode = self.random.randrange(3)
        weights = torch.randn(indices.shape) if mode == 0 and self.chance(0.5) else None
        padding = self.random.randrange(rows) if self.chance(0.4) else None
        qparams = (torch.rand(rows) * 0.1, torch.randn(rows) * 50)
        options = (bits, features, mode, last, weights, padding)
        return self._same("embedding_bag", f"{offsets} {options}", indices, offsets, weight, *qparams, *options)

    def pool(self) -> Case:
        size = (self.one(1, 2), self.one(1, 3, 24, 64, 70, 130), self.random.randint(3, 12), self.random.randint(3, 12))
        x = self.layout(self.integers(size, self.byte_dtype()))
        zero_point = self.zero_point(x.dtype)
        kernel, stride = [self.one(1, 2, 3) for _ in "hw"], [self.one(1, 2, 3) for _ in "hw"]
        padding = [self.random.randint(0, k // 2) for k in kernel]
        ceil_mode = self.chance(0.5)
        kind = self.one("max", "avg", "adaptive", "global")
        if kind == "global":
            dtype = self.byte_dtype()
            info = torch.iinfo(dtype)
            output = (self.one(0.01, 0.05, 3.0), self.zero_point(dtype), info.min, info.max, dtype)
            return self._same("global_avg_pool2d", f"{size} {output}", x, self.one(0.05, 0.3), zero_point, *output)
        if kind == "max":
            dilation = [self.one(1, 2) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, size[2:], strict=True)]
            name = f"{size} {kernel} {stride} {padding} {dilation} {ceil_mode}"
            return self._same("max_pool2d", name, x, kernel, stride, padding, dilation, ceil_mode)
        if kind == "adaptive":
            output = [self.one(1, 2, 3, 7), self.one(1, 2, 5)]
            return self._same("adaptive_avg_pool2d", f"{size} {output}", x, zero_point, output)
        divisor = self.one(None, None, 3)
        arguments = (x, zero_point, kernel, stride, padding, ceil_mode, self.chance(0.5), divisor)
        return self._same("avg_pool2d", f"{size} {arguments[2:]}", *arguments)

    FAMILIES = (
        "conv2d", "conv2d", "conv2d", "conv3d", "linear", "linear", "quantize_per_tensor", "quantize_per_channel",
        "dequantize_per_channel", "dequantize_per_tensor", "requantize", "binary", "add_float", "add_integers", "add_norm", "attention",
        "cached_attention", "rotary", "silu_mul", "lookup", "pool",
        "interpolate_bilinear2d", "embedding", "embedding_bag", "arange",
        "matmul", "matmul", "normalize", "softmax", "linear_dynamic", "linear_grouped", "linear_grouped", "linear_grouped_split",
        "rnn_dynamic",
        "rnn_static",
    )  # fmt: skip

    def case(self) -> Case:
        return getattr(self, self.one(*self.FAMILIES))()


def same_bits(a: Any, b: Any) -> bool:
    """All bits, but those of NaN, whose sign is the hardware's."""
    if isinstance(a, tuple):
        return all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        if not torch.equal(a.isnan(), b.isnan()):
            return False
        a, b = (torch.where(t.isnan(), torch.zeros_like(t), t) for t in (a, b)) if a.isnan().any() else (a, b)
        bits = {2: torch.int16, 4: torch.int32}[a.itemsize]
        a, b = a.contiguous().view(bits), b.contiguous().view(bits)
    strides = all(s == t or n <= 1 for s, t, n in zip(a.stride(), b.stride(), a.shape, strict=True)) or a.numel() == 0
    return strides and torch.equal(a, b)


def run(seed: int, cases: int) -> list[str]:
    """The descriptions of the cases that differ, with instruction set and thread count."""
    generator, failures = Generator(seed), []
    before = torch.get_num_threads()
    try:
        for index in range(cases):
            case = generator.case()
            expected = case.expected()
            for isa in backend.available_isas():
                with backend.use_isa(isa):
                    for threads in THREADS:
                        torch.set_num_threads(threads)
                        if not same_bits(case.actual(), expected):
                            failures.append(f"seed {seed} case {index} {isa} threads {threads}: {case.description}")
    finally:
        torch.set_num_threads(before)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="first seed (default: the clock)")
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    end, total = time.monotonic() + 60 * arguments.minutes, 0
    while time.monotonic() < end:
        failures = run(seed, 2000)
        total += 2000
        print(f"seed {seed}: {len(failures)} mismatches, {total} cases so far", flush=True)
        if failures:
            print("\n".join(failures))
            return 1
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
