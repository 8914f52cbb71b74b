"""Loads the native library, once, after the operator schemas exist."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

__all__ = ["load", "loaded"]

_loaded = False


def load() -> None:
    """Loads ``_zeropoint.so`` from the package. Without it every operator runs on its reference."""
    global _loaded
    library = Path(__file__).with_name("_zeropoint.so")
    if not library.exists():
        warnings.warn(
            "zeropoint: the native library is missing; every operator runs on its slow PyTorch reference. "
            "Reinstall the package to get the int8 kernels.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    torch.ops.load_library(str(library))
    _loaded = True


def loaded() -> bool:
    """Whether the native kernels are in use."""
    return _loaded
