"""Quantization-aware training in the eager workflow, written for torch's names (see static.py)."""

from __future__ import annotations

import zeropoint.compat.torch_ao as door

door.install()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.quantization import (  # noqa: E402
    QuantWrapper,
    convert,
    disable_observer,
    fuse_modules_qat,
    get_default_qat_qconfig,
    prepare_qat,
)


def main(steps: int = 60) -> dict[str, float]:
    torch.manual_seed(0)
    model = QuantWrapper(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 2)
        )
    ).train()
    fuse_modules_qat(model, [["module.0", "module.1", "module.2"]], inplace=True)
    model.qconfig = get_default_qat_qconfig("fbgemm")
    prepared = prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of vertical (0) or horizontal (1) stripes in noise."""
        labels = torch.randint(0, 2, (n,))
        stripes = torch.sin(torch.arange(8.0) * 2).expand(8, 8)
        images = torch.where(labels[:, None, None] == 0, stripes, stripes.t())
        return (images + 0.5 * torch.randn(n, 8, 8)).unsqueeze(1), labels

    for step in range(steps):
        if step == steps * 3 // 4:
            prepared.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
            prepared.apply(disable_observer)
        images, labels = batch(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(images), labels).backward()
        optimizer.step()
    prepared.eval()
    quantized = convert(prepared)
    images, labels = batch(500)
    score = lambda m: float((m(images).argmax(1) == labels).float().mean())
    return {"accuracy while training": score(prepared), "accuracy in int8": score(quantized)}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3f}")
    door.uninstall()
