from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zeropoint as zp
from zeropoint.nn.quantized import functional as qF
from zeropoint.tensor import pointwise, requantize


@pytest.mark.parametrize("dtype", [zp.quint8, zp.qint8])
@pytest.mark.parametrize("function", [torch.sigmoid, F.silu, F.gelu, torch.exp, torch.abs, F.mish])
def test_every_input_is_the_rounded_real(isa, dtype, function):
    q = zp.make_per_tensor_quantized_tensor(
        torch.arange(dtype.quant_min, dtype.quant_max + 1).to(dtype.storage), 0.05, 10
    )
    result = pointwise(q, function, 0.03, 20, zp.quint8)
    # The table's formula, from the definition, in float64.
    reals = (q.int_repr().double() - 10) * torch.tensor(0.05).double()
    expected = torch.clamp(torch.round(function(reals) / torch.tensor(0.03).double()) + 20, 0, 255)
    assert torch.equal(result.int_repr().double(), expected)


def test_requantize_to_the_same_grid_is_the_identity(isa):
    q = zp.quantize_per_tensor(torch.randn(1000), 0.03, 100, zp.quint8)
    assert torch.equal(requantize(q, 0.03, 100), q)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda q: qF.hardswish(q, 0.04, 10), F.hardswish),
        (lambda q: qF.elu(q, 0.04, 50, 1.3), lambda x: F.elu(x, 1.3)),
        (lambda q: qF.celu(q, 0.04, 50, 0.7), lambda x: F.celu(x, 0.7)),
        (lambda q: qF.leaky_relu(q, 0.2, False, 0.04, 50), lambda x: F.leaky_relu(x, 0.2)),
    ],
)
def test_functional(isa, ours, theirs):
    q = zp.quantize_per_tensor(torch.randn(500), 0.03, 128, zp.quint8)
    assert float((ours(q).dequantize() - theirs(q.dequantize())).abs().max()) <= 0.04 * 0.501
