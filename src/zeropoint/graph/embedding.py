"""Embeddings of a graph, and bags of them: rows of 8 bits, each with a scale and a zero point; results are float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.builder import GraphBuilder, source_name
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.nn.quantized.modules.embedding_ops import quantize_rows

__all__ = ["EMBEDDINGS", "embedding_reason", "lower_embedding"]

aten = torch.ops.aten
_BAG = aten.embedding_bag.padding_idx
EMBEDDINGS = (aten.embedding.default, _BAG)


def embedding_reason(node: fx.Node) -> str | None:
    """Why the embedding ``node`` stays as it is."""
    a = arguments(node)
    index = a["indices"].meta.get("val")
    if not is_constant(a["weight"]):
        return "its weight is computed, not fixed"
    if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int32, torch.int64):
        return "its indices are not int32 or int64"
    if node.target is _BAG and any(user.args[1] != 0 and user.users for user in node.users):
        return "more than its sums is used"
    return None


def _rows_of_bags(a: dict[str, Any]) -> fx.Node | None:
    """The indices [bags, n] that ``F.embedding_bag`` made one dimension of, with offsets that are multiples of n."""
    flat, offsets = a["indices"], a["offsets"]
    if (
        a["include_last_offset"]
        or flat.target is not aten.reshape.default
        or offsets.target is not aten.arange.start_step
    ):
        return None
    rows = flat.args[0]
    shape = rows.meta["val"].shape
    start, end, step = (n.meta["val"] if isinstance(n, fx.Node) else n for n in offsets.args[:3])
    same = start == 0 and str(end) == str(shape.numel()) and len(shape) == 2 and str(step) == str(shape[1])
    return rows if same else None


def lower_embedding(
    builder: GraphBuilder, node: fx.Node, value_of: Callable[[fx.Node], fx.Node]
) -> dict[fx.Node, fx.Node]:
    """The float32 rows, or their sums, that ``node`` looks up."""
    a = arguments(node)
    weight = constant_of(builder.module, a["weight"])
    assert weight is not None
    scale, zero_point, data = quantize_rows(weight.float())
    name = source_name(node)
    rows = [
        builder.constant(f"{name}_{part}", value)
        for part, value in (("weight", data), ("scale", scale), ("zero_point", zero_point))
    ]
    shape = (8, weight.shape[1])
    if node.target is not _BAG:
        result = builder.call(ops.embedding, value_of(a["indices"]), *rows, *shape)
        result.meta["val"] = node.meta.get("val")
        return {node: result}
    bags = _rows_of_bags(a)
    indices = (value_of(a["indices"]), value_of(a["offsets"])) if bags is None else (value_of(bags), None)
    weights = a["per_sample_weights"]
    options = (a["mode"], a["include_last_offset"], None if weights is None else value_of(weights), a["padding_idx"])
    result = builder.call(ops.embedding_bag, *indices, *rows, *shape, *options)
    result.meta["val"] = node.meta["val"][0]
    return dict.fromkeys(node.users, result)  # those that ask for more are asked by nobody
