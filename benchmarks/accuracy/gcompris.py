"""The larger set of photographs: foolbox's 20 and Debian's gcompris-qt-data.

The package is not installed, only unpacked (`apt-get download gcompris-qt-data`, `dpkg-deb -x`); its
licences are CC-BY, CC-BY-SA, CC0 and public domain, file by file. Pictures whose file name says what they
show are scored (labels.json: file to admissible ImageNet classes); paintings and monuments calibrate.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "mobilenet_v2"))
from photos import labelled_photos as foolbox_photos
from photos import to_tensor

__all__ = ["calibration_photos", "fetch", "scored_photos", "to_tensor"]

_SCORED = ("explore_farm_animals", "explore_world_animals", "erase", "categorization")
_CALIBRATION = ("explore_monuments", "details")
_SMALLEST = 6000  # bytes: below are icons


def fetch(folder: Path) -> Path:
    """Downloads and unpacks the Debian package once; returns the folder of its resource files."""
    resources = folder / "usr/share/gcompris-qt/rcc"
    if not resources.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "download", "-qq", "gcompris-qt-data"], cwd=folder, check=True)
        (package,) = folder.glob("gcompris-qt-data_*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return resources


def read_rcc(path: Path) -> dict[str, bytes | None]:
    """Files of a Qt binary resource collection by path; None where the compression is zstd."""
    data = path.read_bytes()
    magic, version, tree, payload, names = struct.unpack(">4sIIII", data[:20])
    if magic != b"qres":
        raise ValueError(f"{path}: not a Qt resource file")
    node_size = 14 if version < 2 else 22
    files: dict[str, bytes | None] = {}
    pending = [(0, "")]
    while pending:
        index, prefix = pending.pop()
        offset = tree + index * node_size
        name_offset, flags = struct.unpack(">IH", data[offset : offset + 6])
        at = names + name_offset
        (length,) = struct.unpack(">H", data[at : at + 2])
        name = data[at + 6 : at + 6 + 2 * length].decode("utf-16-be") if index else ""
        full = f"{prefix}/{name}" if index else ""
        if flags & 2:
            count, first = struct.unpack(">II", data[offset + 6 : offset + 14])
            pending.extend((first + i, full) for i in range(count))
            continue
        (start,) = struct.unpack(">I", data[offset + 10 : offset + 14])
        (size,) = struct.unpack(">I", data[payload + start : payload + start + 4])
        raw = data[payload + start + 4 : payload + start + 4 + size]
        files[full] = None if flags & 4 else zlib.decompress(raw[4:]) if flags & 1 else raw
    return files


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _pictures(resources: Path, collection: str) -> list[tuple[str, bytes]]:
    files = sorted(read_rcc(resources / f"{collection}.rcc").items())
    return [
        (name.rsplit("/", 1)[-1], data)
        for name, data in files
        if name.endswith(".webp") and data and len(data) > _SMALLEST
    ]


def scored_photos(resources: Path) -> list[tuple[Image.Image, set[int]]]:
    """94 photographs with the ImageNet classes that their names can mean."""
    labels = json.loads(Path(__file__).with_name("labels.json").read_text())
    result = [(image, {label}) for image, label in foolbox_photos()]
    for collection in _SCORED:
        for name, data in _pictures(resources, collection):
            if name.removesuffix(".webp") in labels[collection]:
                result.append((_open(data), set(labels[collection][name.removesuffix(".webp")])))
    return result


def calibration_photos(resources: Path) -> list[Image.Image]:
    """68 photographs of which none is scored."""
    excluded = {"brandenburgGate.webp", "tajMahal.webp"}
    return [_open(data) for c in _CALIBRATION for name, data in _pictures(resources, c) if name not in excluded]
