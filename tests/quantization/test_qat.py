from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.analysis import sqnr
from zeropoint.nn import intrinsic as nni
from zeropoint.nn import qat as nnqat
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import qat as nniqat
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.quantization import (
    QuantWrapper,
    convert,
    default_qat_qconfig,
    disable_observer,
    fuse_modules_qat,
    get_default_qat_qconfig,
    prepare_qat,
    quantize_qat,
)


def network(relu=nn.ReLU):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        relu(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    model = QuantWrapper(net).train()
    names = [["module.0", "module.1", "module.2"], ["module.3", "module.4"], ["module.6", "module.7"]]
    fuse_modules_qat(model, names, inplace=True)
    model.qconfig = get_default_qat_qconfig()
    return model


def train(model, steps=12):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 3, 8, 8, generator=generator)
        loss = (model(x) - x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2).flatten(1)[:, :4]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6])
def test_train_and_convert(isa, relu):
    model = prepare_qat(network(relu))
    net = model.module
    assert [type(net[i]) for i in (0, 3, 6, 8)] == [
        nniqat.ConvBnReLU2d,
        nniqat.ConvBn2d,
        nniqat.LinearReLU,
        nnqat.Linear,
    ]
    losses = train(model)
    assert losses[-1] < losses[0]
    model.apply(disable_observer)
    model.eval()
    quantized = convert(model)
    assert [type(quantized.module[i]) for i in (0, 3, 6, 8)] == [
        nniq.ConvReLU2d,
        nnq.Conv2d,
        nniq.LinearReLU,
        nnq.Linear,
    ]
    x = torch.randn(16, 3, 8, 8)
    # What was trained is what runs, but for ties that float sums resolve differently.
    assert sqnr(model(x), quantized(x)) > 30


def test_in_one_call():
    assert type(quantize_qat(network(), lambda m: train(m, 3), ()).module[8]) is nnq.Linear


def test_frozen_batch_norm_does_not_move():
    model = prepare_qat(network())
    model.apply(nniqat.freeze_bn_stats)
    before = model.module[0].bn.running_mean.clone()
    train(model, 2)
    assert torch.equal(model.module[0].bn.running_mean, before)
    assert not model.train().module[0].bn.training
    model.apply(nniqat.update_bn_stats)
    train(model, 2)
    assert not torch.equal(model.module[0].bn.running_mean, before)


@pytest.mark.parametrize("gamma", [0.0, -1.5])
def test_batch_norm_weights_of_zero_and_below(gamma):
    fused = nni.ConvBn2d(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    with torch.no_grad():
        fused[1].weight[1] = gamma
    fused.qconfig = get_default_qat_qconfig()
    module = nniqat.ConvBn2d.from_float(fused)
    out = module(torch.randn(4, 2, 5, 5))
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(module.weight.grad).all())
    module.eval()
    assert bool(torch.isfinite(module(torch.randn(4, 2, 5, 5))).all())


def test_eval_is_the_folded_convolution():
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    fused = nni.ConvBn2d(conv, bn).eval()
    fused.qconfig = default_qat_qconfig
    module = nniqat.ConvBn2d.from_float(fused)
    module.weight_fake_quant.disable_fake_quant()
    x = torch.randn(2, 3, 7, 7)
    assert torch.allclose(module(x), fused(x), atol=1e-5)


def test_prepared_model_state_and_copy():
    model = prepare_qat(network())
    train(model, 2)
    fresh = prepare_qat(network())
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), copy.deepcopy(model).eval()(x))


def test_wrong_use():
    with pytest.raises(QuantizationError, match="training mode"):
        prepare_qat(network().eval())
    with pytest.raises(QuantizationError, match="qconfig must be provided"):
        nnqat.Linear(2, 2)
    with pytest.raises(QuantizationError, match="only works for Linear"):
        nnqat.Linear.from_float(nn.Conv2d(1, 1, 1))


def test_to_float():
    linear = nnqat.Linear(3, 2, qconfig=default_qat_qconfig)
    assert torch.equal(linear.to_float().weight, linear.weight)
    conv = nnqat.Conv2d(3, 2, 3, qconfig=default_qat_qconfig)
    assert type(conv.to_float()) is nn.Conv2d
    assert zp.backend.fallbacks() == {}
