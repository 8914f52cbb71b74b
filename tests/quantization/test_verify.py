"""What was trained runs: prepared and converted models differ by at most one step, on few values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint.errors import QuantizationError
from zeropoint.nn.intrinsic.qat import freeze_bn_stats
from zeropoint.quantization import (
    QuantWrapper,
    convert,
    disable_observer,
    fuse_modules_qat,
    get_default_qat_qconfig,
    prepare,
    prepare_qat,
)


def trained():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5)
    )  # fmt: skip
    model = QuantWrapper(net).train()
    fuse_modules_qat(model, [["module.0", "module.1", "module.2"], ["module.3", "module.4"]], inplace=True)
    model.qconfig = get_default_qat_qconfig()
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(6):
        optimizer.zero_grad()
        prepared(torch.randn(8, 3, 10, 10)).square().mean().backward()
        optimizer.step()
    prepared.apply(freeze_bn_stats)
    prepared.apply(disable_observer)
    return prepared.eval()


def test_layers_agree_within_a_step():
    prepared = trained()
    converted = convert(prepared)
    result = zp.verify(prepared, converted, torch.randn(16, 3, 10, 10))
    assert len(result.layers) == 3
    assert result.max_steps <= 1
    assert all(layer.share < 1e-3 for layer in result.layers)
    assert "at most" in str(result)


def test_a_fault_is_seen():
    prepared = trained()
    converted = convert(prepared)
    converted.module[6].set_weight_bias(converted.module[6].weight(), converted.module[6].bias() + 1)
    assert zp.verify(prepared, converted, torch.randn(4, 3, 10, 10)).max_steps > 1


def test_needs_fake_quantization():
    model = QuantWrapper(nn.Linear(3, 3)).eval()
    model.qconfig = zp.quantization.get_default_qconfig()
    prepared = prepare(model)
    prepared(torch.randn(4, 3))
    with pytest.raises(QuantizationError, match="no fake quantization"):
        zp.verify(prepared, convert(prepared), torch.randn(4, 3))
