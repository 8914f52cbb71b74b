"""Memory of a mapped file, given back once it was read."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import torch

__all__ = ["MappedFile"]

_MAPS = Path("/proc/self/maps")


class MappedFile:
    """The private mappings that this process has of a file (Linux; elsewhere there are none to be found).

    Weights of a program are packed as soon as they are read. What is read of the file would stay resident beside the packed
    weights, and it comes back from the file when somebody asks for it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._ranges: list[tuple[int, int]] = []
        name = os.path.realpath(path)
        if not _MAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for line in _MAPS.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name and fields[1].endswith("p"):
                low, high = (int(end, 16) for end in fields[0].split("-"))
                self._ranges.append((low, high))
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def release(self, tensor: torch.Tensor) -> None:
        """Gives back the whole pages of ``tensor``, which nobody may have written to since the file was mapped."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        if any(low <= first and last <= high for low, high in self._ranges):
            start, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                self._madvise(start, end - start, mmap.MADV_DONTNEED)
