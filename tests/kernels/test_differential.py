"""Thousands of random cases per run, with a new seed each time; the seed is in the failure."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

from zeropoint import _reference, backend, ops

_spec = importlib.util.spec_from_file_location("zeropoint_differential", Path(__file__).with_name("differential.py"))
differential = importlib.util.module_from_spec(_spec)
sys.modules["zeropoint_differential"] = differential
_spec.loader.exec_module(differential)


@pytest.mark.parametrize("part", range(4))
def test_random_cases_equal_the_reference(part):
    seed = int(time.time()) * 4 + part
    print(f"seed {seed}")
    assert differential.run(seed, 1000) == []


@pytest.mark.parametrize("part", range(2))
def test_fixed_cases_equal_the_reference(part):
    assert differential.run(part, 1000) == []


def test_the_comparison_sees_a_wrong_bit():
    # The differential test is only worth something if it can fail.
    x = torch.zeros(4, dtype=torch.uint8)
    assert differential.same_bits(x, x.clone())
    assert not differential.same_bits(x, torch.tensor([0, 0, 0, 1], dtype=torch.uint8))
    assert not differential.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def _conv(x, weight, isa_pack=True, groups=1, dilation=(1, 1), pad=(1, 1)):
    packed = ops.conv2d_pack(weight, None, dilation, groups)
    scale = torch.ones(1)
    arguments = (scale, None, None, (1, 1), pad, dilation, groups, 1.0, 3, 1.0, 0, 0, 255, torch.int32)
    return ops.conv2d(x, weight, packed, *arguments), _reference.conv2d(x, weight, packed, *arguments)


def test_extreme_products_do_not_saturate(isa):
    # 255 * -128 and 255 * 127 in neighbouring taps overflow the 16-bit sums of AVX2's byte multiply-add.
    x = torch.full((1, 64, 5, 5), 255, dtype=torch.uint8)
    for value in (-128, 127):
        weight = torch.full((16, 64, 3, 3), value, dtype=torch.int8)
        actual, expected = _conv(x, weight)
        assert torch.equal(actual, expected)
        assert int(expected.abs().max()) == (255 - 3) * 64 * 9 * abs(value)
        depthwise = torch.full((64, 1, 3, 3), value, dtype=torch.int8)
        assert torch.equal(*_conv(x, depthwise, groups=64))


def test_longest_exact_reduction(isa):
    # sum |w| * 255 may reach 2^31 - 1 and no more: 66311 weights of 127 are 8421497, the bound 8421504.
    k = 66311
    x = torch.full((1, k), 255, dtype=torch.uint8)
    weight = torch.full((1, k), 127, dtype=torch.int8)
    out = ops.linear(
        x, weight, ops.linear_pack(weight, None), torch.ones(1), None, None, 1.0, 0, 1.0, 0, 0, 0, torch.int32
    )
    assert int(out) == 255 * 127 * k < 2**31
    longer = torch.full((1, k + 1), 127, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"overflow|accumulator"):
        ops.linear_pack(longer, None)
    with pytest.raises(ValueError, match="accumulator"):
        _reference.linear_pack(longer, None)


def test_packed_weights_are_bound_to_an_instruction_set():
    weight = torch.ones(4, 8, dtype=torch.int8)
    isas = backend.available_isas()
    if len(isas) == 1:
        return  # nothing to confuse
    with backend.use_isa(isas[0]):
        packed = ops.linear_pack(weight, None)
    with backend.use_isa(isas[-1]), pytest.raises(ValueError, match="another instruction set"):
        ops.linear(
            torch.zeros(1, 8, dtype=torch.uint8),
            weight,
            packed,
            torch.ones(1),
            None,
            None,
            1.0,
            0,
            1.0,
            0,
            0,
            255,
            torch.uint8,
        )


def test_damaged_packed_weights_are_refused(isa):
    weight = torch.ones(4, 8, dtype=torch.int8)
    packed = ops.linear_pack(weight, None)
    x = torch.zeros(1, 8, dtype=torch.uint8)
    for damaged in (packed[:50], packed[:-64], torch.zeros_like(packed), torch.empty(0, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="packed"):
            ops.linear(x, weight, damaged.clone(), torch.ones(1), None, None, 1.0, 0, 1.0, 0, 0, 255, torch.uint8)


def test_batch_split_gives_the_same_bits(isa):
    x = torch.randint(0, 256, (6, 20, 9, 9), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (33, 20, 3, 3), dtype=torch.int8)
    whole, _ = _conv(x, weight)
    parts = torch.cat([_conv(part, weight)[0] for part in x.split(1)])
    assert torch.equal(whole, parts)


def test_scales_are_rounded_to_float32_first(isa):
    """Found by fuzzing: GCC 12 dropped the rounding of two scales at once; this value sits next to a float32 tie."""
    a, b = torch.full((256,), 60, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8)
    arguments = (a, 2.4421874269267785, 28, b, 0.03, 128, 0.9, 0, 0, 255, torch.uint8)
    assert torch.equal(ops.add(*arguments), _reference.add(*arguments))
    weight, none = torch.ones(256, 1, dtype=torch.int8), None
    x, residual = torch.full((1, 1), 60, dtype=torch.uint8), b.reshape(1, 256)
    tail = {"residual": residual, "residual_scale": 0.03, "residual_zero_point": 128, "sum_scale": 0.9}
    output = (torch.ones(1), none, none, 2.4421874269267785, 28, 2.4421874269267785, 28, 0, 255, torch.uint8)
    packed = ops.linear_pack(weight, none)
    assert torch.equal(
        ops.linear(x, weight, packed, *output, **tail), _reference.linear(x, weight, packed, *output, **tail)
    )
