"""Dynamic quantization of a graph: int8 weights for Linear and recurrent layers, ranges of inputs at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.builder import GraphBuilder, source_name
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.embedding import EMBEDDINGS, embedding_reason, lower_embedding
from zeropoint.graph.recurrent import RECURRENT, lower_recurrent, quantize_per_output, recurrent_reason
from zeropoint.nn.quantized.dynamic.weight_only import quantize_in_groups

__all__ = ["DynamicLowering", "WeightOnlyLowering"]

aten = torch.ops.aten


class DynamicLowering(GraphBuilder):
    """Builds the new graph in the order of the old one."""

    _OTHERS = "no dynamic int8 form"  # why operators stay float that are not in `_forms`

    def __init__(self, module: fx.GraphModule, group_size: int | None) -> None:
        super().__init__(module)
        self.group_size = group_size
        self.values: dict[fx.Node, Any] = {}
        self._quantized: dict[str, tuple[fx.Node, ...]] = {}  # weights, which several calls may share

    def _forms(self) -> dict[Any, Any]:
        forms: dict[Any, Any] = {aten.linear.default: self._linear}
        return forms | dict.fromkeys(EMBEDDINGS, self._embedding) | dict.fromkeys(RECURRENT, self._recurrent)

    def run(self) -> fx.GraphModule:
        forms = self._forms()
        covered: list[tuple[fx.Node, str]] = []
        for node in self.module.graph.nodes:
            self._current = node
            if node in self.values:
                continue  # a part of a recurrent layer's or a bag's result
            lower = forms.get(node.target)
            reason = None if lower is None else lower(node)
            if lower is not None and reason is None:
                covered.append((node, "int8"))
                continue
            self.values[node] = self.graph.node_copy(node, lambda n: self.values[n])
            size = isinstance(node.meta.get("val"), (int, torch.SymInt))
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not size:
                self.values[node].meta["source"] = source_name(node)
                quantized = node.target.namespace == "zeropoint"  # a layer of another kind, as it came
                covered.append((node, "int8" if quantized else reason or self._OTHERS))
        self.graph.eliminate_dead_code()
        left = set(self.graph.nodes)
        for node, why in covered:  # what only an int8 form has replaced is not there any more
            if why == "int8" or self.values[node] in left:
                self.cover(node, why)
        return fx.GraphModule(self.module, self.graph)

    def _recurrent(self, node: fx.Node) -> str | None:
        reason = recurrent_reason(node)
        if reason is None:
            self.values.update(lower_recurrent(self, node, lambda n: self.values[n]))
        return reason

    def _embedding(self, node: fx.Node) -> str | None:
        reason = embedding_reason(node)
        if reason is None:
            self.values.update(lower_embedding(self, node, lambda n: self.values[n]))
        return reason

    def _linear(self, node: fx.Node) -> str | None:
        a = arguments(node)
        if not is_constant(a["weight"]) or not (a["bias"] is None or is_constant(a["bias"])):
            return "its weight is computed, not fixed"
        weight, bias = constant_of(self.module, a["weight"]), constant_of(self.module, a["bias"])
        assert weight is not None
        name = source_name(node)
        shared = a["weight"].target
        if shared not in self._quantized:
            self._quantized[shared] = self._weight(name, weight)
        offset = None if bias is None else self.constant(f"{name}_bias", bias.float())
        out = self._product(self.values[a["input"]], self._quantized[shared], offset)
        out.meta["val"] = node.meta.get("val")
        self.values[node] = out
        return None

    def _weight(self, name: str, weight: torch.Tensor) -> tuple[fx.Node, ...]:
        """The int8 weight and its scales."""
        data, scale = quantize_per_output(self, name, weight)
        scale = scale if self.group_size is None else scale.unsqueeze(1).contiguous()
        return data, self.constant(f"{name}_scale", scale)

    def _product(self, x: fx.Node, weight: tuple[fx.Node, ...], offset: fx.Node | None) -> fx.Node:
        data, scale = weight
        if self.group_size is None:
            packed = self.call(ops.linear_pack, data, None)
            return self.call(ops.linear_dynamic, x, data, packed, scale, None, offset, True, False, False)
        packed = self.call(ops.linear_grouped_pack, data, scale, None, self.group_size, 8)
        return self.call(ops.linear_grouped, x, data, packed, scale, None, offset, self.group_size, 8, 8, False)


class WeightOnlyLowering(DynamicLowering):
    """Weights of linear layers in 8 or 4 bits, activations as good as float: the products of ``WeightOnlyLinear``."""

    _OTHERS = "only weights are quantized"
    group_size: int

    def __init__(self, module: fx.GraphModule, group_size: int, bits: int) -> None:
        super().__init__(module, group_size)
        self.bits = bits

    def _forms(self) -> dict[Any, Any]:
        return {aten.linear.default: self._linear}

    def _weight(self, name: str, weight: torch.Tensor) -> tuple[fx.Node, ...]:
        data, scale, zero_point = quantize_in_groups(
            f"quantize: {name}", weight, self.bits, self.group_size, symmetric=False
        )
        assert zero_point is not None
        values = {"weight": data, "scale": scale, "zero_point": zero_point}
        return tuple(self.constant(f"{name}_{key}", value) for key, value in values.items())

    def _product(self, x: fx.Node, weight: tuple[fx.Node, ...], offset: fx.Node | None) -> fx.Node:
        data, scale, zero_point = weight
        sizes = (self.group_size, self.bits)
        packed = self.call(ops.linear_grouped_pack, data, scale, zero_point, *sizes)
        return self.call(ops.linear_grouped, x, data, packed, scale, zero_point, offset, *sizes, 15, False)
