"""Which values of a graph are int8, which share qparams, and why the others stay float."""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zeropoint.graph.builder import module_path
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.embedding import EMBEDDINGS, embedding_reason
from zeropoint.graph.recurrent import RECURRENT, recurrent_reason
from zeropoint.quantization.qconfig import QConfigAny
from zeropoint.quantization.qconfig_mapping import QConfigMapping

__all__ = ["POOLS", "Annotation", "Form", "annotate", "scalar_of", "unary_function"]

aten = torch.ops.aten


class Form(enum.Enum):
    """How an operator works on int8."""

    LAYER = "layer"  # a product with a fixed weight: int8 whatever stands around it
    TABLE = "table"  # a function of one value: 256 entries
    KEEP = "keep"  # moves or selects integers; scale and zero point stay
    BINARY = "binary"  # add or mul of two quantized values
    JOIN = "join"  # cat: one scale for all parts
    ATTENTION = "attention"  # softmax of a product, times a third value
    MEAN = "mean"  # average over all positions, with a scale of its own


Function = Callable[[torch.Tensor], torch.Tensor]


def scalar_of(module: fx.GraphModule, value: Any) -> float | None:
    """A number, or a fixed tensor of one element, as a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if is_constant(value):
        constant = constant_of(module, value)
        if constant is not None and constant.numel() == 1 and constant.dim() == 0:
            return float(constant)
    return None


def unary_function(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Function] | None:
    """The input of a pointwise operator of one value and its function in float64; None for other operators."""
    target = node.target
    if target in _FUNCTIONS:
        a = arguments(node)
        x = a.pop("self")
        if any(isinstance(v, fx.Node) for v in a.values()):
            return None
        return x, lambda t: target(t, **a)
    if target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        a = arguments(node)
        alpha = {"alpha": a["alpha"]} if "alpha" in a else {}
        for x, other, swapped in ((a["self"], a["other"], False), (a["other"], a["self"], True)):
            number = scalar_of(module, other)
            if number is not None and isinstance(x, fx.Node) and not is_constant(x):
                return x, _with_number(target, number, alpha, swapped)
    return None


def _with_number(target: Any, number: float, alpha: dict[str, Any], swapped: bool) -> Function:
    """``target(t, number)``, or with both swapped."""

    def function(t: torch.Tensor) -> torch.Tensor:
        other = torch.tensor(number, dtype=t.dtype)
        result: torch.Tensor = target(*((other, t) if swapped else (t, other)), **alpha)
        return result

    return function


_FUNCTIONS = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.elu.default, aten.selu.default, aten.celu.default, aten.leaky_relu.default,
    aten.mish.default, aten.softplus.default, aten.log_sigmoid.default, aten.hardshrink.default, aten.softshrink.default, aten.threshold.default, aten.abs.default,
    aten.neg.default, aten.sqrt.default, aten.exp.default, aten.square.default, aten.pow.Tensor_Scalar,
}  # fmt: skip

POOLS = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}  # fmt: skip
_KEEP = {
    *POOLS, aten.constant_pad_nd.default, aten.pad.default, aten.reshape.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.transpose.int, aten.permute.default,
    aten.select.int, aten.slice.Tensor, aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.contiguous.default, aten.expand.default, aten.unbind.int, aten.chunk.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.repeat_interleave.self_int, aten.mT.default, operator.getitem,
}  # fmt: skip
_ADAPTIVE = {
    aten.adaptive_avg_pool1d.default: 1, aten.adaptive_avg_pool2d.default: 2, aten.adaptive_avg_pool3d.default: 3,
}  # fmt: skip
_POOL_DIMS = {aten.max_pool1d.default: 3, aten.avg_pool1d.default: 3, aten.max_pool3d.default: 5}
_LAYERS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default}
_BY_WEIGHT = dict.fromkeys(EMBEDDINGS, embedding_reason) | dict.fromkeys(RECURRENT, recurrent_reason)


def _value(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _layer_reason(module: fx.GraphModule, node: fx.Node) -> str | None:
    a = arguments(node)
    value = _value(node)
    if not is_constant(a["weight"]):
        return "its weight is computed, not fixed"
    if a["bias"] is not None and not is_constant(a["bias"]):
        return "its bias is computed, not fixed"
    if node.target is not aten.linear.default:
        weight = constant_of(module, a["weight"])
        assert weight is not None
        if value is None or value.dim() != weight.dim():
            return f"convolutions have int8 forms for batches: {weight.dim()} dimensions"
    return None


def _keep_reason(node: fx.Node) -> str | None:
    value = _value(node.args[0])
    if node.target in POOLS:
        dims = _POOL_DIMS.get(node.target, 4)
        if value is None or value.dim() != dims:
            return f"this pool has an int8 form for batches: {dims} dimensions"
    if node.target in (aten.constant_pad_nd.default, aten.pad.default):
        a = arguments(node)
        if a.get("mode", "constant") != "constant" or (a["value"] or 0) != 0:
            return "padding other than zeros"
    return None


def _mean_input(node: fx.Node) -> fx.Node | None:
    """The [N, C, *positions] value that ``node`` averages over all positions."""
    a = arguments(node)
    value = _value(a["self"])
    if value is None or value.dim() not in (3, 4, 5):
        return None
    dims = value.dim() - 2
    if node.target in _ADAPTIVE:
        return a["self"] if _ADAPTIVE[node.target] == dims and list(a["output_size"]) == [1] * dims else None
    if node.target is aten.mean.dim and a["dtype"] is None and a["dim"] is not None:
        return a["self"] if sorted(d % (dims + 2) for d in a["dim"]) == list(range(2, dims + 2)) else None
    return None


def _binary_sides(node: fx.Node) -> list[fx.Node] | str:
    """Both sides, a factor per channel [N, C, 1, 1] last; or why there is no int8 form."""
    a = arguments(node)
    values = [_value(a["self"]), _value(a["other"])]
    if any(v is None for v in values) or any(is_constant(v) for v in (a["self"], a["other"])):
        return "one side is no activation"
    if a.get("alpha", 1) != 1:
        return "alpha is not 1"
    x, y = (v.shape for v in values if v is not None)
    sides = [a["self"], a["other"]]
    if len(x) == len(y) and all(_same(p, q) for p, q in zip(x, y, strict=True)):
        return sides
    for p, q, ordered in ((x, y, sides), (y, x, sides[::-1])):
        if len(p) == len(q) == 4 and _same(p[0], q[0]) and _same(p[1], q[1]) and _same(q[2], 1) and _same(q[3], 1):
            return ordered
    return "its operands have different shapes"


def _attention_reason(node: fx.Node) -> str | None:
    a = arguments(node)
    mask = _value(a["attn_mask"])
    if mask is not None and mask.dtype not in (torch.bool, torch.float32):
        return f"attention with a mask of {mask.dtype}"
    values = [_value(a[name]) for name in ("query", "key", "value")]
    if any(v is None or v.dim() != 4 for v in values) or not isinstance(values[0].shape[3], int):
        return "attention has an int8 form for [batch, heads, rows, features]"
    return None


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal."""
    return bool(a == b) if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


def _classify(module: fx.GraphModule, node: fx.Node) -> tuple[Form | None, list[fx.Node], str | None]:
    """Form, activations that must be int8, and why there is none."""
    target = node.target
    value = _value(node)
    if isinstance(node.meta.get("val"), (int, torch.SymInt)):
        return None, [], None  # a size
    takes_tensors = any(_value(n) is not None or is_constant(n) for n in node.all_input_nodes)
    if not takes_tensors and target is not operator.getitem:
        return None, [], None  # a tensor made of numbers
    if target in _LAYERS:
        reason = _layer_reason(module, node)
        return (None, [], reason) if reason else (Form.LAYER, [node.args[0]], None)
    if value is not None and value.dtype != torch.float32:
        return None, [], None
    unary = unary_function(module, node)
    if unary is not None:
        return Form.TABLE, [unary[0]], None
    if target in _ADAPTIVE or target is aten.mean.dim:
        x = _mean_input(node)
        if x is not None:
            return Form.MEAN, [x], None
        if target is not aten.adaptive_avg_pool2d.default:
            return None, [], "an average other than over all positions"
    if target in _KEEP and isinstance(node.args[0], fx.Node):
        reason = _keep_reason(node)
        return (None, [], reason) if reason else (Form.KEEP, [node.args[0]], None)
    if target in (aten.add.Tensor, aten.mul.Tensor):
        sides = _binary_sides(node)
        return (None, [], sides) if isinstance(sides, str) else (Form.BINARY, sides, None)
    if target is aten.scaled_dot_product_attention.default:
        reason = _attention_reason(node)
        return (None, [], reason) if reason else (Form.ATTENTION, list(node.args[:3]), None)
    if target is aten.cat.default:
        parts = list(node.args[0])
        if any(is_constant(p) for p in parts):
            return None, [], "a part is fixed"
        return Form.JOIN, parts, None
    return None, [], "no int8 form"


def _qconfig(mapping: QConfigMapping, node: fx.Node) -> QConfigAny:
    """The node's qconfig: the operator or a module type, then a pattern, then a name; the nearest module wins."""
    names, types = module_path(node)
    result = mapping.global_qconfig
    for kind, qconfig in mapping.object_type_qconfigs.items():
        spelled = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else None
        packet = getattr(node.target, "overloadpacket", None)
        if (spelled is not None and spelled in types[-1:]) or kind in (node.target, packet, str(packet)):
            result = qconfig
    for pattern, qconfig in mapping.module_name_regex_qconfigs.items():
        if any(re.match(pattern, name) for name in names if name) or re.match(pattern, node.name):
            result = qconfig
            break
    for name in [*names, node.name]:
        if name in mapping.module_name_qconfigs:
            result = mapping.module_name_qconfigs[name]
    return result


@dataclass
class Annotation:
    """What :func:`annotate` decides.

    Attributes:
        forms: the operators that work on int8.
        inputs: the activations they take as int8.
        quantized: values that exist as int8.
        carrier: a LAYER or BINARY whose clamp (ReLU, ReLU6 ...) is part of it, to the clamp's node.
        group: value to the representative of those it shares qparams with.
        by_weight: layers with int8 weights that need no range of activations: embeddings, and recurrent layers, whose inputs
            are quantized at run time.
        reasons: operators that stay float, with the reason.
    """

    forms: dict[fx.Node, Form] = field(default_factory=dict)
    inputs: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    quantized: set[fx.Node] = field(default_factory=set)
    carrier: dict[fx.Node, fx.Node] = field(default_factory=dict)
    group: dict[fx.Node, fx.Node] = field(default_factory=dict)
    qconfigs: dict[fx.Node, QConfigAny] = field(default_factory=dict)
    by_weight: set[fx.Node] = field(default_factory=set)
    reasons: dict[fx.Node, str] = field(default_factory=dict)

    def representative(self, node: fx.Node) -> fx.Node:
        while node in self.group:
            node = self.group[node]
        return node

    def observed(self) -> list[fx.Node]:
        """Values whose range is needed: all int8 ones and the inputs of int8 operators, but those that keep qparams."""
        wanted: dict[fx.Node, None] = {}
        for node, inputs in self.inputs.items():
            wanted.update(dict.fromkeys(inputs))
            if node in self.quantized:
                wanted[node] = None
        return [n for n in wanted if n not in self.carrier and self.forms.get(n) not in (Form.KEEP, Form.JOIN)]


def clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Lower and upper bound of a clamp that lets real 0 through."""
    infinity = float("inf")
    if node.target is aten.relu.default:
        return 0.0, infinity
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target in (aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default):
        a = arguments(node)
        low = a.get("min_val", a.get("min"))
        high = a.get("max_val", a.get("max"))
        low, high = (-infinity if low is None else low), (infinity if high is None else high)
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= 0 <= high:
            return float(low), float(high)
    return None


def _is_operator(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) or (
        node.target is operator.getitem and _value(node) is not None
    )


def annotate(module: fx.GraphModule, mapping: QConfigMapping) -> Annotation:
    """Decides where int8 is used.

    Layers always work on int8. Any other operator does if its result goes on to a layer as int8 and all it takes is
    int8 already: nothing is quantized just to be dequantized. Layers whose result nobody takes as int8 give float32.
    """
    found = Annotation()
    nodes = [n for n in module.graph.nodes if n.op == "call_function" and _is_operator(n)]
    for node in nodes:
        by_weight = _BY_WEIGHT.get(node.target)
        if by_weight is not None and _qconfig(mapping, node) is not None:
            reason = by_weight(node)
            if reason is None:
                found.by_weight.add(node)
            else:
                found.reasons[node] = reason
            continue
        form, inputs, reason = _classify(module, node)
        qconfig = _qconfig(mapping, node) if form is not None else None
        if form is not None and qconfig is None:
            form, reason = None, "its qconfig is None"
        if form is not None:
            found.forms[node], found.inputs[node], found.qconfigs[node] = form, inputs, qconfig
        elif reason is not None and node.target is not operator.getitem:
            found.reasons[node] = reason
    _settle(module, found, nodes)
    for node in nodes:
        if node not in found.forms:
            continue
        if found.forms[node] is Form.KEEP:
            _share(found, node, found.inputs[node][0])
        elif found.forms[node] is Form.JOIN:
            for part in found.inputs[node]:
                _share(found, node, part)
        source = found.inputs[node][0]
        if (
            found.forms[node] is Form.TABLE
            and clamp_bounds(node) is not None
            and found.forms.get(source) in (Form.LAYER, Form.BINARY)
            and len(source.users) == 1
        ):
            found.carrier[source] = node
    return found


def _settle(module: fx.GraphModule, found: Annotation, nodes: list[fx.Node]) -> None:
    """Drops forms until every int8 operator takes int8 and gives it to somebody who needs it."""
    while True:
        wanted: set[fx.Node] = set()
        for node in reversed(nodes):
            form = found.forms.get(node)
            if form is Form.LAYER or (form is not None and node in wanted):
                wanted.update(found.inputs[node])
        found.quantized = {n for n in module.graph.nodes if n.op == "placeholder" and n in wanted}
        dropped = []
        for node in nodes:
            form = found.forms.get(node)
            if form is None:
                continue
            if form is Form.LAYER:
                if node in wanted:
                    found.quantized.add(node)
            elif node in wanted and all(x in found.quantized for x in found.inputs[node]):
                found.quantized.add(node)
            else:
                dropped.append(
                    (node, "its result is not needed in int8" if node not in wanted else "its input is float")
                )
        if not dropped:
            return
        for node, reason in dropped:
            if node.target is not operator.getitem:
                found.reasons[node] = reason
            del found.forms[node], found.inputs[node], found.qconfigs[node]


def _share(found: Annotation, a: fx.Node, b: fx.Node) -> None:
    a, b = found.representative(a), found.representative(b)
    if a is not b:
        found.group[a] = b
