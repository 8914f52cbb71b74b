"""Loads the native library, once, after the operator schemas exist."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch

__all__ = ["load", "loaded"]

_loaded = False


def load() -> None:
    """Loads ``_zeropoint.so`` from the package. Without it every operator runs on its reference."""
    global _loaded
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
    _loaded = True


def loaded() -> bool:
    """Whether the native kernels are in use."""
    return _loaded
