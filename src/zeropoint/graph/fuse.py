"""Joins zeropoint operators where the joined one gives the same bits: a residual sum or a table into the layer before it.

Both are exact restatements: a layer's epilogue rounds to the layer's own qparams first, as the separate operators do.
"""

from __future__ import annotations

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.constants import constant_of, is_constant

__all__ = ["fuse"]

_LAYERS = {ops.linear: 13, ops.conv2d: 17}  # arguments before `residual`; from x_scale on they are the same
_TAIL = (None, 1.0, 0, 1.0, 0, 0, 255, None)  # residual, its qparams, those of the sum, its clamp, table


def _open_layer(node: object, user: fx.Node) -> bool:
    """Whether ``node`` is a layer with an 8-bit result that only ``user`` takes."""
    return (
        isinstance(node, fx.Node)
        and node.target in _LAYERS
        and len(node.users) == 1
        and next(iter(node.users)) is user
        and node.args[_LAYERS[node.target] - 1] in (torch.uint8, torch.int8)
    )


def _is_broadcast(node: object, result: fx.Node) -> bool:
    """Whether ``node`` lacks, or has once, a dimension that ``result`` has more often: a layer adds whole tensors."""
    if not isinstance(node, fx.Node) or "val" not in node.meta:
        return True
    shape, whole = node.meta["val"].shape, result.meta["val"].shape
    return len(shape) != len(whole) or any(
        isinstance(a, int) and a == 1 and not (isinstance(b, int) and b == 1) for a, b in zip(shape, whole, strict=True)
    )


def _tail(node: fx.Node) -> list[object]:
    given = list(node.args[_LAYERS[node.target] :])
    return given + list(_TAIL[len(given) :])


def _move(layer: fx.Node, user: fx.Node, tail: list[object]) -> None:
    """Puts the layer where ``user`` stands, with a new tail, and drops ``user``."""
    start = _LAYERS[layer.target]
    with layer.graph.inserting_before(user):
        joined = layer.graph.call_function(layer.target, (*layer.args[:start], *tail))
    joined.meta = {**user.meta, **{k: v for k, v in layer.meta.items() if k == "source"}}
    user.replace_all_uses_with(joined)
    layer.graph.erase_node(user)
    layer.graph.erase_node(layer)


def _fuse_sum(node: fx.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero_point, low, high, dtype = node.args
    # The later of two layers takes the other's result, which is there by then.
    candidates = [(a, (a_scale, a_zero), b, (b_scale, b_zero)), (b, (b_scale, b_zero), a, (a_scale, a_zero))]
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a < b:
        candidates.reverse()
    for layer, own, other, others in candidates:
        if not _open_layer(layer, node) or other is layer:
            continue
        if _is_broadcast(layer, node) or _is_broadcast(other, node):
            continue
        start = _LAYERS[layer.target]
        tail = _tail(layer)
        if tail[0] is not None or tail[7] is not None or layer.args[start - 1] is not dtype:
            continue
        if tuple(layer.args[start - 5 : start - 3]) != own:
            continue
        _move(layer, node, [other, *others, scale, zero_point, low, high, None])
        return


def _fuse_table(module: fx.GraphModule, node: fx.Node) -> None:
    layer, table = node.args
    if not _open_layer(layer, node):
        return
    tail = _tail(layer)
    values = constant_of(module, table) if is_constant(table) else None
    start = _LAYERS[layer.target]
    if tail[7] is None and values is not None and values.dtype == layer.args[start - 1]:
        _move(layer, node, [*tail[:7], table])


def fuse(module: fx.GraphModule) -> None:
    """Rewrites ``module`` in place."""
    for node in list(module.graph.nodes):
        if node.target is ops.add:
            _fuse_sum(node)
        elif node.target is ops.lookup:
            _fuse_table(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
