from __future__ import annotations

import pytest
import torch
from torch import nn

from zeropoint import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.quantization import (
    find_fusable_modules,
    fuse_conv_bn,
    fuse_known_modules,
    fuse_modules,
    fuse_modules_qat,
)


def settle(model):
    """Batch norm statistics and weights unlike their initial values."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias)
    return model.eval()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.bn2, self.relu2 = nn.BatchNorm2d(6), nn.ReLU6(inplace=True)
        self.fc, self.relu3 = nn.Linear(6, 4), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu2(self.bn2(self.block(x)))
        return self.relu3(self.fc(x.mean([2, 3])))


NAMES = [["conv", "bn", "relu"], ["block.0", "block.1"], ["bn2", "relu2"], ["fc", "relu3"]]


def test_fused_model_computes_the_same():
    model, x = settle(Net()), torch.randn(2, 3, 8, 8)
    expected = model(x)
    fused = fuse_modules(model, NAMES)
    assert torch.allclose(fused(x), expected, atol=1e-5)
    assert [type(m) for m in (fused.conv, fused.bn, fused.relu)] == [nni.ConvReLU2d, nn.Identity, nn.Identity]
    assert type(fused.block[0]) is nn.Conv2d
    assert type(fused.bn2) is nni.BNReLU2d
    assert type(fused.fc) is nni.LinearReLU
    assert type(model.conv) is nn.Conv2d  # a copy was changed
    fuse_modules(model, ["conv", "bn"], inplace=True)
    assert type(model.bn) is nn.Identity


def test_found_by_execution():
    model = settle(Net())
    assert find_fusable_modules(model, torch.randn(1, 3, 8, 8)) == NAMES
    assert find_fusable_modules(model.train(), torch.randn(1, 3, 8, 8)) == NAMES
    assert model.training


def test_what_is_used_twice_is_not_fused():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.relu(self.bn(y)) + y

    class Reused(Branch):
        def forward(self, x):
            return self.relu(self.bn(self.conv(self.relu(self.bn(self.conv(x))))))

    assert find_fusable_modules(settle(Branch()), torch.randn(1, 3, 4, 4)) == [["bn", "relu"]]
    assert find_fusable_modules(settle(Reused()), torch.randn(1, 3, 4, 4)) == []


def test_train_mode_keeps_the_batch_norm():
    for fuse, model in ((fuse_modules, Net().train()), (fuse_modules_qat, Net().train())):
        fused = fuse(model, [["conv", "bn", "relu"], ["block.0", "block.1"]])
        assert type(fused.conv) is nni.ConvBnReLU2d
        assert type(fused.block[0]) is nni.ConvBn2d


def test_hooks_move():
    model, seen = settle(Net()), []
    model.conv.register_forward_pre_hook(lambda m, i: seen.append("pre"))
    model.relu.register_forward_hook(lambda m, i, o: seen.append("post"))
    fused = fuse_modules(model, [["conv", "bn", "relu"]])
    fused(torch.randn(1, 3, 8, 8))
    assert seen == ["pre", "post"]


def test_custom_fuser():
    calls = []

    def fuser(modules, is_qat, additional):
        calls.append(len(modules))
        return fuse_known_modules(modules, is_qat, additional)

    fuse_modules(settle(Net()), [["conv", "bn"]], fuser_func=fuser)
    assert calls == [2]


def test_errors():
    model = settle(Net())
    with pytest.raises(QuantizationError, match="no submodule 'cnov'"):
        fuse_modules(model, [["cnov", "bn"]])
    with pytest.raises(QuantizationError, match=r"did not find fuser method for: .*Conv2d.*Linear"):
        fuse_modules(model, [["conv", "fc"]])
    model.bn.train()
    with pytest.raises(QuantizationError, match="all be in train mode"):
        fuse_modules(model, [["conv", "bn"]])
    with pytest.raises(QuantizationError, match="all be in train mode"):
        fuse_conv_bn(False, nn.Conv2d(1, 1, 1).train(), nn.BatchNorm2d(1).eval())
    with pytest.raises(QuantizationError, match="module 1 must be ReLU or ReLU6"):
        nni.ConvReLU2d(nn.Conv2d(1, 1, 1), nn.Sigmoid())
