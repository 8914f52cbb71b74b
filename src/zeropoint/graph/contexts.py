"""What a model computes inside ``with torch.no_grad()`` and its kind, which torch.export keeps as graphs of their own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["inline_contexts"]

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


def _is_inert(node: fx.Node) -> bool:
    """Whether a program computes the same without the context: autocast is off, or for another device."""
    device, _, enabled = node.args[:3]
    return not enabled or str(device).split(":")[0] != "cpu"


def inline_contexts(module: fx.GraphModule) -> None:
    """Puts the bodies where they are called, in place. Autocast that is on stays, since it changes what is computed."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (_AUTOCAST, _GRAD):
            continue
        if node.target is _AUTOCAST and not _is_inert(node):
            continue
        before = 4 if node.target is _AUTOCAST else 1  # arguments before the body
        name = node.args[before]
        body: Any = getattr(module, name.target)
        inline_contexts(body)
        places: dict[fx.Node, Any] = {}
        inputs = iter(node.args[before + 1 :])
        with graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    places[inner] = next(inputs)
                elif inner.op == "output":
                    results = fx.map_arg(inner.args[0], places.__getitem__)
                else:
                    places[inner] = graph.node_copy(inner, places.__getitem__)
                    if inner.op == "get_attr" and not hasattr(module, inner.target):
                        setattr(module, inner.target, getattr(body, inner.target))
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not name.users:
            graph.erase_node(name)
    module.recompile()
