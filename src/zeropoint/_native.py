"""Loads the native library, once, after the operator schemas exist."""

from __future__ import annotations

import ctypes
import warnings
from importlib.util import find_spec

import torch

__all__ = ["load", "loaded", "prefer_huge_pages", "release_program"]

_library: ctypes.CDLL | None = None


def load() -> None:
    """Loads ``_zeropoint.so`` from the package. Without it every operator runs on its reference."""
    global _library
    # Not a Python module, but found like one: beside this file, or where an editable install keeps it.
    spec = find_spec("zeropoint._zeropoint")
    if spec is None or spec.origin is None:
        warnings.warn(
            "zeropoint: the native library is missing; every operator runs on its slow PyTorch reference. "
            "Reinstall the package to get the int8 kernels.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    torch.ops.load_library(spec.origin)
    library = ctypes.CDLL(spec.origin)
    library.zeropoint_program_release.argtypes = [ctypes.c_int64]
    library.zeropoint_program_release.restype = None
    library.zeropoint_prefer_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.zeropoint_prefer_huge_pages.restype = None
    _library = library


def release_program(number: int) -> None:
    """Forgets a program of the engine. No operator, which a graph that is being traced meanwhile would have in it."""
    if _library is not None:
        _library.zeropoint_program_release(number)


def prefer_huge_pages(tensor: torch.Tensor) -> None:
    """Asks the system for large pages behind a contiguous tensor that nothing was written to yet."""
    if _library is not None:
        _library.zeropoint_prefer_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def loaded() -> bool:
    """Whether the native kernels are in use."""
    return _library is not None
