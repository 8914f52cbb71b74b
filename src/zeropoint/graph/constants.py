"""Weights and other fixed tensors of a graph."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx

__all__ = ["add_constant", "constant_of", "is_constant"]


def is_constant(node: Any) -> bool:
    """Whether the node reads a fixed tensor."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def constant_of(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """The fixed tensor that ``node`` reads; None for no node."""
    if node is None:
        return None
    value: torch.Tensor = attrgetter(node.target)(module)
    return value.detach()


def add_constant(module: fx.GraphModule, graph: fx.Graph, name: str, value: torch.Tensor) -> fx.Node:
    """A node at the graph's insertion point that reads ``value``, kept in ``module`` as a buffer."""
    base = "_constant_" + name.replace(".", "_")
    unique, count = base, 0
    while hasattr(module, unique):
        count += 1
        unique = f"{base}_{count}"
    module.register_buffer(unique, value, persistent=True)
    return graph.get_attr(unique)
