"""What is computed from fixed tensors alone, and products with a fixed matrix as linear layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import add_constant, constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter, replace_node

__all__ = ["fold_constants", "products_to_linear"]

aten = torch.ops.aten

_FEW = 4096  # values that may be added to a program in any case
_FACTORIES = {
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.eye.default,
    aten.full.default,
    aten.linspace.default,
    aten.ones.default,
    aten.scalar_tensor.default,
    aten.zeros.default,
}
_PRODUCTS = (aten.matmul.default, aten.mm.default)


def _is_function(node: fx.Node) -> bool:
    """Whether the node's results depend on its arguments alone."""
    target: Any = node.target
    if node.op != "call_function":
        return False
    if target is operator.getitem:
        return True
    if not node.all_input_nodes:
        return target in _FACTORIES
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


class _Cones:
    """The calls of a graph that depend on fixed tensors alone, and their values, which are computed when asked for."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.sources: dict[fx.Node, frozenset[fx.Node]] = {}  # the fixed tensors behind each node
        self.values: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            if is_constant(node):
                self.sources[node] = frozenset([node])
            elif _is_function(node) and all(n in self.sources for n in node.all_input_nodes):
                self.sources[node] = frozenset().union(*(self.sources[n] for n in node.all_input_nodes))

    def is_small(self, node: fx.Node) -> bool:
        """Whether the node's tensor has no more values than the fixed ones that it is made of, or few."""
        value = node.meta.get("val")
        given = (constant_of(self.module, source) for source in self.sources[node])
        return isinstance(value, torch.Tensor) and value.numel() <= max(
            sum(t.numel() for t in given if t is not None), _FEW
        )

    def value(self, node: fx.Node) -> torch.Tensor:
        """Computes the node, and what it needs, once."""
        needed, found = [node], {node}
        while needed:
            new = [n for n in needed.pop().all_input_nodes if n not in found and n not in self.values]
            found.update(new)
            needed += new
        known = self.values.__getitem__
        for one in sorted(found):
            if is_constant(one):
                self.values[one] = constant_of(self.module, one)
            else:
                target: Any = one.target
                self.values[one] = target(*fx.map_arg(one.args, known), **fx.map_arg(one.kwargs, known))
        result: torch.Tensor = self.values[node]
        return result


def fold_constants(module: fx.GraphModule) -> None:
    """Computes ATen's calls on fixed tensors in place: a weight that is a part or the transpose of a parameter, positions,
    a network of its own whose inputs are fixed, as that for the distances in Swin V2's windows.

    Only what has more values than the tensors that it is made of is left to the program.
    """
    graph, cones = module.graph, _Cones(module)
    # From results to inputs: what is too large is kept, and its inputs are then what the program reads.
    with torch.no_grad():
        for node in reversed(list(graph.nodes)):
            if node not in cones.sources or is_constant(node):
                continue
            if not node.users:
                graph.erase_node(node)
            elif any(user not in cones.sources for user in node.users) and cones.is_small(node):
                with graph.inserting_before(node):
                    constant = add_constant(module, graph, f"{node.name}_folded", cones.value(node))
                constant.meta = dict(node.meta)
                replace_node(node, constant)
            else:
                del cones.sources[node]
    graph.eliminate_dead_code()
    module.recompile()


def products_to_linear(module: fx.GraphModule) -> None:
    """``x @ W`` and ``addmm(bias, x, W)`` of a fixed matrix ``W`` [in, out] as linear layers, in place.

    The same sums, up to the rounding of float32.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _PRODUCTS:
            x, matrix, bias = node.args[0], node.args[1], None
        elif node.target is aten.addmm.default:
            a = arguments(node)
            x, matrix, bias = a["mat1"], a["mat2"], a["self"]
            if a["beta"] != 1 or a["alpha"] != 1 or not is_constant(bias):
                continue
        else:
            continue
        weight, offset = (constant_of(module, n) if is_constant(n) else None for n in (matrix, bias))
        value = x.meta.get("val") if not is_constant(x) else None
        if weight is None or weight.dim() != 2 or not isinstance(value, torch.Tensor) or value.dim() < 2:
            continue
        if offset is not None and offset.shape != weight.shape[1:]:
            continue
        rewriter = Rewriter(module, node)
        rewriter.replace(
            rewriter.call(aten.linear.default, x, rewriter.constant("weight", weight.t().contiguous()), bias)
        )
    module.graph.eliminate_dead_code()
    module.recompile()
