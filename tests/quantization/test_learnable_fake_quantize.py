"""LSQ and LSQ+: forward as the contract, gradients as published."""

from __future__ import annotations

import math

import pytest
import torch

import zeropoint as zp
from zeropoint.quantization import (
    LearnableFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    fake_quantize_per_tensor_affine,
)

SYMMETRIC = {"dtype": zp.qint8, "qscheme": zp.per_tensor_symmetric}


def test_forward_is_fake_quantize_and_starts_at_the_range():
    fake, x = LearnableFakeQuantize(MovingAverageMinMaxObserver, -8, 7, **SYMMETRIC), torch.randn(100)
    out = fake(x)
    scale, zero_point = fake.calculate_qparams()
    assert float(scale) == pytest.approx(float(x.abs().max()) / 7.5, rel=1e-5)
    assert torch.equal(out, fake_quantize_per_tensor_affine(x, scale, zero_point, -8, 7))
    fake(10 * x)  # learning now: the observer rests
    assert torch.equal(fake.calculate_qparams()[0], scale)


@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_of_scale_and_zero_point(scaled):
    fake = LearnableFakeQuantize(quant_min=0, quant_max=15, scale=0.1, zero_point=4.0, use_grad_scaling=scaled)
    fake.enable_param_learning()
    x = torch.tensor([-1.0, -0.3, 0.04, 0.33, 0.9, 2.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (fake(x) * weights).sum().backward()
    q = torch.round(x.detach() / 0.1 + 4)
    inside = (q >= 0) & (q <= 15)
    assert torch.equal(x.grad, weights * inside)
    factor = 1 / math.sqrt(6 * 15) if scaled else 1.0
    d_scale = torch.where(q < 0, -4.0, torch.where(q > 15, 11.0, (q - 4) - x.detach() / 0.1))
    assert float(fake.scale.grad) == pytest.approx(float((weights * d_scale).sum()) * factor, rel=1e-4)
    d_zero_point = torch.where(inside, 0.0, -0.1)
    assert float(fake.zero_point.grad) == pytest.approx(float((weights * d_zero_point).sum()) * factor, rel=1e-4)


def test_per_channel_learns_one_scale_each_and_comes_back():
    make = lambda: LearnableFakeQuantize(
        MovingAveragePerChannelMinMaxObserver, -4, 3, dtype=zp.qint8, qscheme=zp.per_channel_symmetric
    )
    fake, x = make(), torch.randn(5, 7)
    fake(x).square().sum().backward()
    assert fake.scale.shape == fake.scale.grad.shape == (5,)
    assert fake.zero_point.grad is None
    again = make()
    again.load_state_dict(fake.state_dict())
    assert torch.equal(again(x), fake(x))


def test_equals_torch_gradients():
    module = pytest.importorskip("torch.ao.quantization._learnable_fake_quantize")
    taq = pytest.importorskip("torch.ao.quantization")
    theirs = module._LearnableFakeQuantize(
        taq.MovingAverageMinMaxObserver, 0, 255, 0.05, 10.0, use_grad_scaling=False, dtype=torch.quint8
    )
    theirs.enable_param_learning()
    mine = LearnableFakeQuantize(MovingAverageMinMaxObserver, 0, 255, 0.05, 10.0, use_grad_scaling=False)
    mine.enable_param_learning()
    grads = []
    for fake in (theirs, mine):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=False).requires_grad_()
        (fake(x) * torch.linspace(-1, 1, 1000)).sum().backward()
        grads.append((x.grad, fake.scale.grad, fake.zero_point.grad))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_wrong_range():
    with pytest.raises(ValueError, match="strictly less"):
        LearnableFakeQuantize(quant_min=3, quant_max=3)
