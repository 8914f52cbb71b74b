"""New nodes in a captured graph, with the shapes that later passes read."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from zeropoint.graph.constants import add_constant, constant_of, is_constant

__all__ = ["Rewriter", "both_orders", "replace_node"]


def replace_node(node: fx.Node, value: fx.Node) -> None:
    """``value`` takes the place of ``node``."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


class Rewriter:
    """Puts calls before ``node``; they stand for its operator, and carry the shape of their result in ``meta["val"]``."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module, self.node, self.graph = module, node, node.graph

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        with self.graph.inserting_before(self.node):
            return add_constant(self.module, self.graph, f"{self.node.name}_{name}", value)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        known = self.node.meta["val"]
        mode = (known[0] if isinstance(known, (tuple, list)) else known).fake_mode

        def value(node: fx.Node) -> Any:
            if is_constant(node):
                constant = constant_of(self.module, node)
                assert constant is not None
                return mode.from_tensor(constant, static_shapes=True)
            return node.meta["val"]

        with self.graph.inserting_before(self.node):
            call = self.graph.call_function(target, args, kwargs)
        with mode:
            call.meta = {**self.node.meta, "val": target(*fx.map_arg(args, value), **kwargs)}
        return call

    def replace(self, value: fx.Node) -> None:
        """``value`` takes the node's place."""
        replace_node(self.node, value)


def both_orders(node: Any, target: Any) -> list[tuple[Any, Any]]:
    """The arguments of a product or sum in both orders; none if ``node`` is another operator."""
    if not isinstance(node, fx.Node) or node.target is not target or len(node.args) < 2:
        return []
    return [(node.args[0], node.args[1]), (node.args[1], node.args[0])]
