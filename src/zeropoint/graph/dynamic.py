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

__all__ = ["DynamicLowering"]

aten = torch.ops.aten


class DynamicLowering(GraphBuilder):
    """Builds the new graph in the order of the old one."""

    def __init__(self, module: fx.GraphModule, group_size: int | None) -> None:
        super().__init__(module)
        self.group_size = group_size
        self.values: dict[fx.Node, Any] = {}
        self._quantized: dict[str, tuple[fx.Node, fx.Node]] = {}  # weights, which several calls may share

    def run(self) -> fx.GraphModule:
        forms = {aten.linear.default: self._linear}
        forms |= dict.fromkeys(EMBEDDINGS, self._embedding) | dict.fromkeys(RECURRENT, self._recurrent)
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
                covered.append((node, "int8" if quantized else reason or "no dynamic int8 form"))
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
            data, scale = quantize_per_output(self, name, weight)
            scales = self.constant(
                f"{name}_scale", scale if self.group_size is None else scale.unsqueeze(1).contiguous()
            )
            self._quantized[shared] = data, scales
        data, scales = self._quantized[shared]
        offset = None if bias is None else self.constant(f"{name}_bias", bias.float())
        x = self.values[a["input"]]
        if self.group_size is None:
            packed = self.call(ops.linear_pack, data, None)
            out = self.call(ops.linear_dynamic, x, data, packed, scales, None, offset, True, False, False)
        else:
            packed = self.call(ops.linear_grouped_pack, data, scales, None, self.group_size, 8)
            out = self.call(ops.linear_grouped, x, data, packed, scales, None, offset, self.group_size, 8, 8, False)
        out.meta["val"] = node.meta.get("val")
        self.values[node] = out
        return None
