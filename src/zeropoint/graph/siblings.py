"""Linear layers of the same input as one call: queries, keys and values of attention; gate and up of a decoder's unit."""

from __future__ import annotations

import operator
from collections import defaultdict

import torch
from torch import fx

from zeropoint import ops
from zeropoint._reference.grouped import PART
from zeropoint.graph.builder import source_name
from zeropoint.graph.constants import add_constant, constant_of, is_constant

__all__ = ["join_siblings"]

_WEIGHT, _PACKED, _SCALE, _ZERO_POINT, _BIAS, _FLAGS = range(1, 7)  # arguments of linear_grouped after x
_MOST = 1 << 16  # outputs of one layer


def join_siblings(module: fx.GraphModule) -> None:
    """Rewrites ``module`` in place: the input is quantized once, and more columns are shared among threads at a time.

    The bits of results are the same. Layers whose weights others use as well stay as they are.
    """
    families = defaultdict(list)
    users: dict[str, int] = defaultdict(int)
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            if is_constant(source) and node.target is not ops.linear_grouped_pack:
                users[source.target] += 1
        if node.target is ops.linear_grouped:
            families[_family(module, node)].append(node)
    for family in families.values():
        siblings = [n for n in family if _is_alone(n, users)]
        ragged = [n for n in siblings if _outputs(module, n) % PART]  # only the last one may end within a panel
        _join(module, [n for n in siblings if n not in ragged] + ragged[:1])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _family(module: fx.GraphModule, node: fx.Node) -> tuple[object, ...]:
    """What siblings have in common: input, kind of scales, zero points and bias, flags."""
    weight, scale = (
        constant_of(module, node.args[i]) if is_constant(node.args[i]) else None for i in (_WEIGHT, _SCALE)
    )
    if weight is None or scale is None:
        return (node,)
    optional = [node.args[i] is None for i in (_ZERO_POINT, _BIAS)]
    return (node.args[0], weight.dtype, scale.shape[1], *optional, *node.args[_FLAGS:])


def _outputs(module: fx.GraphModule, node: fx.Node) -> int:
    scale = constant_of(module, node.args[_SCALE])
    assert scale is not None
    return len(scale)


def _is_alone(node: fx.Node, users: dict[str, int]) -> bool:
    constants = [node.args[i] for i in (_WEIGHT, _SCALE, _ZERO_POINT, _BIAS) if node.args[i] is not None]
    packed = node.args[_PACKED]
    return (
        all(is_constant(c) and users[c.target] == 1 for c in constants)
        and isinstance(packed, fx.Node)
        and packed.target is ops.linear_grouped_pack
    )


def _join(module: fx.GraphModule, siblings: list[fx.Node]) -> None:
    siblings = [n for n in siblings if 0 < _outputs(module, n) <= _MOST]
    if len(siblings) < 2:
        return
    first = min(siblings)
    graph = module.graph

    def together(index: int) -> fx.Node | None:
        if first.args[index] is None:
            return None
        parts = [constant_of(module, n.args[index]) for n in siblings]
        return add_constant(module, graph, f"{first.name}_{index}_joined", torch.cat(parts))

    with graph.inserting_before(first):
        weight, scale, zero_point, bias = (together(i) for i in (_WEIGHT, _SCALE, _ZERO_POINT, _BIAS))
        x, flags = first.args[0], first.args[_FLAGS:]
        packed = graph.call_function(ops.linear_grouped_pack, (weight, scale, zero_point, flags[0], flags[1]))
        parts = [_outputs(module, n) for n in siblings]
        call = graph.call_function(
            ops.linear_grouped_split, (x, weight, packed, scale, zero_point, bias, *flags, parts)
        )
        results = [graph.call_function(operator.getitem, (call, i)) for i in range(len(siblings))]
    call.meta = {k: v for k, v in first.meta.items() if k != "val"}
    call.meta["source"] = ", ".join(source_name(n) for n in siblings)
    for node, result in zip(siblings, results, strict=True):
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
