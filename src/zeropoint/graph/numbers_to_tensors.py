"""Operators that take numbers as operators that take tensors, which is all that native code may hand to ATen.

The stable ABI has no form for ``Scalar`` arguments. Values are the same: torch turns such numbers into tensors itself.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import add_constant, constant_of, is_constant

__all__ = ["numbers_to_tensors"]

aten = torch.ops.aten

# With factors to with sizes; whether corners may be aligned.
_UPSAMPLES = {
    getattr(aten, name).vec: (getattr(aten, name).default, aligns)
    for name, aligns in (
        ("upsample_nearest1d", False), ("upsample_nearest2d", False), ("upsample_nearest3d", False),
        ("upsample_linear1d", True), ("upsample_bilinear2d", True), ("upsample_bicubic2d", True),
        ("upsample_trilinear3d", True),
    )
}  # fmt: skip
# With a number to with a tensor of the first argument's dtype.
_BY_TENSOR = {
    aten.__and__.Scalar: aten.bitwise_and.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Tensor,
    aten.__xor__.Scalar: aten.bitwise_xor.Tensor,
    aten.bitwise_and.Scalar: aten.bitwise_and.Tensor,
    aten.bitwise_or.Scalar: aten.bitwise_or.Tensor,
    aten.bitwise_xor.Scalar: aten.bitwise_xor.Tensor,
    aten.remainder.Scalar: aten.remainder.Tensor,
    aten.fmod.Scalar: aten.fmod.Tensor,
    aten.clamp_min.default: aten.clamp_min.Tensor,
    aten.clamp_max.default: aten.clamp_max.Tensor,
    **{getattr(aten, n).Scalar: getattr(aten, n).Tensor for n in ("eq", "ne", "lt", "le", "gt", "ge")},
}
_WHERES = (aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther)
_RANGES = (aten.arange.default, aten.arange.start, aten.arange.start_step)


def _is_number(value: Any) -> bool:
    """Whether it is a number, or a size."""
    return isinstance(value, (int, float)) or (
        isinstance(value, fx.Node) and isinstance(value.meta.get("val"), (int, torch.SymInt))
    )


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph

    def number(self, node: fx.Node, value: Any, dtype: torch.dtype) -> fx.Node:
        """A tensor of one number, or of a size."""
        if isinstance(value, fx.Node):
            call = self.graph.call_function
            size = call(ops.arange, (value, call(operator.add, (value, 1)), 1))
            return call(aten.to.dtype, (call(aten.select.int, (size, 0, 0)), dtype))
        return add_constant(self.module, self.graph, f"{node.name}_number", torch.tensor(value, dtype=dtype))

    def replace(self, node: fx.Node, target: Any, *args: Any) -> None:
        new = self.graph.call_function(target, args)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def rewrite(self, node: fx.Node) -> None:
        if node.target in _UPSAMPLES:
            self._upsample(node, arguments(node))
            return
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return
        dtype = value.dtype
        a = arguments(node)
        x = a.get("self")
        target: Any = node.target
        if target in _RANGES:
            self._range(node, a, dtype)
            return
        if target in (aten.add.Tensor, aten.sub.Tensor) and a["alpha"] == 1 and dtype == torch.float32:
            sides = [self._float_side(node, side) for side in (x, a["other"])]
            if None not in sides:
                self.replace(node, ops.add_float, *sides, target is aten.sub.Tensor)
        elif target in (aten.add.Tensor, aten.sub.Tensor) and a["alpha"] == 1 and dtype == torch.int64:
            sides = [self._integer_side(node, side) for side in (x, a["other"])]
            if None not in sides:
                self.replace(node, ops.add_integers, *sides, target is aten.sub.Tensor)
        elif target in _BY_TENSOR and isinstance(x.meta.get("val"), torch.Tensor):
            own = x.meta["val"].dtype
            if dtype in (own, torch.bool):  # a comparison's, or no other than the number would make it
                number = next(v for k, v in a.items() if k != "self")
                if not _is_number(number):
                    return
                self.replace(node, _BY_TENSOR[target], x, self.number(node, number, own))
        elif target is aten.linalg_vector_norm.default and a["ord"] == 2 and a["dtype"] is None:
            if isinstance(a["dim"], (list, tuple)) and len(a["dim"]) == 1:
                self.replace(node, aten.linalg_norm.default, x, None, a["dim"], a["keepdim"])
        elif target is aten.rsub.Scalar and a["alpha"] == 1 and dtype == torch.float32 and _is_number(a["other"]):
            self.replace(node, ops.add_float, self.number(node, a["other"], dtype), x, True)
        elif target in (aten.mul.Tensor, aten.div.Tensor) and _is_number(a["other"]):
            self.replace(node, target, x, self.number(node, a["other"], dtype))
        elif target is aten.pow.Tensor_Scalar:
            self._power(node, x, a["exponent"], dtype)
        elif target in _WHERES:
            sides = [self.number(node, v, dtype) if _is_number(v) else v for v in (x, a["other"])]
            self.replace(node, aten.where.self, a["condition"], *sides)
        elif target is aten.constant_pad_nd.default and isinstance(a["value"], (int, float)):
            self.replace(node, aten.pad.default, x, a["pad"], "constant", float(a["value"]))
        elif target is aten.masked_fill.Scalar and _is_number(a["value"]):
            self.replace(node, aten.masked_fill.Tensor, x, a["mask"], self.number(node, a["value"], dtype))
        elif target in (aten.clamp.default, aten.hardtanh.default):
            bounds = [a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))]
            if not all(b is None or _is_number(b) for b in bounds):
                return
            self.replace(
                node, aten.clamp.Tensor, x, *(None if b is None else self.number(node, b, dtype) for b in bounds)
            )
        elif target is aten.leaky_relu.default:
            scaled = self.graph.call_function(aten.mul.Tensor, (x, self.number(node, a["negative_slope"], dtype)))
            positive = self.graph.call_function(aten.gt.Tensor, (x, self.number(node, 0, dtype)))
            self.replace(node, aten.where.self, positive, x, scaled)
        elif target is aten.full_like.default and _is_number(a["fill_value"]):
            self.replace(node, aten.expand_as.default, self.number(node, a["fill_value"], dtype), x)
        elif target is aten.full.default and _is_number(a["fill_value"]):
            self.replace(node, aten.expand.default, self.number(node, a["fill_value"], dtype), a["size"])
        elif target is aten.relu6.default:
            self.replace(node, aten.clamp.Tensor, x, self.number(node, 0, dtype), self.number(node, 6, dtype))

    def _float_side(self, node: fx.Node, side: Any) -> fx.Node | None:
        if _is_number(side):
            return self.number(node, side, torch.float32)
        value = constant_of(self.module, side) if is_constant(side) else side.meta.get("val")
        return side if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else None

    def _range(self, node: fx.Node, a: dict[str, Any], dtype: torch.dtype) -> None:
        bounds = [a.get("start", 0), a["end"], a.get("step", 1)]
        known = [b.meta.get("val") if isinstance(b, fx.Node) else b for b in bounds]
        if dtype not in (torch.int64, torch.float32) or not all(isinstance(b, (int, torch.SymInt)) for b in known):
            return
        if dtype == torch.int64:
            self.replace(node, ops.arange, *bounds)
        else:
            self.replace(node, aten.to.dtype, self.graph.call_function(ops.arange, tuple(bounds)), dtype)

    def _upsample(self, node: fx.Node, a: dict[str, Any]) -> None:
        target, aligns = _UPSAMPLES[node.target]
        x, factors = a["input"], a["scale_factors"]
        corners = [a["align_corners"]] if aligns else []
        if factors is None:
            self.replace(node, target, x, a["output_size"], *corners)
            return
        ratios = [float(f).as_integer_ratio() for f in factors]
        if max(q for _, q in ratios) > 64:  # floor(size * factor) in float64 is size * p // q where that is exact
            return
        sizes = []
        for i, (p, q) in enumerate(ratios):
            size = self.graph.call_function(operator.mul, (self.graph.call_function(aten.sym_size.int, (x, 2 + i)), p))
            sizes.append(self.graph.call_function(operator.floordiv, (size, q)) if q > 1 else size)
        self.replace(node, target, x, sizes, *corners, *factors)

    def _integer_side(self, node: fx.Node, side: Any) -> fx.Node | None:
        """An int64 tensor: one of other integers, or a number that is known, made one."""
        if _is_number(side) and not isinstance(side, float):
            return self.number(node, side, torch.int64)
        value = constant_of(self.module, side) if is_constant(side) else side.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
            return None
        return side if value.dtype == torch.int64 else self.graph.call_function(aten.to.dtype, (side, torch.int64))

    def _power(self, node: fx.Node, x: fx.Node, exponent: float, dtype: torch.dtype) -> None:
        simple = {2: (aten.mul.Tensor, x, x), 0.5: (aten.sqrt.default, x), -0.5: (aten.rsqrt.default, x), 1: None}
        if exponent in simple:
            found = simple[exponent]
            if found is not None:
                self.replace(node, *found)
        elif dtype.is_floating_point and _is_number(exponent):
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
