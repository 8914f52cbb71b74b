"""No read or write outside the tensors: inputs end right before a page that may not be touched."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch

from zeropoint import _reference, ops

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Memory whose last byte borders an inaccessible page."""

    def __init__(self, size):
        page = mmap.PAGESIZE
        self.pages = -(-size // page)
        self.map = mmap.mmap(-1, (self.pages + 1) * page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        assert _libc.mprotect(self.address + self.pages * page, page, 0) == 0
        self.offset = self.pages * page - size

    def tensor(self, source):
        """A copy of ``source`` (same layout) at the end of the accessible part."""
        flat = source.permute(0, 2, 3, 1).reshape(-1) if source.dim() == 4 else source.reshape(-1)
        view = torch.frombuffer(self.map, dtype=source.dtype, count=source.numel(), offset=self.offset)
        view.copy_(flat)
        if source.dim() == 4:
            n, c, h, w = source.shape
            return view.view(n, h, w, c).permute(0, 3, 1, 2)
        return view.view(source.shape)


def guarded(source):
    return Guarded(source.numel() * source.element_size()).tensor(source)


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 32, 63, 64, 65, 144])
def test_depthwise(isa, channels):
    x = guarded(torch.randint(0, 256, (1, channels, 5, 7), dtype=torch.uint8))
    weight = torch.randint(-128, 128, (channels, 1, 3, 3), dtype=torch.int8)
    arguments = (torch.ones(1), None, None, (1, 1), (1, 1), (1, 1), channels, 1.0, 3, 50.0, 0, 0, 255, torch.uint8)
    packed = ops.conv2d_pack(weight, None, (1, 1), channels)
    assert torch.equal(ops.conv2d(x, weight, packed, *arguments), _reference.conv2d(x, weight, packed, *arguments))


@pytest.mark.parametrize("channels", [1, 3, 5, 16, 18, 33, 40, 64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution(isa, channels, kernel):
    x = guarded(torch.randint(0, 256, (1, channels, 6, 5), dtype=torch.uint8))
    weight = torch.randint(-128, 128, (33, channels, kernel, kernel), dtype=torch.int8)
    arguments = (torch.ones(1), None, None, (1, 1), (0, 0), (1, 1), 1, 1.0, 3, 500.0, 0, 0, 255, torch.uint8)
    packed = ops.conv2d_pack(weight, None, (1, 1), 1, (1, 1))
    assert torch.equal(ops.conv2d(x, weight, packed, *arguments), _reference.conv2d(x, weight, packed, *arguments))


@pytest.mark.parametrize("m", [1, 6, 7])
@pytest.mark.parametrize("k", [1, 3, 4, 15, 64, 66])
def test_linear(isa, m, k):
    x = guarded(torch.randint(0, 256, (m, k), dtype=torch.uint8))
    weight = guarded(torch.randint(-128, 128, (65, k), dtype=torch.int8))
    scale, bias = guarded(torch.rand(65) + 0.1), guarded(torch.randn(65))
    arguments = (scale, None, bias, 1.0, 3, 50.0, 0, 0, 255, torch.uint8)
    packed = guarded(ops.linear_pack(weight, None))
    assert torch.equal(ops.linear(x, weight, packed, *arguments), _reference.linear(x, weight, packed, *arguments))


@pytest.mark.parametrize("k", [1, 9, 32, 66])
@pytest.mark.parametrize("bits", [4, 8])
def test_linear_grouped(isa, bits, k):
    groups = -(-k // 32)
    x, weight = guarded(torch.randn(13, k)), guarded(torch.randint(-8, 8, (65, k), dtype=torch.int8))
    scale, zero_point, bias = (
        guarded(torch.rand(65, groups)),
        guarded(torch.randn(65, groups)),
        guarded(torch.randn(65)),
    )
    packed = guarded(ops.linear_grouped_pack(weight, scale, zero_point, 32, bits))
    arguments = (x, weight, packed, scale, zero_point, bias, 32, bits, 15, False)
    assert torch.equal(ops.linear_grouped(*arguments), _reference.linear_grouped(*arguments))


@pytest.mark.parametrize("n", [1, 15, 16, 63, 64, 65, 200])
def test_elementwise(isa, n):
    a, b = (guarded(torch.randint(0, 256, (n,), dtype=torch.uint8)) for _ in "ab")
    table = guarded(torch.randint(0, 256, (256,), dtype=torch.uint8))
    x = guarded(torch.randn(n))
    for name, arguments in (
        ("add", (a, 0.1, 3, b, 0.2, 7, 0.3, 9, 0, 255, torch.uint8)),
        ("mul", (a, 0.1, 3, b, 0.2, 7, 0.3, 9, 0, 255, torch.uint8)),
        ("lookup", (a, table)),
        ("quantize_per_tensor", (x, 0.1, 3, torch.uint8)),
        ("dequantize_per_tensor", (a, 0.1, 3)),
    ):
        assert torch.equal(getattr(ops, name)(*arguments), getattr(_reference, name)(*arguments)), name


@pytest.mark.parametrize("channels", [1, 17, 64, 70])
def test_pools(isa, channels):
    x = guarded(torch.randint(0, 256, (1, 5, 5, channels), dtype=torch.uint8)).permute(0, 3, 1, 2)
    gate = guarded(torch.randint(0, 256, (1, channels, 1, 1), dtype=torch.uint8))
    for name, arguments in (
        ("avg_pool2d", (x, 3, [3, 3], [2, 2], [1, 1], False, True, None)),
        ("global_avg_pool2d", (x, 0.1, 3, 0.05, 7, 0, 255, torch.uint8)),
        ("mul", (x, 0.1, 3, gate, 0.2, 7, 0.3, 9, 0, 255, torch.uint8)),
    ):
        assert torch.equal(getattr(ops, name)(*arguments), getattr(_reference, name)(*arguments)), name
    assert torch.equal(
        ops.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False),
        _reference.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False),
    )
    assert torch.equal(ops.adaptive_avg_pool2d(x, 3, [1, 1]), _reference.adaptive_avg_pool2d(x, 3, [1, 1]))
