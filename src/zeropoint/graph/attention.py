"""Attention that a model spells out, as one operator.

``softmax(q k' * factor + mask) v``, where the factor may be a division, and the mask an addition, ``masked_fill`` or
``where``: what is known as ``scaled_dot_product_attention`` (Vaswani et al., 2017, "Attention Is All You Need").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zeropoint.graph.annotate import scalar_of
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter

__all__ = ["replace_attention", "share_heads"]

aten = torch.ops.aten

_PRODUCTS = {aten.matmul.default, aten.bmm.default}
# Names of the condition and of what is filled in, and whether that is where the condition holds.
_FILLS = {
    aten.masked_fill.Scalar: ("mask", "value", True),
    aten.masked_fill.Tensor: ("mask", "value", True),
    aten.where.self: ("condition", "other", False),
    aten.where.ScalarOther: ("condition", "other", False),
}
# Below it nothing is left of a key next to any other; what is put in a score's place may as well be added to it.
_TAKEN_AWAY = -1e4


@dataclass
class _Scores:
    """What stands between the product of queries and keys and the softmax."""

    query: fx.Node
    key: fx.Node  # [..., D, T]
    factor: float = 1.0
    added: list[fx.Node] = field(default_factory=list)
    filled: list[tuple[fx.Node, float, bool]] = field(default_factory=list)  # condition, number, where it is what


def _alone(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _scores(module: fx.GraphModule, node: fx.Node) -> _Scores | None:
    """Follows ``node`` upwards to the product; None where something else stands between."""
    factor = 1.0
    added: list[fx.Node] = []
    filled: list[tuple[fx.Node, float, bool]] = []
    while _alone(node):
        a = arguments(node) if isinstance(node.target, torch._ops.OpOverload) else {}
        if node.target in _PRODUCTS:
            return _Scores(node.args[0], node.args[1], factor, added, filled)
        if node.target in (aten.mul.Tensor, aten.div.Tensor):
            number = scalar_of(module, a["other"])
            if number is None or number <= 0 or not isinstance(a["self"], fx.Node):
                return None
            factor *= number if node.target is aten.mul.Tensor else 1 / number
            node = a["self"]
        elif factor != 1.0:
            return None  # a mask that is scaled, too
        elif node.target is aten.add.Tensor and a["alpha"] == 1:
            sides = [a["self"], a["other"]]
            if not all(isinstance(s, fx.Node) for s in sides):
                return None
            # The scores are the side that has the result's shape by itself.
            if is_constant(sides[0]) or (not is_constant(sides[1]) and not _alone(sides[0])):
                sides.reverse()
            if scalar_of(module, sides[1]) is not None:
                return None
            added.append(sides[1])
            node = sides[0]
        elif node.target in _FILLS:
            condition, filling, where_true = _FILLS[node.target]
            number = scalar_of(module, a[filling])
            if number is None or number > _TAKEN_AWAY:
                return None
            filled.append((a[condition], number, where_true))
            node = a["self"]
        else:
            return None
    return None


def _dims(module: fx.GraphModule, node: fx.Node) -> int:
    value = constant_of(module, node) if is_constant(node) else node.meta["val"]
    assert value is not None
    return int(value.dim())


def _mask(rewriter: Rewriter, scores: _Scores) -> fx.Node | None:
    """One mask: bool if all of it takes keys away altogether, or numbers to add."""
    away: fx.Node | None = None
    terms = list(scores.added)
    for condition, number, where_true in scores.filled:
        if number == -math.inf:
            kept = rewriter.call(aten.logical_not.default, condition) if where_true else condition
            away = kept if away is None else rewriter.call(aten.logical_and.default, away, kept)
        else:
            taken = condition if where_true else rewriter.call(aten.logical_not.default, condition)
            number = max(number, torch.finfo(torch.float32).min)
            terms.append(rewriter.call(aten.mul.Tensor, rewriter.call(aten.to.dtype, taken, torch.float32), number))
    if not terms:
        return away
    total = terms[0]
    for term in terms[1:]:
        total = rewriter.call(aten.add.Tensor, total, term)
    return total if away is None else rewriter.call(aten.where.ScalarOther, away, total, -math.inf)


def _transposed(rewriter: Rewriter, key: fx.Node) -> fx.Node:
    """[..., T, D] of ``key`` [..., D, T], which mostly was that before."""
    if key.target is aten.transpose.int:
        dims = {d % key.meta["val"].dim() for d in key.args[1:]}
        if dims == {key.meta["val"].dim() - 2, key.meta["val"].dim() - 1}:
            return key.args[0]
    return rewriter.call(aten.transpose.int, key, -1, -2)


def replace_attention(module: fx.GraphModule, softmax: fx.Node) -> None:
    """Rewrites the attention around ``softmax``, if it is one over [batch, heads, rows, keys] or [batch, rows, keys]."""
    value = softmax.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() not in (3, 4) or value.dtype != torch.float32:
        return
    if softmax.args[1] not in (-1, value.dim() - 1) or not _alone(softmax):
        return
    product = next(iter(softmax.users))
    if product.target not in _PRODUCTS or product.args[0] is not softmax:
        return
    scores = _scores(module, softmax.args[0]) if isinstance(softmax.args[0], fx.Node) else None
    if scores is None or any(is_constant(n) for n in (scores.query, scores.key, product.args[1])):
        return
    operands = (scores.query, scores.key, product.args[1])
    masks = [*scores.added, *(m for m, *_ in scores.filled)]
    if any(_dims(module, n) != value.dim() for n in operands) or any(_dims(module, m) > value.dim() for m in masks):
        return
    rewriter = Rewriter(module, product)
    query, value_ = scores.query, product.args[1]
    key = _transposed(rewriter, scores.key)
    mask = _mask(rewriter, scores)
    if value.dim() == 3:
        query, key, value_ = (rewriter.call(aten.unsqueeze.default, n, 1) for n in (query, key, value_))
        if mask is not None and _dims(module, mask) == 3:
            mask = rewriter.call(aten.unsqueeze.default, mask, 1)
    attention = aten.scaled_dot_product_attention.default
    out = rewriter.call(attention, query, key, value_, mask, scale=scores.factor)
    if value.dim() == 3:
        out = rewriter.call(aten.squeeze.dim, out, 1)
    rewriter.replace(out)


def _unshared(node: Any) -> Any:
    """The heads of keys or values that ``node`` repeats, each for the queries that follow each other; or itself."""
    if not isinstance(node, fx.Node):
        return node
    if node.target is aten.repeat_interleave.self_int:
        a = arguments(node)
        return a["self"] if a["dim"] in (1, -3) and isinstance(a["repeats"], int) else node
    spread = node.args[0] if node.target in (aten.reshape.default, aten.view.default, aten.flatten.using_ints) else None
    if not isinstance(spread, fx.Node) or spread.target is not aten.expand.default or len(spread.users) > 1:
        return node
    inner = spread.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not aten.unsqueeze.default or inner.args[1] not in (2, -3):
        return node
    heads, result = inner.args[0], node.meta["val"].shape
    own = heads.meta["val"].shape
    alike = len(own) == len(result) == 4 and all(str(own[i]) == str(result[i]) for i in (0, 2, 3))
    return heads if alike and isinstance(own[1], int) and result[1] % own[1] == 0 else node


def share_heads(module: fx.GraphModule, attention: fx.Node) -> None:
    """Keys and values whose heads are repeated for the queries (grouped-query attention) are taken as they are."""
    a = arguments(attention)
    key, value = _unshared(a["key"]), _unshared(a["value"])
    if key is a["key"] or value is a["value"] or a["enable_gqa"]:
        return
    if str(key.meta["val"].shape[1]) != str(value.meta["val"].shape[1]):
        return
    rewriter = Rewriter(module, attention)
    given = {"dropout_p": a["dropout_p"], "is_causal": a["is_causal"], "scale": a["scale"], "enable_gqa": True}
    rewriter.replace(rewriter.call(attention.target, a["query"], key, value, a["attn_mask"], **given))
