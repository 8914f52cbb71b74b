"""Real labelled photographs: the 20 ImageNet pictures that foolbox ships, the label in the file name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

__all__ = ["labelled_photos", "package_folder", "to_tensor"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed; `make demo` installs all that this example needs")
    return Path(spec.submodule_search_locations[0])


def labelled_photos() -> list[tuple[Image.Image, int]]:
    """Photographs and their ImageNet class."""
    files = sorted(package_folder("foolbox").glob("data/imagenet_*.jpg"))
    return [(Image.open(file).convert("RGB"), int(file.stem.rsplit("_", 1)[1])) for file in files]


def to_tensor(image: Image.Image, resize: int = 256, crop: int = 224, mirror: bool = False) -> torch.Tensor:
    """[3, crop, crop] float32, normalized as ImageNet models expect; the crop is from the centre."""
    scale = resize / min(image.size)
    image = image.resize(
        (max(resize, round(image.width * scale)), max(resize, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    image = image.crop((left, top, left + crop, top + crop))
    if mirror:
        image = ImageOps.mirror(image)
    x = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    return (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
