from __future__ import annotations

import pytest
import torch

import zeropoint as zp
from zeropoint import QuantizationError
from zeropoint.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    default_fake_quant,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)


def test_switches():
    module = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    x = torch.randn(100)
    y = module(x)
    assert not torch.equal(y, x)
    scale = module.scale.clone()
    module.apply(disable_observer)
    module(x * 10)
    assert torch.equal(module.scale, scale)
    module.apply(disable_fake_quant)
    assert torch.equal(module(x), x)
    module.apply(enable_fake_quant)
    module.apply(enable_observer)
    module(x * 10)
    assert float(module.scale) > float(scale)


@pytest.mark.parametrize(
    "make",
    [
        default_fake_quant,
        default_weight_fake_quant,
        default_per_channel_weight_fake_quant,
        FusedMovingAvgObsFakeQuantize,
    ],
)
def test_state_dict(make):
    module = make()
    x = torch.randn(4, 5)
    module(x)
    fresh = make()
    fresh.load_state_dict(module.state_dict())
    for m in (module, fresh):
        m.disable_observer()
    assert torch.equal(module(x), fresh(x))
    assert "scale=" in repr(module)


def test_values_are_on_the_grid():
    module = FakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-8,
        quant_max=7,
        dtype=zp.qint8,
        qscheme=zp.per_channel_symmetric,
    )
    y = module(torch.randn(3, 50))
    steps = y / module.scale[:, None]
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert bool((steps.round() >= -8).all() and (steps.round() <= 7).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_input_dtype(dtype):
    assert zp.fake_quantize_per_tensor_affine(torch.randn(3, dtype=dtype), 0.1, 0, 0, 255).dtype == dtype


def test_bad_arguments():
    x = torch.randn(3, 4)
    with pytest.raises(QuantizationError, match="quant_min"):
        zp.fake_quantize_per_tensor_affine(x, 0.1, 0, 5, 4)
    with pytest.raises(QuantizationError, match="zero_point"):
        zp.fake_quantize_per_tensor_affine(x, 0.1, 300, 0, 255)
    with pytest.raises(QuantizationError, match="axis"):
        zp.fake_quantize_per_channel_affine(x, torch.ones(3), torch.zeros(3, dtype=torch.int32), 1, 0, 255)
    with pytest.raises(QuantizationError, match="out of bound"):
        FakeQuantize(quant_min=-5, quant_max=255)
    with pytest.raises(QuantizationError, match="out of bound"):
        FakeQuantize(quant_min=0, quant_max=256)
