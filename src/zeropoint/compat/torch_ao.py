"""Mounts zeropoint under the names of torch's quantization, so that unmodified programs run on it.

    import zeropoint.compat.torch_ao as door
    door.install()            # before the program imports torch.quantization ...
    ...
    door.uninstall()          # everything as before

``with door.installed():`` does both. Works also where torch no longer has these names.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

import zeropoint
from zeropoint import tensor
from zeropoint.errors import QuantizationError
from zeropoint.quantization import fake_quantize

__all__ = ["MAPPING", "install", "installed", "is_installed", "is_quantized", "uninstall"]

_PACKAGES = {
    "torch.ao.quantization": "zeropoint.quantization",
    "torch.quantization": "zeropoint.quantization",
    "torch.ao.ns": "zeropoint.ns",
    **{
        f"torch.{middle}nn.{name}": f"zeropoint.nn.{name}"
        for middle in ("ao.", "")
        for name in ("quantized", "qat", "intrinsic", "quantizable")
    },
    "torch.ao.nn.sparse": "zeropoint.nn.sparse",
}

_ATTRIBUTES: dict[str, Any] = {
    "quantize_per_tensor": tensor.quantize_per_tensor,
    "quantize_per_channel": tensor.quantize_per_channel,
    "dequantize": tensor.dequantize,
    "fake_quantize_per_tensor_affine": fake_quantize.fake_quantize_per_tensor_affine,
    "fake_quantize_per_channel_affine": fake_quantize.fake_quantize_per_channel_affine,
    "_make_per_tensor_quantized_tensor": tensor.make_per_tensor_quantized_tensor,
    "_make_per_channel_quantized_tensor": tensor.make_per_channel_quantized_tensor,
    **{name: getattr(tensor, name) for name in ("quint8", "qint8", "qint32", "quint4x2", "quint2x4")},
    **{
        name: getattr(tensor, name)
        for name in (
            "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
            "per_channel_affine_float_qparams",
        )
    },
}  # fmt: skip

MAPPING: dict[str, dict[str, str]] = {
    "modules": dict(_PACKAGES),
    "attrs": {
        **{f"torch.{name}": f"zeropoint:{name}" for name in _ATTRIBUTES if not name.startswith("_")},
        "torch._make_per_tensor_quantized_tensor": "zeropoint:make_per_tensor_quantized_tensor",
        "torch._make_per_channel_quantized_tensor": "zeropoint:make_per_channel_quantized_tensor",
    },
}
"""Where each torch name lives here: prefixes of modules, and single attributes as "module:name"."""

_MISSING = object()
_undo: list[tuple[Any, str, Any]] | None = None
_saved_modules: dict[str, ModuleType] = {}


def is_quantized(x: Any) -> bool:
    """Whether ``x`` is a quantized tensor of zeropoint."""
    return isinstance(x, tensor.QTensor)


def is_installed() -> bool:
    return _undo is not None


def _submodules(package: str) -> dict[str, ModuleType]:
    """A package and everything below it by full name."""
    root = importlib.import_module(package)
    found = {package: root}
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        found[info.name] = importlib.import_module(info.name)
    return found


def _aliases() -> dict[str, ModuleType]:
    """Torch module name to our module. torch has a level ``modules`` that some of our packages lack, and two private names."""
    aliases: dict[str, ModuleType] = {}
    for torch_name, ours in _PACKAGES.items():
        for name, module in _submodules(ours).items():
            suffix = name[len(ours) :]
            aliases[torch_name + suffix] = module
            parts = suffix.lstrip(".").split(".") if suffix else []
            if "modules" not in parts:
                for at in range(len(parts) + 1):
                    deeper = ".".join([*parts[:at], "modules", *parts[at:]])
                    aliases.setdefault(f"{torch_name}.{deeper}", module)
    for prefix in ("torch.nn.quantized", "torch.ao.nn.quantized"):
        aliases[f"{prefix}._reference"] = aliases[f"{prefix}.reference"]
    return aliases


def install() -> None:
    """Mounts everything.

    Raises:
        QuantizationError: it is mounted already.
    """
    global _undo
    if _undo is not None:
        raise QuantizationError("compat.torch_ao.install: already installed; uninstall() first")
    aliases = _aliases()
    undo: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, owner.__dict__.get(name, _MISSING)))
        setattr(owner, name, value)

    # Touch the packages once, so that lazy loading cannot bring torch's own back later.
    prefixes = tuple(_PACKAGES)
    for name in list(sys.modules):
        if name.startswith(prefixes) and any(name == p or name.startswith(f"{p}.") for p in prefixes):
            _saved_modules[name] = sys.modules.pop(name)
    sys.modules.update(aliases)
    ao = sys.modules.get("torch.ao")
    if ao is None:
        ao = ModuleType("torch.ao")
        ao.__path__ = []
        sys.modules["torch.ao"] = ao
        replace(torch, "ao", ao)
    ao_nn = sys.modules.get("torch.ao.nn")
    if ao_nn is None:
        ao_nn = ModuleType("torch.ao.nn")
        ao_nn.__path__ = []
        sys.modules["torch.ao.nn"] = ao_nn
        replace(ao, "nn", ao_nn)
    owners = {"torch": torch, "torch.nn": torch.nn, "torch.ao": ao, "torch.ao.nn": ao_nn}
    for torch_name, ours in _PACKAGES.items():
        parent, _, name = torch_name.rpartition(".")
        replace(owners[parent], name, importlib.import_module(ours))
    for name, value in _ATTRIBUTES.items():
        replace(torch, name, value)
    _undo = undo


def uninstall() -> None:
    """Puts everything back.

    Raises:
        QuantizationError: it is not mounted.
    """
    global _undo
    if _undo is None:
        raise QuantizationError("compat.torch_ao.uninstall: not installed")
    for name in _aliases():
        sys.modules.pop(name, None)
    sys.modules.update(_saved_modules)
    _saved_modules.clear()
    for owner, name, before in reversed(_undo):
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
        if isinstance(before, type(_MISSING)) and isinstance(owner, ModuleType) and name in ("ao", "nn"):
            sys.modules.pop(f"{owner.__name__}.{name}", None)
    _undo = None


@contextmanager
def installed() -> Iterator[Any]:
    """:func:`install` for the block."""
    install()
    try:
        yield zeropoint
    finally:
        uninstall()
