"""Embeddings of a graph: rows of 8 bits, each with a scale and a zero point; results are float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.builder import GraphBuilder, source_name
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.nn.quantized.modules.embedding_ops import quantize_rows

__all__ = ["EMBEDDING", "embedding_reason", "lower_embedding"]

EMBEDDING = torch.ops.aten.embedding.default


def embedding_reason(node: fx.Node) -> str | None:
    """Why the embedding ``node`` stays as it is."""
    a = arguments(node)
    index = a["indices"].meta.get("val")
    if not is_constant(a["weight"]):
        return "its weight is computed, not fixed"
    if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int32, torch.int64):
        return "its indices are not int32 or int64"
    return None


def lower_embedding(builder: GraphBuilder, node: fx.Node, value_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """The float32 rows that ``node`` looks up."""
    a = arguments(node)
    weight = constant_of(builder.module, a["weight"])
    assert weight is not None
    scale, zero_point, data = quantize_rows(weight.float())
    name = source_name(node)
    rows = [
        builder.constant(f"{name}_{part}", value)
        for part, value in (("weight", data), ("scale", scale), ("zero_point", zero_point))
    ]
    result = builder.call(ops.embedding, value_of(a["indices"]), *rows, 8, weight.shape[1])
    result.meta["val"] = node.meta.get("val")
    return result
