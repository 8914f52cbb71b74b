"""Post-training static quantization in the eager workflow, written for torch's names.

    python examples/tutorials/static.py             # on zeropoint, through the door

Every import below names torch. ``zeropoint.compat.torch_ao`` mounts zeropoint under these names; nothing else
in the program knows of it.
"""

from __future__ import annotations

import zeropoint.compat.torch_ao as door

door.install()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.ao.quantization import (  # noqa: E402
    DeQuantStub,
    QuantStub,
    convert,
    fuse_modules,
    get_default_qconfig,
    prepare,
)


class Block(nn.Module):
    """A residual block; ``FloatFunctional`` gives its addition an observer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        self.add = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.add.add(x, self.relu(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem, self.block = nn.Conv2d(3, 16, 3, stride=2), Block(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(self.quant(x)))
        return self.dequant(self.fc(x.mean([2, 3])))


def main() -> dict[str, float]:
    torch.manual_seed(0)
    model = Net().eval()
    batches = [torch.randn(8, 3, 32, 32) for _ in range(4)]
    expected = model(batches[0])

    fuse_modules(model, [["block.conv", "block.bn", "block.relu"]], inplace=True)
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    quantized = convert(prepared)

    error = (quantized(batches[0]) - expected).pow(2).mean()
    return {"signal to noise, dB": float(10 * torch.log10(expected.pow(2).mean() / error))}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.1f}")
    door.uninstall()
