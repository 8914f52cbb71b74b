from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.tensor import quant_range

values = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=300, deadline=None)
@given(a=values, b=values, dtype=st.sampled_from([zp.quint8, zp.qint8]), symmetric=st.booleans())
def test_range_is_covered_and_zero_exact(a, b, dtype, symmetric):
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scheme = zp.per_tensor_symmetric if symmetric else zp.per_tensor_affine
    scale, zero_point = zp.choose_qparams(low, high, dtype, scheme)
    assert dtype.quant_min <= int(zero_point) <= dtype.quant_max
    ends = torch.stack([low, high, torch.tensor(0.0)])
    back = zp.quantize_per_tensor(ends, scale, zero_point, dtype).dequantize()
    # Symmetric ranges have one step less above than below; everything else is within half a step.
    allowed = float(scale) * (1.0 if symmetric else 0.5) * 1.001 + 1e-6
    assert bool(((back - ends).abs() <= allowed).all())
    assert float(back[2]) == 0.0


def test_zero_range_gives_eps():
    scale, zero_point = zp.choose_qparams(torch.tensor(0.0), torch.tensor(0.0))
    assert float(scale) == torch.finfo(torch.float32).eps
    assert int(zero_point) == 0


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)])
def test_bad_range(low, high):
    with pytest.raises(QuantizationError, match="finite with min <= max"):
        zp.choose_qparams(torch.tensor(low), torch.tensor(high))


@pytest.mark.parametrize(("low", "high"), [(5, 5), (9, 3), (1, 10), (-300, 300)])
def test_bad_integer_range(low, high):
    with pytest.raises(QuantizationError):
        quant_range(zp.quint8, low, high)


def test_ranges():
    assert quant_range(zp.quint8) == (0, 255)
    assert quant_range(zp.qint8) == (-128, 127)
    assert quant_range(zp.quint8, reduce_range=True) == (0, 127)
    assert quant_range(zp.qint8, reduce_range=True) == (-64, 63)
    assert quant_range(zp.qint8, -127, 127) == (-127, 127)
