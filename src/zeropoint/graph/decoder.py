"""What decoders of language models compute between their linear layers, as one operator each.

Rotary embeddings, gated units and the attention of one new token over a cache stay float32, but in one pass over memory
each, and with the same bits on every CPU, which ATen's do not have.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter, both_orders

__all__ = ["fuse_decoder"]

aten = torch.ops.aten


def _value(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """What stands for the result of ``node``: the tensor if it is fixed, else its fake."""
    if not isinstance(node, fx.Node):
        return None
    value = constant_of(module, node) if is_constant(node) else node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def _number(size: Any) -> int | None:
    """A size that is fixed, also where it once was a symbol."""
    return int(str(size)) if str(size).isdigit() else None


def _is_float(module: fx.GraphModule, *nodes: Any) -> bool:
    values = [_value(module, n) for n in nodes]
    return all(v is not None and v.dtype == torch.float32 for v in values)


def _is_half(node: Any, x: fx.Node, upper: bool, features: int) -> bool:
    """Whether ``node`` is the lower or upper half of the last dimension of ``x``."""
    if not isinstance(node, fx.Node):
        return False
    last = x.meta["val"].dim() - 1
    if node.target is operator.getitem:
        whole, index = node.args
        if whole.target is aten.chunk.default:
            a = arguments(whole)
            parts = a["chunks"] == 2
        elif whole.target is aten.split.Tensor:
            a = arguments(whole)
            parts = a["split_size"] * 2 == features
        else:
            return False
        return parts and a["self"] is x and a["dim"] in (-1, last) and index == int(upper)
    if node.target is aten.slice.Tensor:
        a = arguments(node)
        start, end = a["start"] or 0, features if a["end"] is None else a["end"]
        if not (a["self"] is x and a["dim"] in (-1, last) and a["step"] == 1 and isinstance(end, int)):
            return False
        end = min(end + features if end < 0 else end, features)
        start = start + features if isinstance(start, int) and start < 0 else start
        return (start, end) == ((features // 2, features) if upper else (0, features // 2))
    return False


def _rotated(node: Any, x: fx.Node, features: int) -> bool:
    """Whether ``node`` is minus the upper half of ``x``, then its lower half."""
    if not isinstance(node, fx.Node) or node.target is not aten.cat.default:
        return False
    a = arguments(node)
    parts = a["tensors"]
    if len(parts) != 2 or a["dim"] not in (-1, x.meta["val"].dim() - 1):
        return False
    negated, low = parts
    return (
        negated.target is aten.neg.default
        and _is_half(negated.args[0], x, True, features)
        and _is_half(low, x, False, features)
    )


def _fuse_rotary(module: fx.GraphModule, total: fx.Node) -> None:
    """``x * cos + cat([-upper, lower]) * sin`` (Su et al., 2021, in Llama's order of features)."""
    if total.args[2]:
        return
    for plain, turned in both_orders(total, ops.add_float):
        for x, cos in both_orders(plain, aten.mul.Tensor):
            for rotated, sin in both_orders(turned, aten.mul.Tensor):
                value = _value(module, x)
                if value is None or is_constant(x) or not _is_float(module, x, cos, sin):
                    continue
                shape, features = value.shape, _number(value.shape[-1])
                if features is None or features % 2 or not _rotated(rotated, x, features):
                    continue
                angles = [_value(module, n).shape for n in (cos, sin)]
                if any(s[-1] != features or len(s) > len(shape) for s in angles):
                    continue
                if str(total.meta["val"].shape) != str(shape):  # by name: sizes may be symbols
                    continue
                rewriter = Rewriter(module, total)
                rewriter.replace(rewriter.call(ops.rotary, x, cos, sin))
                return


def _fuse_gate(module: fx.GraphModule, product: fx.Node) -> None:
    """``silu(gate) * up`` (SwiGLU, Shazeer, 2020)."""
    for activated, up in both_orders(product, aten.mul.Tensor):
        if not isinstance(activated, fx.Node) or activated.target is not aten.silu.default or len(activated.users) > 1:
            continue
        gate = activated.args[0]
        if not _is_float(module, gate, up) or is_constant(gate) or is_constant(up):
            continue
        if str(gate.meta["val"].shape) != str(up.meta["val"].shape):
            continue
        rewriter = Rewriter(module, product)
        rewriter.replace(rewriter.call(ops.silu_mul, gate, up))
        return


def _pieces(module: fx.GraphModule, node: Any) -> list[fx.Node] | None:
    """A cache and what is new, of rows that ``node`` joins."""
    if not isinstance(node, fx.Node) or node.target is not aten.cat.default:
        return None
    a = arguments(node)
    parts = list(a["tensors"])
    if len(parts) != 2 or a["dim"] not in (2, -2):
        return None
    if any(is_constant(p) for p in parts) or not _is_float(module, node, *parts):
        return None
    if any(p.meta["val"].dim() != 4 for p in parts):
        return None
    return parts


def _fit(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> bool:
    """Whether the operator takes them: nothing is spread over a batch, and heads of keys serve as many queries each."""
    sizes = [[str(n) for n in t.shape] for t in (query, *keys, *values)]
    heads, groups = _number(query.shape[1]), _number(keys[0].shape[1])
    return (
        groups is not None
        and heads is not None
        and heads % groups == 0
        and all(s[:2] == [sizes[0][0], str(groups)] for s in sizes[1:])
        and sizes[2][2] == sizes[4][2]  # of what is new, and so of the caches
    )


def _fuse_cached_attention(module: fx.GraphModule, node: fx.Node) -> None:
    """Attention of one query per head over ``cat([cache, new], 2)``; the joined cache comes out where it is asked for."""
    a = arguments(node)
    query, mask = a["query"], a["attn_mask"]
    value = _value(module, query)
    if value is None or value.dim() != 4 or _number(value.shape[2]) != 1:
        return
    joined = [a["key"], a["value"]]
    keys, values = (_pieces(module, n) for n in joined)
    if keys is None or values is None or a["dropout_p"] or a["is_causal"]:
        return
    if not _fit(value, *([n.meta["val"] for n in pair] for pair in (keys, values))):
        return
    if mask is not None:
        given = _value(module, mask)
        if given is None or given.dim() != 4 or given.dtype not in (torch.bool, torch.float32):
            return
    others = [u for n in joined for u in n.users if u is not node]
    if any(user < node for user in others):
        return
    features = _number(value.shape[3])
    if a["scale"] is not None:
        factor = float(a["scale"])
    elif features is not None:
        factor = 1 / math.sqrt(features)
    else:
        return
    with node.graph.inserting_before(node):
        call = node.graph.call_function(
            ops.cached_attention, (query, keys[0], values[0], keys[1], values[1], factor, mask, bool(others))
        )
        call.meta = {k: v for k, v in node.meta.items() if k != "val"}
        results = [node.graph.call_function(operator.getitem, (call, i)) for i in range(3)]
    for old, new in zip((node, *joined), results, strict=True):
        new.meta = dict(old.meta)
        if old is node or others:
            old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not node)
    node.graph.erase_node(node)


_FUSIONS: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    ops.add_float: _fuse_rotary,
    aten.mul.Tensor: _fuse_gate,
    aten.scaled_dot_product_attention.default: _fuse_cached_attention,
}


def fuse_decoder(module: fx.GraphModule) -> None:
    """Rewrites a lowered ``module`` in place; results are those of ATen up to the rounding of float32."""
    for node in list(module.graph.nodes):
        fusion = _FUSIONS.get(node.target) if node.op == "call_function" else None
        if fusion is not None:
            fusion(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
