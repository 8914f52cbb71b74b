"""Programs written for torch's quantization run on zeropoint under torch's names, and leave no trace."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import zeropoint as zp
from zeropoint.compat import torch_ao
from zeropoint.errors import QuantizationError

PROGRAM = """
import torch
from torch import nn
import torch.quantization
from torch.ao.quantization import DeQuantStub, QuantStub, get_default_qconfig
import torch.ao.nn.quantized.dynamic as nnqd
from torch.ao.nn.quantized.modules.conv import Conv2d
from torch.nn.intrinsic.qat import ConvBn2d

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(8, 4)
        self.skip = torch.nn.quantized.FloatFunctional()
    def forward(self, x):
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.skip.add(x, x).mean([2, 3])
        return self.dequant(self.fc(x))

torch.manual_seed(0)
net = Net().eval()
net.qconfig = torch.quantization.get_default_qconfig("fbgemm")
torch.quantization.fuse_modules(net, [["conv", "bn", "relu"]], inplace=True)
torch.quantization.prepare(net, inplace=True)
for _ in range(3):
    net(torch.randn(4, 3, 12, 12))
torch.quantization.convert(net, inplace=True)
result = net(torch.randn(2, 3, 12, 12))
q = torch.quantize_per_tensor(torch.tensor([1.0]), 0.1, 0, torch.quint8)
dynamic = torch.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 2)), {nn.Linear}, dtype=torch.qint8)
"""


def test_an_unmodified_program_runs_on_zeropoint():
    names: dict = {}
    with torch_ao.installed():
        assert torch_ao.is_installed()
        exec(compile(PROGRAM, "program", "exec"), names)
        assert names["q"].dtype == torch.quint8
    assert type(names["net"].conv).__module__.startswith("zeropoint.")
    assert isinstance(names["q"], zp.QTensor)
    assert isinstance(names["dynamic"][0], names["nnqd"].Linear)
    assert names["Conv2d"] is zp.nn.quantized.Conv2d
    assert bool(torch.isfinite(names["result"]).all())


def test_everything_is_put_back():
    before = {n: getattr(torch, n) for n in ("quint8", "quantize_per_tensor", "per_tensor_affine", "quantization")}
    nested = torch.ao.quantization, torch.nn.quantized
    with torch_ao.installed():
        assert torch.quint8 is zp.quint8
        with pytest.raises(QuantizationError, match="already installed"):
            torch_ao.install()
    assert before == {n: getattr(torch, n) for n in before}
    assert nested == (torch.ao.quantization, torch.nn.quantized)
    assert importlib.import_module("torch.ao.quantization.observer").__name__ == "torch.ao.quantization.observer"
    with pytest.raises(QuantizationError, match="not installed"):
        torch_ao.uninstall()


_WITHOUT = """
import sys, torch
# A torch that has dropped it all.
for name in [n for n in sys.modules if n.startswith(("torch.ao", "torch.quantization"))]:
    del sys.modules[name]
for name in ("ao", "quantization", "quint8", "qint8", "quantize_per_tensor"):
    if name in torch.__dict__:
        delattr(torch, name)
import zeropoint.compat.torch_ao as door
door.install()
from torch.ao.quantization import QuantStub
import torch.ao.nn.quantized as nnq
assert torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8).int_repr().tolist() == [10, 10]
door.uninstall()
assert not hasattr(torch, "quint8") and not hasattr(torch, "ao")
"""


def test_works_where_torch_no_longer_has_it():
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", _WITHOUT], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", torch_ao.MAPPING["modules"].values())
def test_mapped_modules_exist(name):
    assert importlib.import_module(name)


@pytest.mark.parametrize("name", torch_ao.MAPPING["attrs"].values())
def test_mapped_attributes_exist(name):
    module, _, attribute = name.partition(":")
    assert hasattr(importlib.import_module(module), attribute)


def test_is_quantized():
    assert torch_ao.is_quantized(zp.quantize_per_tensor(torch.ones(1), 0.1, 0, zp.quint8))
    assert not torch_ao.is_quantized(torch.ones(1))
