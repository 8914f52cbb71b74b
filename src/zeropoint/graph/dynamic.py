"""Dynamic quantization of a graph: int8 weights for Linear and recurrent layers, ranges of inputs at run time."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.lower import GraphBuilder, source_name
from zeropoint.nn.quantized.modules.weighted import quantize_weight
from zeropoint.quantization.observer import default_per_channel_weight_observer

__all__ = ["DynamicLowering"]

aten = torch.ops.aten
_LSTM, _GRU = 0, 1  # kinds of ops.rnn_dynamic


class DynamicLowering(GraphBuilder):
    """Builds the new graph in the order of the old one."""

    def __init__(self, module: fx.GraphModule, group_size: int | None) -> None:
        super().__init__(module)
        self.group_size = group_size
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> fx.GraphModule:
        for node in self.module.graph.nodes:
            self._current = node
            if node in self.values:
                continue  # a part of a recurrent layer's result
            lower = {
                aten.linear.default: self._linear, aten.lstm.input: self._recurrent, aten.gru.input: self._recurrent
            }.get(node.target)  # fmt: skip
            reason = None if lower is None else lower(node)
            if lower is not None and reason is None:
                self.cover(node, "int8")
                continue
            self.values[node] = self.graph.node_copy(node, lambda n: self.values[n])
            size = isinstance(node.meta.get("val"), (int, torch.SymInt))
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not size:
                self.values[node].meta["source"] = source_name(node)
                self.cover(node, reason or "no dynamic int8 form")
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.module, self.graph)

    def _quantized(self, name: str, weight: torch.Tensor) -> tuple[fx.Node, torch.Tensor]:
        q = quantize_weight(weight, default_per_channel_weight_observer())
        return self.constant(f"{name}_weight", q.int_repr()), q.q_per_channel_scales().float()

    def _linear(self, node: fx.Node) -> str | None:
        a = arguments(node)
        if not is_constant(a["weight"]) or not (a["bias"] is None or is_constant(a["bias"])):
            return "its weight is computed, not fixed"
        weight, bias = constant_of(self.module, a["weight"]), constant_of(self.module, a["bias"])
        assert weight is not None
        name = source_name(node)
        data, scale = self._quantized(name, weight)
        offset = None if bias is None else self.constant(f"{name}_bias", bias.float())
        x = self.values[a["input"]]
        if self.group_size is None:
            scales = self.constant(f"{name}_scale", scale)
            packed = self.call(ops.linear_pack, data, None)
            out = self.call(ops.linear_dynamic, x, data, packed, scales, None, offset, True, False, False)
        else:
            scales = self.constant(f"{name}_scale", scale.unsqueeze(1).contiguous())
            packed = self.call(ops.linear_grouped_pack, data, scales, None, self.group_size, 8)
            out = self.call(ops.linear_grouped, x, data, packed, scales, None, offset, self.group_size, 8, 8, False)
        out.meta["val"] = node.meta.get("val")
        self.values[node] = out
        return None

    def _recurrent(self, node: fx.Node) -> str | None:
        a = arguments(node)
        kind = _LSTM if node.target is aten.lstm.input else _GRU
        states = list(a["hx"]) if kind == _LSTM else [a["hx"]]
        if not all(is_constant(p) for p in a["params"]):
            return "its weights are computed, not fixed"
        x = self.values[a["input"]]
        if a["batch_first"]:
            x = self.call(aten.transpose.int, x, 0, 1)
        each = 4 if a["has_biases"] else 2
        parameters = [constant_of(self.module, p) for p in a["params"]]
        directions = 2 if a["bidirectional"] else 1
        finals: list[list[fx.Node]] = [[] for _ in states]
        for layer in range(a["num_layers"]):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                own = parameters[index * each : (index + 1) * each]
                start = [self.call(aten.select.int, self.values[s], 0, index) for s in states]
                parts = self._direction(f"{source_name(node)}_{index}", x, start, own, kind, direction == 1)
                outputs.append(parts[0])
                for final, part in zip(finals, parts[1:], strict=False):
                    final.append(self.call(aten.unsqueeze.default, part, 0))
            x = outputs[0] if len(outputs) == 1 else self.call(aten.cat.default, outputs, 2)
        if a["batch_first"]:
            x = self.call(aten.transpose.int, x, 0, 1)
        joined = [f[0] if len(f) == 1 else self.call(aten.cat.default, f, 0) for f in finals]
        for user in node.users:
            (x, *joined)[user.args[1]].meta["val"] = user.meta.get("val")
            self.values[user] = (x, *joined)[user.args[1]]
        return None

    def _direction(
        self, name: str, x: fx.Node, start: list[fx.Node], parameters: list[Any], kind: int, reverse: bool
    ) -> list[fx.Node]:
        """Output [T, N, hidden] and final states of one layer in one direction."""
        weights: list[Any] = []
        for side, weight, bias in zip(("ih", "hh"), parameters[:2], parameters[2:] or (None, None), strict=True):
            data, scale = self._quantized(f"{name}_{side}", weight)
            packed = self.call(ops.linear_pack, data, None)
            offset = None if bias is None else self.constant(f"{name}_{side}_bias", bias.float())
            weights += [data, packed, self.constant(f"{name}_{side}_scale", scale), None, offset]
        c = start[1] if kind == _LSTM else self.constant(f"{name}_no_cell", torch.empty(0))
        result = self.call(ops.rnn_dynamic, x, [], start[0], c, *weights, kind, True, reverse)
        return [self.call(operator.getitem, result, i) for i in range(3 if kind == _LSTM else 2)]
