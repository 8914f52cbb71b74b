"""Which call of a torch function this is: the module it runs in, the function and its ordinal there.

``x + y`` in a model has no module to keep its output's scale. So while a model is calibrated every such
call is recorded under ``add_0``, ``add_1``, ``cat_0`` ... of the module whose ``forward`` makes it, and a
converted model finds its qparams under the same name. Modules are followed by two hooks, :func:`enter` and
:func:`leave`, which keep a stack per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["SITES", "Frame", "Recorder", "canonical_name", "current_frame", "enter", "leave"]

SITES = "call_sites"
"""Name of the child module that holds a module's call sites."""


Recorder = Callable[[nn.Module, str, torch.Tensor], tuple[torch.Tensor, nn.Module]]
"""Shows a call's result to the observer of its site; gives it back, perhaps fake-quantized, and the observer."""


class Frame:
    """One running call of a module's forward."""

    __slots__ = ("counts", "module", "record")

    def __init__(self, module: nn.Module, record: Recorder | None = None) -> None:
        self.module, self.record = module, record
        self.counts: dict[str, int] = {}

    def next_key(self, name: str) -> str:
        """``add_0`` for the first ``add`` of this call, then ``add_1`` ..."""
        ordinal = self.counts.get(name, 0)
        self.counts[name] = ordinal + 1
        return f"{name}_{ordinal}"

    def sites(self) -> Mapping[str, Any] | None:
        return self.module._modules.get(SITES)  # type: ignore[return-value]


class _Stack(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_stack = _Stack()


def enter(module: nn.Module, args: Any, record: Recorder | None = None) -> None:
    """Forward pre-hook: from here on functions belong to ``module``."""
    _stack.frames.append(Frame(module, record))


def leave(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, called also when forward raised: back to the caller."""
    frames = _stack.frames
    while frames and frames.pop().module is not module:
        pass


def current_frame() -> Frame | None:
    return _stack.frames[-1] if _stack.frames else None


_NAMES = {"truediv": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub", "divide": "div", "pow_": "pow"}


def canonical_name(func: Any) -> str:
    """``add`` for ``torch.add``, ``Tensor.add``, ``+``, ``+=`` and their reflected forms."""
    name: str = getattr(func, "__name__", None) or str(func)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        if name[0] in "ri" and name[1:] in ("add", "sub", "mul", "truediv", "pow", "matmul"):
            name = name[1:]
    name = name.rstrip("_").replace(".", "_")
    return _NAMES.get(name, name)
