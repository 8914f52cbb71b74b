"""Convolutions of other dimensions and transposed ones: exact integers against torch in float64."""

import random

import pytest
import torch
from torch.nn import functional as F

from zeropoint.ops.convolution import Convolution


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_transposed(seed, dims):
    """Kernels below, at and above the stride, more padding than taps, output padding, groups, one to a few inputs."""
    draw = random.Random(seed)
    many = lambda *options: tuple(draw.choice(options) for _ in range(dims))
    groups, kernel, stride, size = draw.choice([1, 1, 2]), many(1, 2, 3, 4, 5), many(1, 2, 3), many(1, 2, 3, 6)
    padding, extra = tuple(draw.randint(0, k) for k in kernel), tuple(draw.randint(0, s - 1) for s in stride)
    dilation = many(1, 1, 1, 2)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if any((n - 1) * s - 2 * p + r + e <= 0 for n, s, p, r, e in zip(size, stride, padding, reach, extra, strict=True)):
        padding = (0,) * dims
    x = torch.randint(0, 256, (2, 2 * groups, *size), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (2 * groups, 3, *kernel)).to(torch.int8)
    convolution = Convolution(stride, padding, dilation, groups, True, extra)
    prepared = convolution.kernel_weight(weight)
    packed = convolution.pack(prepared, None)
    qparams = (torch.ones(3 * groups), None, None, kernel, 1.0, 7, 1.0, 0, 0, 0, torch.int32)
    function = (F.conv_transpose1d, F.conv_transpose2d)[dims - 1]
    expected = function(x.double() - 7, weight.double(), None, stride, padding, extra, groups, dilation)
    assert torch.equal(convolution(x, prepared, packed, *qparams), expected.to(torch.int32))


def test_a_stride_of_two_is_computed_in_parts():
    weight = torch.ones(4, 4, 4, 4, dtype=torch.int8)
    convolution = Convolution((2, 2), (1, 1), (1, 1), 1, True)
    assert len(convolution.pack(convolution.kernel_weight(weight), None)) == 4
