"""The reference itself, against statements in exact rational arithmetic that share no code with it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint import _reference


def float32(x: Fraction | float) -> float:
    """Nearest float32, ties to even, from an exact rational, by integer arithmetic alone."""
    x = Fraction(x)
    if x == 0:
        return 0.0
    sign, x = (-1 if x < 0 else 1), abs(x)
    exponent = math.floor(math.log2(x))
    while Fraction(2) ** exponent > x:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= x:
        exponent += 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    return float(sign * round_half_even(x / unit) * unit)


def round_half_even(x: Fraction) -> int:
    low = x.numerator // x.denominator
    rest = x - low
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2):
        return low + 1
    return low


floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
scales = st.floats(2.0**-10, 100, width=32)


@settings(max_examples=300, deadline=None)
@given(x=floats, scale=scales, zero_point=st.integers(0, 255))
def test_quantize_per_tensor(x, scale, zero_point):
    inverse = Fraction(float32(Fraction(1) / Fraction(scale)))
    fused = Fraction(float32(Fraction(x) * inverse + zero_point))
    expected = min(255, max(0, round_half_even(fused)))
    assert int(_reference.quantize_per_tensor(torch.tensor([x]), scale, zero_point, torch.uint8)) == expected


@settings(max_examples=300, deadline=None)
@given(x=floats, scale=scales, zero_point=st.integers(-128, 127))
def test_quantize_per_channel(x, scale, zero_point):
    inverse = Fraction(float32(Fraction(1) / Fraction(scale)))
    product = Fraction(float32(Fraction(x) * inverse))
    expected = min(127, max(-128, round_half_even(Fraction(float32(product + zero_point)))))
    actual = _reference.quantize_per_channel(
        torch.tensor([x]),
        torch.tensor([scale]),
        torch.tensor([zero_point], dtype=torch.int32),
        0,
        -128,
        127,
        torch.int8,
    )
    assert int(actual) == expected


@settings(max_examples=300, deadline=None)
@given(
    acc=st.integers(-(2**31), 2**31 - 1), multiplier=st.floats(2.0**-30, 10, width=32), zero_point=st.integers(0, 255)
)
def test_requantize(acc, multiplier, zero_point):
    value = Fraction(float32(Fraction(float32(acc)) * Fraction(multiplier)))
    expected = min(255, max(0, round_half_even(value) + zero_point))
    assert (
        int(_reference.requantize(torch.tensor([acc], dtype=torch.int32), multiplier, zero_point, torch.uint8))
        == expected
    )


@settings(max_examples=200, deadline=None)
@given(
    a=st.integers(0, 255),
    b=st.integers(0, 255),
    za=st.integers(0, 255),
    zb=st.integers(0, 255),
    sa=scales,
    sb=scales,
    s=scales,
)
def test_add_and_mul(a, b, za, zb, sa, sb, s):
    inverse = 1.0 / float(np.float32(s))  # float64, as the definition says
    ma, mb = (Fraction(float32(Fraction(float(np.float32(v)) * inverse))) for v in (sa, sb))
    left, right = float32((a - za) * ma), float32((b - zb) * mb)
    expected = min(255, max(0, round_half_even(Fraction(float32(Fraction(left) + Fraction(right)))) + 9))
    tensors = [torch.tensor([v], dtype=torch.uint8) for v in (a, b)]
    assert int(_reference.add(tensors[0], sa, za, tensors[1], sb, zb, s, 9, 0, 255, torch.uint8)) == expected
    m = Fraction(float32(Fraction(float(np.float32(sa)) * float(np.float32(sb)) * inverse)))
    expected = min(255, max(0, round_half_even(Fraction(float32((a - za) * (b - zb) * m))) + 9))
    assert int(_reference.mul(tensors[0], sa, za, tensors[1], sb, zb, s, 9, 0, 255, torch.uint8)) == expected


def test_linear_accumulators_are_integers():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (7, 33)), rng.integers(-128, 128, (5, 33))
    wz = rng.integers(-128, 128, 5)
    expected = (x.astype(np.int64) - 17) @ (w - wz[:, None]).T.astype(np.int64)
    actual = _reference.linear(
        torch.tensor(x, dtype=torch.uint8), torch.tensor(w, dtype=torch.int8), None, torch.ones(1), torch.tensor(wz), None,
        1.0, 17, 1.0, 0, 0, 0, torch.int32,
    )  # fmt: skip
    assert np.array_equal(actual.numpy(), expected)


def test_conv2d_accumulators_are_integers():
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 4, 6, 5)), rng.integers(-128, 128, (6, 2, 3, 2))
    padded = np.pad(x.astype(np.int64) - 9, ((0, 0), (0, 0), (1, 1), (2, 2)))
    expected = np.zeros((1, 6, 6, 4), np.int64)
    for o in range(6):
        group = o // 3
        for i in range(6):
            for j in range(4):
                window = padded[0, 2 * group : 2 * group + 2, i : i + 3, 2 * j : 2 * j + 2]
                expected[0, o, i, j] = (window * w[o]).sum()
    actual = _reference.conv2d(
        torch.tensor(x, dtype=torch.uint8), torch.tensor(w, dtype=torch.int8), None, torch.ones(1), None, None,
        (1, 2), (1, 2), (1, 1), 2, 1.0, 9, 1.0, 0, 0, 0, torch.int32,
    )  # fmt: skip
    assert np.array_equal(actual.numpy(), expected)


def test_dead_channel_keeps_its_bias():
    # A channel with a tiny weight scale: its bias as an int32 of scale x_scale * w_scale would be 4e9, which
    # does not fit. The float32 bias of the epilogue is exact to rounding.
    x, w = torch.full((1, 4), 3, dtype=torch.uint8), torch.ones(1, 4, dtype=torch.int8)
    out = _reference.linear(
        x, w, None, torch.tensor([1e-7]), None, torch.tensor([4.0]), 0.01, 0, 0.05, 0, 0, 255, torch.uint8
    )
    assert int(out) == 80


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (127.5, 127)]
)
def test_ties_go_to_even(value, expected):
    assert int(_reference.quantize_per_tensor(torch.tensor([value]), 1.0, 0, torch.int8)) == expected


def test_nan_and_infinity():
    x = torch.tensor([math.nan, math.inf, -math.inf])
    assert _reference.quantize_per_tensor(x, 0.1, 7, torch.uint8).tolist() == [7, 255, 0]
    assert _reference.quantize_per_tensor(x, 0.1, -7, torch.int8).tolist() == [-7, 127, -128]
    assert _reference.quantize_per_tensor(x, 0.1, 7, torch.int32).tolist() == [7, 2**31 - 1, -(2**31)]
