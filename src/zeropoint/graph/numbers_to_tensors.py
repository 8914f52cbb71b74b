"""Operators that take numbers as operators that take tensors, which is all that native code may hand to ATen.

The stable ABI has no form for ``Scalar`` arguments. Values are the same: torch turns such numbers into tensors itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import add_constant, constant_of, is_constant

__all__ = ["numbers_to_tensors"]

aten = torch.ops.aten

_COMPARISONS = {getattr(aten, name).Scalar: getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")}


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph

    def number(self, node: fx.Node, value: float, dtype: torch.dtype) -> fx.Node:
        return add_constant(self.module, self.graph, f"{node.name}_number", torch.tensor(value, dtype=dtype))

    def replace(self, node: fx.Node, target: Any, *args: Any) -> None:
        new = self.graph.call_function(target, args)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def rewrite(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return
        dtype = value.dtype
        a = arguments(node)
        x = a.get("self")
        target = node.target
        if target in (aten.add.Tensor, aten.sub.Tensor) and a["alpha"] == 1 and dtype == torch.float32:
            sides = [self._float_side(node, side) for side in (x, a["other"])]
            if None not in sides:
                self.replace(node, ops.add_float, *sides, target is aten.sub.Tensor)
        elif target is aten.rsub.Scalar and a["alpha"] == 1 and dtype == torch.float32:
            self.replace(node, ops.add_float, self.number(node, a["other"], dtype), x, True)
        elif target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(a["other"], (int, float)):
            self.replace(node, target, x, self.number(node, a["other"], dtype))
        elif target is aten.pow.Tensor_Scalar:
            self._power(node, x, a["exponent"], dtype)
        elif target in _COMPARISONS and isinstance(x.meta.get("val"), torch.Tensor):
            self.replace(node, _COMPARISONS[target], x, self.number(node, a["other"], x.meta["val"].dtype))
        elif target is aten.masked_fill.Scalar:
            self.replace(node, aten.masked_fill.Tensor, x, a["mask"], self.number(node, a["value"], dtype))
        elif target in (aten.clamp.default, aten.hardtanh.default):
            bounds = [a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))]
            self.replace(
                node, aten.clamp.Tensor, x, *(None if b is None else self.number(node, b, dtype) for b in bounds)
            )
        elif target is aten.leaky_relu.default:
            scaled = self.graph.call_function(aten.mul.Tensor, (x, self.number(node, a["negative_slope"], dtype)))
            positive = self.graph.call_function(aten.gt.Tensor, (x, self.number(node, 0, dtype)))
            self.replace(node, aten.where.self, positive, x, scaled)
        elif target is aten.full.default:
            self.replace(node, aten.expand.default, self.number(node, a["fill_value"], dtype), a["size"])
        elif target is aten.relu6.default:
            self.replace(node, aten.clamp.Tensor, x, self.number(node, 0, dtype), self.number(node, 6, dtype))

    def _float_side(self, node: fx.Node, side: Any) -> fx.Node | None:
        if isinstance(side, (int, float)):
            return self.number(node, side, torch.float32)
        value = constant_of(self.module, side) if is_constant(side) else side.meta.get("val")
        return side if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else None

    def _power(self, node: fx.Node, x: fx.Node, exponent: float, dtype: torch.dtype) -> None:
        simple = {2: (aten.mul.Tensor, x, x), 0.5: (aten.sqrt.default, x), -0.5: (aten.rsqrt.default, x), 1: None}
        if exponent in simple:
            found = simple[exponent]
            if found is not None:
                self.replace(node, *found)
        elif dtype.is_floating_point:
            self.replace(node, aten.pow.Tensor_Tensor, x, self.number(node, exponent, dtype))


def numbers_to_tensors(module: fx.GraphModule) -> None:
    """Rewrites ``module`` in place; what has no such form stays, and a program of it runs without the engine."""
    rewriter = _Rewriter(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            with module.graph.inserting_before(node):
                rewriter.rewrite(node)
    module.graph.eliminate_dead_code()
    module.recompile()
