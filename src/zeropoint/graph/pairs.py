"""Weights of 4 bits, two to a byte: what a program keeps and its file has."""

from __future__ import annotations

import torch
from torch import fx

from zeropoint import ops
from zeropoint._reference.grouped import pair
from zeropoint.graph.constants import add_constant, constant_of, is_constant

__all__ = ["pair_weights"]

# Where the weight is, and its bits.
_BITS = {ops.linear_grouped_pack: (0, 4), ops.linear_grouped: (1, 7), ops.linear_grouped_split: (1, 7)}


def pair_weights(module: fx.GraphModule) -> None:
    """Rewrites ``module`` in place; an odd number of inputs stays a byte each. The bits of results are the same."""
    graph = module.graph
    paired: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        weight, bits = _BITS.get(node.target, (0, 0)) if node.op == "call_function" else (0, 0)
        if not bits or node.args[bits] != 4 or not is_constant(node.args[weight]):
            continue
        source = node.args[weight]
        value = constant_of(module, source)
        assert value is not None
        if value.dtype != torch.int8 or value.shape[1] % 2:
            continue
        if source.target not in paired:
            with graph.inserting_before(next(iter(graph.nodes))):
                paired[source.target] = add_constant(module, graph, f"{source.target}_pairs", pair(value))
        node.update_arg(weight, paired[source.target])
    graph.eliminate_dead_code()
    module.recompile()
