"""A new graph beside the old one, and where its operators come from."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from zeropoint.graph.constants import add_constant

__all__ = ["GraphBuilder", "module_path", "source_name"]


def module_path(node: fx.Node) -> tuple[list[str], list[str]]:
    """Names and type names of the modules around the node, outermost first."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    names = [re.sub(r"^L\['self'\]\.?", "", str(name)) for name, _ in stack]
    types = [kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for _, kind in stack]
    return names, types


def source_name(node: fx.Node) -> str:
    """Where the operator stands in the model: the module's name, or the node's."""
    if "source" in node.meta:
        return str(node.meta["source"])
    names, _ = module_path(node)
    return names[-1] if names and names[-1] else node.name


class GraphBuilder:
    """A new graph beside the old one. ``coverage`` lists layer, operator, and "int8" or why it is float, of the model's
    operators: views that a pass ``added`` compute nothing.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = fx.Graph()
        self.coverage: list[tuple[str, str, str]] = []
        self._current: fx.Node | None = None  # of the old graph, whose layer new calls belong to

    def call(self, operator: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(operator, args)
        if self._current is not None:
            node.meta["source"] = source_name(self._current)
        return node

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        return add_constant(self.module, self.graph, name, value)

    def cover(self, node: fx.Node, why: str) -> None:
        if "added" not in node.meta:
            self.coverage.append((source_name(node), str(node.target), why))
