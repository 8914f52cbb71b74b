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
_PRODUCTS = (aten.matmul.default, aten.mm.default)


def _is_foldable(node: fx.Node) -> bool:
    target: Any = node.target
    return (
        node.op == "call_function"
        and isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
        and bool(node.all_input_nodes)
        and all(is_constant(n) for n in node.all_input_nodes)
    )


def fold_constants(module: fx.GraphModule) -> None:
    """Computes ATen's calls on fixed tensors in place: a weight that is a part or the transpose of a parameter, positions.

    What would be larger than that which it is made of is left alone.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not _is_foldable(node):
            continue
        value = node.meta.get("val")
        results = {node: value}
        if isinstance(value, (list, tuple)):
            results = {user: value[user.args[1]] for user in node.users if user.target is operator.getitem}
        whole = node not in results and len(results) < len(node.users)  # somebody takes the list as such
        if whole or not all(isinstance(v, torch.Tensor) for v in results.values()):
            continue
        tensor = lambda n: constant_of(module, n)
        given = sum(t.numel() for t in map(tensor, node.all_input_nodes) if t is not None)
        if sum(v.numel() for v in results.values()) > max(given, _FEW):
            continue
        with torch.no_grad():
            result = node.target(*fx.map_arg(node.args, tensor), **fx.map_arg(node.kwargs, tensor))
        for old in results:
            part = result if old is node else result[old.args[1]]
            with graph.inserting_before(old):
                constant = add_constant(module, graph, f"{old.name}_folded", part)
            constant.meta = dict(old.meta)
            replace_node(old, constant)
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
