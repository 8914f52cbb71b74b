"""Which call of a torch function this is: the module it runs in, the function and its ordinal there.

``x + y`` in a model has no module to keep its output's scale. So while a model is calibrated every such
call is recorded under ``add_0``, ``add_1``, ``cat_0`` ... of the module whose ``forward`` makes it, and a
converted model finds its qparams under the same name. Modules are followed by two hooks, :func:`enter` and
:func:`leave`, which keep a stack per thread.

torch.compile replays a graph without hooks: _graph_frames.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["SITES", "Frame", "Recorder", "canonical_name", "current_frame", "enter", "leave", "pop", "push"]

SITES = "call_sites"
"""Name of the child module that holds a module's call sites."""


Recorder = Callable[[nn.Module, str, torch.Tensor], tuple[torch.Tensor, nn.Module]]
"""Shows a call's result to the observer of its site; gives it back, perhaps fake-quantized, and the observer."""


def _tracing() -> Any:
    """The graph that torch.compile is making, None outside."""
    from torch._guards import TracingContext  # where Dynamo traces it is loaded already

    return TracingContext.try_get()


class Frame:
    """One running call of a module's forward."""

    __slots__ = ("counts", "graph", "module", "record", "traced")

    def __init__(self, module: Any, record: Recorder | None = None, traced: Mapping[str, Any] | None = None) -> None:
        self.module, self.record = module, record
        self.traced = traced  # the call sites, where the frame belongs to a graph of Dynamo and not to a module
        self.graph = None if traced is None else _tracing()  # None also where a graph runs
        self.counts: dict[str, int] = {}

    def next_key(self, name: str) -> str:
        """``add_0`` for the first ``add`` of this call, then ``add_1`` ..."""
        ordinal = self.counts.get(name, 0)
        self.counts[name] = ordinal + 1
        return f"{name}_{ordinal}"

    def sites(self) -> Mapping[str, Any] | None:
        return self.module._modules.get(SITES) if self.traced is None else self.traced


class _Stack(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_stack = _Stack()


def enter(module: nn.Module, args: Any, record: Recorder | None = None) -> None:
    """Forward pre-hook: from here on functions belong to ``module``."""
    if torch.compiler.is_dynamo_compiling():
        from zeropoint.tensor._graph_frames import enter_in_graph

        sites: Any = module._modules.get(SITES)
        enter_in_graph(() if sites is None or record is not None else tuple(s.constants(k) for k, s in sites.items()))
        return
    push(Frame(module, record))


def leave(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, called also when forward raised: back to the caller."""
    if torch.compiler.is_dynamo_compiling():
        from zeropoint.tensor._graph_frames import leave_in_graph

        leave_in_graph()
        return
    frames = _stack.frames
    while frames and frames.pop().module is not module:
        pass


def push(frame: Frame) -> None:
    _stack.frames.append(frame)


def pop() -> None:
    if current_frame() is not None:
        _stack.frames.pop()


def current_frame() -> Frame | None:
    frames = _stack.frames
    # A graph that breaks within a module leaves its frame behind: it is not that of the next graph.
    while frames and frames[-1].traced is not None and frames[-1].graph is not _tracing():
        frames.pop()
    return frames[-1] if frames else None


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
