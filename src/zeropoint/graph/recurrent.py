"""Recurrent layers of a graph: int8 weights, inputs and states quantized at run time to the range of their rows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.builder import GraphBuilder, source_name
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.nn.quantized.modules.weighted import quantize_weight
from zeropoint.quantization.observer import default_per_channel_weight_observer

__all__ = ["RECURRENT", "lower_recurrent", "quantize_per_output", "recurrent_quality", "recurrent_reason"]

aten = torch.ops.aten

RECURRENT = {aten.lstm.input: 0, aten.gru.input: 1, aten.rnn_tanh.input: 2, aten.rnn_relu.input: 3}
"""Operators, and their kinds of ``ops.rnn_dynamic``."""


def quantize_per_output(builder: GraphBuilder, name: str, weight: torch.Tensor) -> tuple[fx.Node, torch.Tensor]:
    """An int8 weight, and its scales per output channel, float32."""
    q = quantize_weight(weight, default_per_channel_weight_observer())
    return builder.constant(f"{name}_weight", q.int_repr()), q.q_per_channel_scales().float()


def recurrent_reason(node: fx.Node) -> str | None:
    """Why there is no int8 form of the recurrent layer ``node``."""
    a = arguments(node)
    if not all(is_constant(p) for p in a["params"]):
        return "its weights are computed, not fixed"
    if len(a["params"]) != (4 if a["has_biases"] else 2) * a["num_layers"] * (2 if a["bidirectional"] else 1):
        return "recurrent layers with projections have no int8 form in programs"
    value = a["input"].meta.get("val")
    if isinstance(value, torch.Tensor) and value.dim() != 3:
        return "recurrent layers have an int8 form for batches: 3 dimensions"
    return None


def lower_recurrent(
    builder: GraphBuilder, node: fx.Node, value_of: Callable[[fx.Node], fx.Node]
) -> dict[fx.Node, fx.Node]:
    """The new values of the parts of ``node``'s result."""
    a = arguments(node)
    kind = RECURRENT[node.target]
    states = list(a["hx"]) if kind == 0 else [a["hx"]]
    x = value_of(a["input"])
    if a["batch_first"]:
        x = builder.call(aten.transpose.int, x, 0, 1)
    each = 4 if a["has_biases"] else 2
    parameters = [constant_of(builder.module, p) for p in a["params"]]
    directions = 2 if a["bidirectional"] else 1
    finals: list[list[fx.Node]] = [[] for _ in states]
    for layer in range(a["num_layers"]):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = parameters[index * each : (index + 1) * each]
            start = [builder.call(aten.select.int, value_of(s), 0, index) for s in states]
            parts = _direction(builder, f"{source_name(node)}_{index}", x, start, own, kind, direction == 1)
            outputs.append(parts[0])
            for final, part in zip(finals, parts[1:], strict=False):
                final.append(builder.call(aten.unsqueeze.default, part, 0))
        x = outputs[0] if len(outputs) == 1 else builder.call(aten.cat.default, outputs, 2)
    if a["batch_first"]:
        x = builder.call(aten.transpose.int, x, 0, 1)
    joined = [f[0] if len(f) == 1 else builder.call(aten.cat.default, f, 0) for f in finals]
    found = {}
    for user in node.users:
        found[user] = (x, *joined)[user.args[1]]
        found[user].meta["val"] = user.meta.get("val")
    return found


def recurrent_quality(
    module: fx.GraphModule, node: fx.Node, runs: list[tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]]
) -> float:
    """Signal to noise in dB of the int8 form of ``node`` against float results, over ``runs`` of inputs and results."""
    builder = GraphBuilder(module)
    a = arguments(node)
    sources = [a["input"], *(a["hx"] if RECURRENT[node.target] == 0 else [a["hx"]])]
    values = {source: builder.graph.placeholder(f"x{i}") for i, source in enumerate(sources)}
    parts = lower_recurrent(builder, node, lambda n: values[n])
    used = [int(user.args[1]) for user in parts]
    builder.graph.output(tuple(parts.values()))
    int8 = fx.GraphModule(module, builder.graph)
    signal = noise = 0.0
    with torch.inference_mode():
        for (x, states), results in runs:
            given = [x, *(states if isinstance(states, (list, tuple)) else [states])]
            for part, index in zip(int8(*given), used, strict=True):
                signal += float(results[index].double().square().sum())
                noise += float((part - results[index]).double().square().sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf


def _direction(
    builder: GraphBuilder,
    name: str,
    x: fx.Node,
    start: list[fx.Node],
    parameters: list[Any],
    kind: int,
    reverse: bool,
) -> list[fx.Node]:
    """Output [T, N, hidden] and final states of one layer in one direction."""
    weights: list[Any] = []
    for side, weight, bias in zip(("ih", "hh"), parameters[:2], parameters[2:] or (None, None), strict=True):
        data, scale = quantize_per_output(builder, f"{name}_{side}", weight)
        packed = builder.call(ops.linear_pack, data, None)
        offset = None if bias is None else builder.constant(f"{name}_{side}_bias", bias.float())
        weights += [data, packed, builder.constant(f"{name}_{side}_scale", scale), None, offset]
    c = start[1] if kind == 0 else builder.constant(f"{name}_no_cell", torch.empty(0))
    result = builder.call(ops.rnn_dynamic, x, [], start[0], c, *weights, kind, True, reverse)
    return [builder.call(operator.getitem, result, i) for i in range(3 if kind == 0 else 2)]
