"""Training with fake quantization under torch.compile and autocast."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from zeropoint.quantization import QuantWrapper, convert, get_default_qat_qconfig, prepare_qat

_PROGRAM = """
import copy, sys, torch
from torch import nn
from zeropoint.quantization import (QuantWrapper, convert, disable_observer, fuse_modules_qat, get_default_qat_qconfig, prepare_qat)
torch.manual_seed(0)
model = QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 4))).train()
fuse_modules_qat(model, [["module.0", "module.1", "module.2"]], inplace=True)
model.qconfig = get_default_qat_qconfig(version=int(sys.argv[1]))
eager = prepare_qat(model)
x = torch.randn(4, 3, 8, 8)
eager(x)  # channels are known from here on
traced = copy.deepcopy(eager)
compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
for step in range(3):
    x, results = torch.randn(4, 3, 8, 8), []
    for net, run in ((eager, eager), (traced, compiled)):
        net.zero_grad()
        out = run(x)
        out.square().mean().backward()
        results.append((out.detach(), [p.grad.clone() for p in net.parameters()]))
    (a, ga), (b, gb) = results
    assert torch.allclose(a, b, atol=1e-6), (step, (a - b).abs().max())
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(ga, gb)), step
    for p, q in zip(eager.buffers(), traced.buffers()):
        assert torch.allclose(p.float(), q.float(), atol=1e-6), step
eager.apply(disable_observer), traced.apply(disable_observer)
assert torch.allclose(eager(x), compiled(x), atol=1e-6)
eager.eval(), traced.eval()
assert torch.equal(convert(eager)(x), convert(traced)(x))
"""


@pytest.mark.parametrize("version", [0, 1])
def test_compiled_training_equals_eager(version):
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(version)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_autocast():
    torch.manual_seed(0)
    model = QuantWrapper(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))).train()
    model.qconfig = get_default_qat_qconfig()
    prepared, x = prepare_qat(model), torch.randn(32, 16)
    optimizer, losses = torch.optim.Adam(prepared.parameters(), 0.01), []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (prepared(x) - 1).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    prepared.eval()
    assert float((convert(prepared)(x) - prepared(x)).detach().abs().max()) < 0.05
