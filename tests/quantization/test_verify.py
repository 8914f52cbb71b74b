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
    assert [layer.exact for layer in result.layers] == [True] * 3
    assert result.exact
    assert "at most" in str(result)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9)),
        lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
        lambda: (nn.Conv3d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 6, 7)),
        lambda: (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5, 5)),
        lambda: (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3)),
        lambda: (nn.ConvTranspose1d(4, 6, 3, 3), (2, 4, 5)),
        lambda: (nn.Linear(9, 5), (7, 9)),
    ],
)
def test_every_layer_with_weights_is_exact(isa, make):
    torch.manual_seed(0)
    layer, shape = make()
    model = QuantWrapper(nn.Sequential(layer)).train()
    model.qconfig = get_default_qat_qconfig()
    prepared = prepare_qat(model)
    prepared(torch.randn(shape))
    prepared.apply(disable_observer)
    prepared.eval()
    result = zp.verify(prepared, convert(prepared), torch.randn(shape))
    assert [entry.exact for entry in result.layers] == [True]
    assert result.max_steps <= 1


def test_a_fault_is_seen():
    prepared = trained()
    converted = convert(prepared)
    converted.module[6].set_weight_bias(converted.module[6].weight(), converted.module[6].bias() + 1)
    result = zp.verify(prepared, converted, torch.randn(4, 3, 10, 10))
    assert result.max_steps > 1
    assert not result.exact


def test_needs_fake_quantization():
    model = QuantWrapper(nn.Linear(3, 3)).eval()
    model.qconfig = zp.quantization.get_default_qconfig()
    prepared = prepare(model)
    prepared(torch.randn(4, 3))
    with pytest.raises(QuantizationError, match="no fake quantization"):
        zp.verify(prepared, convert(prepared), torch.randn(4, 3))
