"""Writes recorded.json: what torch.ao gave for fixed inputs, for the day it is gone.

    python tests/parity/record.py        # needs a torch that still has torch.ao

The inputs are arithmetic, not random, so that no generator has to stay the same.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn

FILE = Path(__file__).with_name("recorded.json")
OBSERVERS = ("MinMaxObserver", "MovingAverageMinMaxObserver", "PerChannelMinMaxObserver", "HistogramObserver")
LAYERS = {
    "Linear": lambda: (nn.Linear(6, 5), values(8, 6)),
    "LSTM": lambda: (nn.LSTM(6, 5, bidirectional=True), values(4, 3, 6)),
    "GRU": lambda: (nn.GRU(6, 5, 2), values(4, 3, 6)),
}


def values(*shape: int, phase: float = 0.0) -> torch.Tensor:
    n = torch.Size(shape).numel()
    return (torch.sin(torch.arange(n, dtype=torch.float64) * 1.7 + phase) * 2.3).float().reshape(shape)


def set_parameters(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(values(*parameter.shape, phase=0.3 * i) * 0.2)
    return module


def observe(flow, name):
    observer = getattr(flow, name)()
    for phase in (0.0, 1.0, 2.5):
        observer(values(4, 60, phase=phase) * (1 + phase))
    return [t.double().tolist() for t in observer.calculate_qparams()]


def dynamic(flow, name):
    layer, x = LAYERS[name]()
    net = flow.quantize_dynamic(nn.Sequential(set_parameters(layer)), {type(layer)})
    out = net(x)
    return (out[0] if isinstance(out, tuple) else out).detach().flatten().tolist()


def static(flow):
    """The integers of a convolution and a Linear between stubs."""
    net = flow.QuantWrapper(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))).eval()
    set_parameters(net)
    net.qconfig = flow.get_default_qconfig("fbgemm")
    prepared = flow.prepare(net)
    x = values(3, 2, 6, 6)
    prepared(x)
    quantized = flow.convert(prepared)
    hidden = quantized.module[0](quantized.quant(x))
    return [hidden.int_repr().flatten().tolist(), quantized(x).flatten().tolist()]


def trained(flow):
    """Losses of four steps of training with a folded batch norm."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).train()
    set_parameters(net)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -0.7, 0.4]))
    model = flow.QuantWrapper(net).train()
    flow.fuse_modules_qat(model, [["module.0", "module.1", "module.2"]], inplace=True)
    model.qconfig = flow.get_default_qat_qconfig("fbgemm", version=0)
    prepared = flow.prepare_qat(model)
    optimizer, losses = torch.optim.SGD(prepared.parameters(), 0.05), []
    for step in range(4):
        loss = prepared(values(6, 2, 6, 6, phase=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    import torch.ao.quantization as taq

    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = "fbgemm"
    content = {
        "torch": torch.__version__.partition("+")[0],
        "observers": {name: observe(taq, name) for name in OBSERVERS},
        "dynamic": {name: dynamic(taq, name) for name in LAYERS},
        "static": static(taq),
        "trained": trained(taq),
    }
    FILE.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
