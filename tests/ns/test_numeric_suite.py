"""The numeric suite, equalization and bias correction."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.analysis import sqnr
from zeropoint.errors import QuantizationError
from zeropoint.ns import _numeric_suite as ns
from zeropoint.quantization import (
    QuantWrapper,
    convert,
    default_qconfig,
    get_default_qconfig,
    prepare,
    quantize_dynamic,
)
from zeropoint.quantization._correct_bias import bias_correction, get_param, parent_child_names
from zeropoint.quantization._equalize import channel_range, converged, cross_layer_equalization, equalize


def models(qconfig=None):
    torch.manual_seed(0)
    net = QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))).eval()
    net.qconfig = qconfig or get_default_qconfig()
    prepared, x = prepare(net), torch.randn(8, 3, 8, 8)
    prepared(x)
    return net, convert(prepared), x


def test_compare_weights():
    net, quantized, _ = models()
    pairs = ns.compare_weights(net.state_dict(), quantized.state_dict())
    assert set(pairs) == {"module.0.weight", "module.3.weight"}
    for pair in pairs.values():
        assert isinstance(pair["quantized"], zp.QTensor)
        assert sqnr(pair["float"], pair["quantized"].dequantize()) > 40
    dynamic = quantize_dynamic(nn.Sequential(nn.Linear(4, 3)))
    assert "0.weight" in ns.compare_weights(nn.Sequential(nn.Linear(4, 3)).state_dict(), dynamic.state_dict())


def test_compare_model_outputs():
    net, quantized, x = models()
    found = ns.compare_model_outputs(copy.deepcopy(net), copy.deepcopy(quantized), x)
    assert {k.removesuffix(".activation_post_process.stats") for k in found} >= {"module.0", "module.3"}
    for pair in found.values():
        q = pair["quantized"][0]
        assert sqnr(pair["float"][0], q.dequantize() if isinstance(q, zp.QTensor) else q) > 28
    with pytest.raises(QuantizationError, match="has observers"):
        ns.prepare_model_outputs(prepare(net), quantized)


def test_compare_model_stub():
    net, quantized, x = models()
    found = ns.compare_model_stub(net, quantized, {nn.Conv2d, nn.Linear}, x)
    assert set(found) == {"module.0.logger.stats", "module.3.logger.stats"}
    for stats in found.values():
        assert sqnr(stats["float"][0], stats["quantized"][0]) > 28


def test_equalization_keeps_the_function_and_meets_the_ranges():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight[2] *= 100
        net[2].weight[1] *= 30
        net[0].weight[4] = 0
    x = torch.randn(2, 3, 9, 9)
    expected = net(x)
    kept = copy.deepcopy(net)
    result = equalize(net, [["0", "2", "4"]], threshold=1e-4, inplace=False)
    assert torch.allclose(result(x), expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), kept.parameters(), strict=True))
    live = [0, 1, 2, 3, 5]
    ranges = channel_range(result[0].weight)[live], channel_range(result[2].weight, 1)[live]
    assert torch.allclose(*ranges, rtol=1e-2)
    with pytest.raises(QuantizationError, match="output channels"):
        cross_layer_equalization(nn.Linear(3, 4), nn.Linear(5, 4))
    with pytest.raises(QuantizationError, match="same set of names"):
        converged({"a": nn.Linear(1, 1)}, {"b": nn.Linear(1, 1)})


def test_equalization_helps_weights_per_tensor():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    with torch.no_grad():
        net[0].weight *= torch.logspace(-2, 1, 16).reshape(-1, 1, 1, 1)
        net[2].weight /= torch.logspace(-2, 1, 16).reshape(1, -1, 1, 1)
    x, scores = torch.randn(4, 3, 12, 12), []
    for model in (copy.deepcopy(net), equalize(copy.deepcopy(net), [["0", "2"]])):
        wrapped = QuantWrapper(model).eval()
        wrapped.qconfig = default_qconfig
        prepared = prepare(wrapped)
        prepared(x)
        scores.append(sqnr(net(x), convert(prepared)(x)))
    assert scores[1] > scores[0] + 10


def test_bias_correction():
    net, quantized, x = models(default_qconfig)
    layer = quantized.module[3]
    layer.set_weight_bias(layer.weight(), layer.bias() + torch.tensor([0.3, -0.3, 0.2, 0.0, 0.1]))
    before = float((quantized(x) - net(x)).detach().mean(0).abs().max())
    bias_correction(net, quantized, [(x, None)], neval_batches=1)
    after = float((quantized(x) - net(x)).detach().mean(0).abs().max())
    assert after < before / 5
    assert type(quantized.module[3]) is zp.nn.quantized.Linear
    assert parent_child_names("a.b.c") == ("a.b", "c")
    assert torch.equal(get_param(layer, "bias"), layer.bias())
