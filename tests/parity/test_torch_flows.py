"""Whole flows give torch.ao's outputs, while torch still has them.

Convolutions and linear layers agree bit for bit here. Sums and average pools round at other places in torch (it
dequantizes, adds and quantizes), so that a value at a tie may differ by one step before the last layer.
"""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from torch import nn

import zeropoint.quantization as ours
from zeropoint.nn.quantized import FloatFunctional

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("torch.ao.quantization")
        their_float_functional = importlib.import_module("torch.ao.nn.quantized").FloatFunctional
except ImportError:
    theirs = None

pytestmark = [
    pytest.mark.skipif(theirs is None, reason="this torch no longer has torch.ao.quantization"),
    pytest.mark.filterwarnings("ignore"),
]


class Net(nn.Module):
    def __init__(self, flow, pool=nn.functional.adaptive_avg_pool2d):
        super().__init__()
        self.pool = pool
        self.quant, self.dequant = flow.QuantStub(), flow.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.skip = FloatFunctional() if flow is ours else their_float_functional()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.skip.add(x, self.depthwise(x))
        return self.dequant(self.fc(self.pool(x, 1).flatten(1)))


FUSE = [["conv", "bn", "relu"]]


def inputs():
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _engine():
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    yield
    torch.backends.quantized.engine = before


def qconfig(flow, name):
    return flow.get_default_qconfig("fbgemm") if name == "fbgemm" else getattr(flow, name)


@pytest.mark.parametrize("name", ["default_qconfig", "default_per_channel_qconfig", "fbgemm"])
def test_static(name):
    outputs = []
    for flow in (ours, theirs):
        torch.manual_seed(0)
        model = Net(flow).eval()
        flow.fuse_modules(model, FUSE, inplace=True)
        model.qconfig = qconfig(flow, name)
        prepared = flow.prepare(model)
        prepared(inputs())
        quantized, seen = flow.convert(prepared), {}
        for layer in ("conv", "depthwise"):
            quantized.get_submodule(layer).register_forward_hook(
                lambda m, i, o, layer=layer, seen=seen: seen.update({layer: o.int_repr()})
            )
        outputs.append((quantized(inputs()), seen))
    for layer in ("conv", "depthwise"):
        assert torch.equal(outputs[0][1][layer], outputs[1][1][layer])
    steps = (outputs[0][0] - outputs[1][0]).abs() / quantized.fc.scale
    assert float(steps.max()) <= 2.001
    assert float((steps > 0.5).float().mean()) <= 0.15


def test_quantization_aware_training():
    losses, outputs = [], []
    for flow in (ours, theirs):
        torch.manual_seed(0)
        # Maxima are on the grid already; averages are rounded to it here, in training too, and not there (decision 10).
        model = Net(flow, lambda x, size: nn.functional.max_pool2d(x, 16)).train()
        flow.fuse_modules_qat(model, FUSE, inplace=True)
        model.qconfig = flow.get_default_qat_qconfig("fbgemm", version=0)
        model = flow.prepare_qat(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(4):
            loss = model(inputs()).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        outputs.append(flow.convert(model.eval())(inputs()))
    # Fake quantization may differ from torch's at ties; a loss moves by far less than a step of training.
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-3)
    assert losses[0] > 1.02 * losses[3]
    step = float((outputs[1].max() - outputs[1].min()) / 64)
    assert float((outputs[0] - outputs[1]).abs().max()) <= step


def test_dynamic_linear_is_closer_to_float_than_torch():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 32)), torch.randn(20, 64)
    expected = model(x)
    errors = [(flow.quantize_dynamic(model)(x) - expected).pow(2).mean() for flow in (ours, theirs)]
    assert errors[0] <= errors[1]
