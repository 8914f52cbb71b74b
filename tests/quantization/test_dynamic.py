from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from zeropoint import QuantizationError, qint8
from zeropoint.analysis import sqnr
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig, quantize_dynamic


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 8))).eval()


@pytest.mark.parametrize("spec", [None, {nn.Linear}, {nn.Linear: per_channel_dynamic_qconfig}, {"0", "2.0"}])
def test_linear(isa, spec):
    net, x = model(), torch.randn(5, 7, 32)
    quantized = quantize_dynamic(net, spec)
    assert type(quantized[0]) is nnqd.Linear
    assert type(quantized[2][0]) is nnqd.Linear
    assert sqnr(net(x), quantized(x)) > 35
    assert "DynamicQuantizedLinear(in_features=32, out_features=64, dtype=zeropoint.qint8" in repr(quantized)
    assert type(net[0]) is nn.Linear


def test_by_name():
    quantized = quantize_dynamic(model(), {"0": default_dynamic_qconfig})
    assert type(quantized[0]) is nnqd.Linear
    assert type(quantized[2][0]) is nn.Linear


def test_same_bits_on_any_thread_count_and_state_round_trip():
    quantized, x = quantize_dynamic(model()), torch.randn(5, 32)
    expected = quantized(x)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(quantized(x), expected)
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(9)
    fresh = quantize_dynamic(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 8))))
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), expected)
    assert torch.equal(copy.deepcopy(quantized)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    quantized = quantize_dynamic(model())
    assert quantized[0](torch.randn(3, 32).to(dtype)).dtype == dtype


def test_edges():
    linear = quantize_dynamic(model())[0]
    assert linear(torch.zeros(0, 32)).shape == (0, 64)
    assert torch.allclose(linear(torch.zeros(2, 32)), linear.bias().expand(2, 64))
    nan = torch.randn(1, 32)
    nan[0, 3] = float("nan")
    assert bool(torch.isfinite(linear(nan)).all())
    with pytest.raises(QuantizationError, match="finite"):
        linear(torch.full((1, 32), float("inf")))


def test_wrong_use():
    with pytest.raises(QuantizationError, match="Conv2d has no dynamic form"):
        quantize_dynamic(model(), {nn.Conv2d})
    with pytest.raises(QuantizationError, match="no submodule 'head'"):
        quantize_dynamic(model(), {"head"})
    with pytest.raises(QuantizationError, match="dtype must be qint8"):
        quantize_dynamic(model(), dtype=torch.float16)
    with pytest.raises(QuantizationError, match=r"must be float \[..., 32\]"):
        quantize_dynamic(model(), dtype=qint8)[0](torch.randn(2, 31))
    with pytest.warns(UserWarning, match="stay float: 0"):
        quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)))
