"""zeropoint.quantize(eager=True): unmodified models in one call, module by module."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.nn import quantized as nnq


def sqnr(reference, value):
    reference = reference.detach()
    return float(10 * torch.log10(reference.pow(2).sum() / (reference - value).pow(2).sum()))


class Residual(nn.Module):
    """No stubs, functions instead of modules, batch norm, a skip, squeeze-and-excite."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        y = self.b(F.silu(self.a(x)))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True))) + x
        return {"logits": self.head(F.adaptive_avg_pool2d(y, 1).flatten(1)), "features": y}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in "qkvo")

    def forward(self, ids, gain):
        x = self.norm(self.words(ids) * gain + self.words.weight[0])
        attention = (self.q(x) @ self.k(x).transpose(-1, -2) / 32**0.5).softmax(-1)
        return self.out(attention @ self.v(x))


def images(n=4):
    return torch.randn(n, 3, 24, 24)


def test_static():
    torch.manual_seed(0)
    model = Residual()
    model(images(32))  # batch norm statistics
    model.eval()
    before = copy.deepcopy(model.state_dict())
    quantized = zp.quantize(model, (images() for _ in range(4)), eager=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = images(8)
    expected, got = model(x), quantized(x)
    assert type(got["logits"]) is type(got["features"]) is torch.Tensor
    assert sqnr(expected["logits"], got["logits"]) > 25
    assert zp.report(quantized).in_float == []
    assert isinstance(quantized.module.stem, zp.nn.intrinsic.quantized.ConvReLU2d)
    zp.backend.reset_fallbacks()
    with zp.backend.strict():
        quantized(x)


def test_transformer_with_several_inputs():
    torch.manual_seed(0)
    model = Encoder().eval()
    batch = lambda: {"ids": torch.randint(0, 50, (2, 7)), "gain": torch.tensor(0.5)}
    quantized = zp.quantize(model, [batch() for _ in range(6)], eager=True)
    inputs = batch()
    assert sqnr(model(**inputs), quantized(**inputs)) > 20
    report = zp.report(quantized)
    assert [layer.name for layer in report.in_float] == ["module.words"]
    assert isinstance(quantized.module.q, nnq.Linear)


def test_state_dict_and_export():
    torch.manual_seed(0)
    model = Residual().eval()
    quantized = zp.quantize(model, [images()], eager=True)
    fresh = zp.quantize(model, [images() * 3], eager=True)
    x = images()
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x)["logits"], quantized(x)["logits"])
    assert torch.equal(copy.deepcopy(quantized)(x)["logits"], quantized(x)["logits"])
    program = torch.export.export(quantized, (x,))
    assert torch.equal(program.module()(x)["logits"], quantized(x)["logits"])


def test_dynamic():
    model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))
    quantized, x = zp.quantize(model, dynamic=True), torch.randn(3, 256)
    assert quantized[0].group_size == 128
    assert sqnr(model(x), quantized(x)) > 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zp.quantize(nn.Linear(2, 2)), "dynamic=True"),
        (lambda: zp.quantize(nn.Linear(2, 2), [torch.zeros(1, 2)], dynamic=True), "dynamic=True"),
        (lambda: zp.quantize(nn.Linear(2, 2), []), "no inputs"),
        (lambda: zp.quantize(lambda x: x, [torch.zeros(1)]), "nn.Module"),
        (lambda: zp.quantize(nn.Linear(2, 2), dynamic=True, qconfig=object()), "qconfig belongs to static"),
    ],
)
def test_errors(call, message):
    with pytest.raises(QuantizationError, match=message):
        call()


class ReadsItsLayer(nn.Module):
    """Calls one layer, and takes the floats of another."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(self.called(x), self.read.weight, self.read.bias.clone())


def test_layers_that_are_never_called_stay_float():
    torch.manual_seed(0)
    model = ReadsItsLayer().eval()
    inputs = [torch.randn(4, 8) for _ in range(4)]
    quantized = zp.quantize(model, inputs, eager=True)
    rows = {row.name: row for row in zp.report(quantized).layers}
    assert rows["module.called"].kind == "int8"
    assert rows["module.read"].kind == "float"
    assert "never reach" in rows["module.read"].reason
    assert sqnr(model(inputs[0]), quantized(inputs[0])) > 25
