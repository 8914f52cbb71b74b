"""Functions without modules keep their scale; floats are taken where they come; nothing is lost on the way."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.errors import QuantizationError
from zeropoint.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)


class Inner(nn.Module):
    def forward(self, x):
        return F.silu(x) * 0.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.inner = nn.Conv2d(3, 8, 3, padding=1), Inner()

    def forward(self, x):
        x = self.conv(self.quant(x))
        y = self.inner(x)
        x = torch.cat([x + y, x - y], 1)
        x = x + 1.0
        x += x
        return self.dequant(x.log_softmax(1))


def calibrated(model=None, shape=(4, 3, 8, 8), qconfig=None):
    torch.manual_seed(0)
    model = (model or Net()).eval()
    model.qconfig = qconfig or get_default_qconfig()
    prepared = prepare(model)
    for _ in range(3):
        prepared(torch.randn(shape))
    return model, prepared, torch.randn(shape)


def test_recorded_by_module_name_and_ordinal():
    model, prepared, x = calibrated()
    assert list(prepared.call_sites) == ["add_0", "sub_0", "cat_0", "add_1", "add_2", "log_softmax_0"]
    assert list(prepared.inner.call_sites) == ["silu_0", "mul_0"]
    quantized = convert(prepared)
    zp.backend.reset_fallbacks()
    assert sqnr(model(x), quantized(x)) > 25
    assert zp.backend.fallbacks() == {"log_softmax": 1}
    with zp.backend.strict(), pytest.raises(QuantizationError, match="log_softmax has no integer form"):
        quantized(x)


def test_report_names_what_ran_in_float():
    _, prepared, x = calibrated()
    quantized = convert(prepared)
    quantized(x)
    report = zp.report(quantized)
    assert [layer.name for layer in report.in_float] == ["log_softmax_0"]
    assert "computed in float32" in str(report)
    assert "log_softmax" in report.fallbacks
    assert quantized.quantization_report.in_float == report.in_float
    dynamic = quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 2)))
    assert [(r.name, r.reason) for r in zp.report(dynamic).in_float] == [("1", "it has no qconfig")]
    floats = quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert [(r.name, r.kind) for r in zp.report(floats).layers] == [("0", "int8"), ("1", "float")]


def test_copies_pickles_and_state():
    _model, prepared, x = calibrated()
    quantized = convert(prepared)
    expected = quantized(x)
    for again in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(again(x), expected)
    # Prepared models pickle and go on.
    resumed = pickle.loads(pickle.dumps(prepared))
    resumed(10 * x)
    assert float(convert(resumed).call_sites["add_0"].scale) > float(quantized.call_sites["add_0"].scale)


def test_a_model_without_call_sites_carries_nothing():
    _model, prepared, x = calibrated(nn.Sequential(QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), DeQuantStub()))
    quantized = convert(prepared)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in quantized.modules())
    assert type(quantized(x)) is torch.Tensor


def test_threads_do_not_share_frames():
    _, prepared, x = calibrated()
    quantized = convert(prepared)
    expected, results = quantized(x), [None] * 4

    def work(i):
        for _ in range(20):
            results[i] = quantized(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(r, expected) for r in results)


def test_an_exception_leaves_no_frame_behind():
    _, prepared, x = calibrated()
    quantized = convert(prepared)
    expected = quantized(x)
    with pytest.raises(Exception, match="input must be"):
        quantized(torch.randn(4, 5, 8, 8))
    assert torch.equal(quantized(x), expected)


class FloatIsland(nn.Module):
    """A layer in float between two in int8, and no stub before the first."""

    def __init__(self):
        super().__init__()
        self.first, self.island, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.dequant = DeQuantStub()

    def forward(self, x):
        return self.dequant(self.last(torch.tanh(self.island(self.first(x)))))


def test_float_islands_and_inputs_without_stub():
    model = FloatIsland()
    model.island.qconfig = None
    model, prepared, x = calibrated(model, (16, 8))
    quantized = convert(prepared)
    assert sqnr(model(x), quantized(x)) > 24
    assert isinstance(quantized.island, nn.Linear)
    fresh = FloatIsland().eval()
    fresh.island = copy.deepcopy(model.island)
    fresh.island.qconfig = None
    fresh.qconfig = get_default_qconfig()
    with pytest.warns(UserWarning, match="never calibrated"):
        fresh = convert(prepare(fresh))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x), quantized(x))
    assert {"first", "last"} <= {n for n, m in quantized.named_modules() if getattr(m, "_input_qparams", None)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_float_types(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(QuantStub(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 4), DeQuantStub()).to(dtype).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    x = torch.randn(32, 16).to(dtype)
    prepared(x)
    assert sqnr(model(x).float(), convert(prepared)(x).float()) > 28


def test_quantization_aware_training_rounds_at_call_sites():
    torch.manual_seed(0)
    model = Net().train()
    model.qconfig = get_default_qat_qconfig()
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(4):
        optimizer.zero_grad()
        prepared(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in prepared.parameters())
    prepared.eval()
    quantized, x = convert(prepared), torch.randn(4, 3, 8, 8)
    assert sqnr(prepared(x), quantized(x)) > 28


def test_export_keeps_call_sites():
    _, prepared, x = calibrated()
    quantized = convert(prepared)
    program = torch.export.export(quantized, (x,))
    assert torch.equal(program.module()(x), quantized(x))
