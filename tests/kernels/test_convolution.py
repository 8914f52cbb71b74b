"""Convolutions of other dimensions and transposed ones: exact integers against torch in float64."""

import random

import pytest
import torch
from torch.nn import functional as F

from zeropoint import _reference, backend, ops
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


@pytest.mark.parametrize("isa", backend.available_isas())
@pytest.mark.parametrize("kernel", [(1, 3), (2, 3), (3, 3), (4, 5), (5, 5), (6, 7), (7, 7), (9, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (3, 1)])
def test_depthwise_rows_that_share_their_input(isa, kernel, stride):
    """Heights that leave one to three places free, outputs of whole and part groups of rows, whole and part blocks of
    pixels (7 and 8) and channels, every kind of output."""
    torch.manual_seed(0)
    for channels, size in ((130, (7, 14)), (40, (10, 16)), (64, (6, 29))):
        x = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
        weight = torch.randint(-128, 128, (channels, 1, *kernel)).to(torch.int8)
        geometry = (stride, tuple(k // 2 for k in kernel), (1, 1), channels)
        scale, bias = torch.rand(channels) * 0.01, torch.randn(channels)
        for output in ((0.5, 0, 0, 255, torch.uint8), (0.1, 3, -100, 90, torch.int8), (1.0, 0, 0, 0, torch.float32)):
            arguments = (scale, None, bias, *geometry, 0.02, 120, *output)
            expected = _reference.conv2d(x, weight, torch.empty(0, dtype=torch.uint8), *arguments)
            with backend.use_isa(isa):
                packed = ops.conv2d_pack(weight, None, (1, 1), channels)
                assert torch.equal(ops.conv2d(x, weight, packed, *arguments), expected)
                if output[4] is torch.uint8:
                    residual = torch.randint(0, 256, expected.shape, dtype=torch.uint8)
                    tail = {"residual": residual, "residual_scale": 0.3, "residual_zero_point": 9, "sum_scale": 0.7}
                    tail |= {"sum_zero_point": 5, "sum_min": 0, "sum_max": 255}
                    whole = _reference.conv2d(x, weight, torch.empty(0, dtype=torch.uint8), *arguments, **tail)
                    assert torch.equal(ops.conv2d(x, weight, packed, *arguments, **tail), whole)


@pytest.mark.parametrize("isa", backend.available_isas())
@pytest.mark.parametrize(
    ("groups", "channels", "columns"),
    [
        *((32, 4, 4), (8, 8, 8), (5, 24, 24), (3, 21, 16), (48, 1, 2), (17, 1, 3), (7, 2, 5), (6, 3, 1), (3, 16, 7)),
        *((9, 17, 1), (2, 5, 1), (2, 33, 2), (2, 1, 8)),  # bytes that are far apart; pixels of less than 16 bytes
    ],
)
def test_small_groups(isa, groups, channels, columns):
    """Whole and part registers, words of one to four rows; weights of 9 bits, too."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, groups * channels, 9, 11), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (groups * columns, channels, 3, 3)).to(torch.int8)
    scale, bias = torch.rand(groups * columns) * 0.01, torch.randn(groups * columns)
    for zero_point in (None, torch.randint(-9, 9, (groups * columns,))):
        for stride in ((1, 1), (2, 2)):
            arguments = (
                scale,
                zero_point,
                bias,
                stride,
                (1, 1),
                (1, 1),
                groups,
                0.02,
                120,
                0.5,
                0,
                0,
                255,
                torch.uint8,
            )
            expected = _reference.conv2d(x, weight, torch.empty(0, dtype=torch.uint8), *arguments)
            with backend.use_isa(isa):
                packed = ops.conv2d_pack(weight, zero_point, (1, 1), groups)
                assert torch.equal(ops.conv2d(x, weight, packed, *arguments), expected)
    half = torch.cat([weight, weight], 1)  # the shape of half as many groups
    other = (scale, None, bias, (1, 1), (1, 1), (1, 1), groups // 2, 0.02, 120, 0.5, 0, 0, 255, torch.uint8)
    few = x[:, : groups // 2 * 2 * channels]
    with backend.use_isa(isa), pytest.raises(ValueError, match="made for other groups"):
        ops.conv2d(few, half, packed, *other)


@pytest.mark.parametrize("isa", backend.available_isas())
@pytest.mark.parametrize(
    ("channels", "kernel"), [(3, 3), (3, 7), (1, 3), (1, 5), (1, 7), (8, 3), (12, 1), (5, 2), (15, 5)]
)
def test_few_channels(isa, channels, kernel):
    """Kernels whose rows are taps of their own, and those that are put together whole."""
    torch.manual_seed(0)
    x = torch.randint(-128, 128, (2, channels, 19, 23)).to(torch.int8)
    weight = torch.randint(-128, 128, (37, channels, kernel, kernel)).to(torch.int8)
    for stride, dilation in (((1, 1), (1, 1)), ((2, 3), (2, 1))):
        geometry = (stride, (kernel // 2, 1), dilation, 1)
        arguments = (torch.rand(37) * 0.01, None, torch.randn(37), *geometry, 0.02, -5, 0.5, 3, -128, 127, torch.int8)
        expected = _reference.conv2d(x, weight, torch.empty(0, dtype=torch.uint8), *arguments)
        with backend.use_isa(isa):
            packed = ops.conv2d_pack(weight, None, dilation, 1)
            assert torch.equal(ops.conv2d(x, weight, packed, *arguments), expected)


@pytest.mark.parametrize("isa", backend.available_isas())
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_results_beyond_int32_saturate(isa, kernel, stride):
    """Before rounding they are up to 1e13, which no conversion to int32 holds."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (1, 112, 9, 9), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (112, 1, kernel, kernel)).to(torch.int8)
    geometry = ((stride, stride), (1, 1), (1, 1), 112)
    arguments = (torch.rand(112) + 0.5, None, None, *geometry, 1.0, 128, 1e-8, 3, 0, 255, torch.uint8)
    expected = _reference.conv2d(x, weight, torch.empty(0, dtype=torch.uint8), *arguments)
    assert set(expected.unique().tolist()) <= {0, 3, 255}
    with backend.use_isa(isa):
        packed = ops.conv2d_pack(weight, None, (1, 1), 112)
        assert torch.equal(ops.conv2d(x, weight, packed, *arguments), expected)


WINOGRAD = [
    (32, 32, (56, 5)),
    (64, 48, (7, 7)),
    (33, 40, (9, 14)),
    (70, 33, (1, 1)),
    (130, 65, (2, 3)),
    (512, 34, (4, 7)),
]


@pytest.mark.parametrize("isa", backend.available_isas())
@pytest.mark.parametrize(("channels", "out_channels", "size"), WINOGRAD)
def test_three_by_three(isa, channels, out_channels, size):
    """Packed for a stride of 1, which AVX2 takes for Winograd's algorithm, and for any: the same bits."""
    torch.manual_seed(0)
    any_bytes = torch.empty(0, dtype=torch.uint8)
    for dtype, padding, zero_point in ((torch.uint8, (1, 1), None), (torch.int8, (2, 1), torch.tensor([-128]))):
        x = torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8).view(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randint(-128, 128, (out_channels, channels, 3, 3)).to(torch.int8)
        scale, bias = torch.rand(out_channels) * 0.01, torch.randn(out_channels)
        for output in ((0.5, 3, 0, 255, torch.uint8), (1.0, 0, 0, 0, torch.float32), (1.0, 0, 0, 0, torch.int32)):
            arguments = (scale, zero_point, bias, (1, 1), padding, (1, 1), 1, 0.02, 9, *output)
            expected = _reference.conv2d(x, weight, any_bytes, *arguments)
            tail = {}
            if output[4] is torch.uint8:
                tail = {"residual": torch.randint(0, 256, expected.shape, dtype=torch.uint8), "residual_scale": 0.3}
                tail |= {"residual_zero_point": 9, "sum_scale": 0.7, "sum_zero_point": 5, "sum_min": 0, "sum_max": 255}
                tail |= {"table": torch.randint(0, 256, (256,), dtype=torch.uint8)}
                expected = _reference.conv2d(x, weight, any_bytes, *arguments, **tail)
            with backend.use_isa(isa):
                for stride in ((1, 1), ()):
                    packed = ops.conv2d_pack(weight, zero_point, (1, 1), 1, stride)
                    assert torch.equal(ops.conv2d(x, weight, packed, *arguments, **tail), expected)


def test_winograd_where_it_is_exact(isa):
    """Extreme sums, which it holds four times; where an int32 cannot, weights are packed directly."""
    for channels, direct in ((1024, False), (2048, True)):
        x = torch.full((1, channels, 3, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        weight = torch.full((32, channels, 3, 3), -128, dtype=torch.int8)
        arguments = (torch.ones(1), None, None, (1, 1), (1, 1), (1, 1), 1, 1.0, 0, 1.0, 0, 0, 0, torch.int32)
        packed, any_stride = (ops.conv2d_pack(weight, None, (1, 1), 1, stride) for stride in ((1, 1), ()))
        assert direct is (packed.numel() == any_stride.numel()) or isa != "avx2"
        actual = ops.conv2d(x, weight, packed, *arguments)
        assert torch.equal(actual, _reference.conv2d(x, weight, packed, *arguments))
        assert int(actual.min()) == -255 * 128 * 9 * channels


@pytest.mark.parametrize("isa", [i for i in backend.available_isas() if i == "avx2"])
def test_winograd_has_a_stride_of_one(isa):
    weight = torch.ones(32, 32, 3, 3, dtype=torch.int8)
    x = torch.ones(1, 32, 5, 5, dtype=torch.uint8)
    with backend.use_isa(isa):
        packed = ops.conv2d_pack(weight, None, (1, 1), 1, (1, 1))
        arguments = (torch.ones(1), None, None, (2, 2), (1, 1), (1, 1), 1, 1.0, 0, 1.0, 0, 0, 0, torch.int32)
        with pytest.raises(ValueError, match="made for other groups, dilation, stride or shape"):
            ops.conv2d(x, weight, packed, *arguments)
