"""One spelling for what models write in several. Results keep their bits."""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import fx

from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter, replace_node

__all__ = ["arguments", "canonicalize", "is_check", "is_power", "numbers"]

aten = torch.ops.aten

# Nothing to compute in eval mode.
_IDENTITIES = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}
_COPIES = {aten.to.dtype, aten.clone.default, aten.contiguous.default}
_CONVERSIONS = {aten.to.device, aten.to.dtype_layout}
_PADDED_BY_NAME = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by the names of its operator's schema, defaults filled in."""
    schema = node.target._schema.arguments
    known = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: known.get(a.name, a.default_value) for a in schema}


def numbers(value: Any, count: int) -> list[int]:
    """One number for all dimensions, or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _same_dtype(node: fx.Node, source: fx.Node) -> bool:
    a, b = node.meta.get("val"), source.meta.get("val")
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.device == b.device


def _is_whole(node: fx.Node) -> bool:
    """Whether a slice is all of its dimension, as ``x[:, None]`` has them."""
    if node.target is not aten.slice.Tensor:
        return False
    a = arguments(node)
    return a["start"] in (None, 0) and a["end"] in (None, sys.maxsize) and a["step"] == 1


def _copy_over(node: fx.Node) -> None:
    """What is copied over a whole tensor, without that tensor, which may have been drawn at random."""
    source = node.args[1]
    a, b = node.meta.get("val"), source.meta.get("val") if isinstance(source, fx.Node) else None
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.device == b.device):
        return
    if list(map(str, (*a.shape, *a.stride()))) != list(map(str, (*b.shape, *b.stride()))):
        return
    if a.dtype != b.dtype:
        with node.graph.inserting_before(node):
            source = node.graph.call_function(aten.to.dtype, (source, a.dtype))
        source.meta = dict(node.meta)
    replace_node(node, source)


def _drop_device(node: fx.Node) -> None:
    """A conversion that names a device: every tensor of a program is on the CPU, so the dtype is all there is to it."""
    a, value = arguments(node), node.meta.get("val")
    dtype = a["dtype"] or (value.dtype if isinstance(value, torch.Tensor) else None)
    if dtype is not None:
        node.target, node.args, node.kwargs = aten.to.dtype, (a["self"], dtype, False, False, a["memory_format"]), {}


def is_check(node: fx.Node) -> bool:
    """Whether the node only checks a size."""
    name = str(node.target)
    return name.startswith("aten._assert") or "sym_constrain_range" in name


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CONVERSIONS:
            _drop_device(node)
        if is_check(node):
            graph.erase_node(node)
        elif (
            node.target in _IDENTITIES
            or _is_whole(node)
            or (node.target in _COPIES and _same_dtype(node, node.args[0]))
        ):
            replace_node(node, node.args[0])
        elif node.target is aten.copy.default:
            _copy_over(node)


def _batch_norm_of_decomposition(node: fx.Node) -> None:
    """As ``batch_norm``, whose only result is the first of the decomposition's."""
    x, weight, bias, mean, variance, momentum, eps = node.args
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
        )
    norm.meta = dict(node.meta)
    for user in list(node.users):
        norm.meta["val"] = user.meta.get("val")
        replace_node(user, norm)
    node.graph.erase_node(node)


def _product_of_sizes(node: fx.Node) -> None:
    """How many values a tensor has, from its sizes."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    with node.graph.inserting_before(node):
        result: Any = 1
        for i, size in enumerate(x.meta["val"].shape):
            one = node.graph.call_function(aten.sym_size.int, (x, i))
            one.meta["val"] = size
            result = one if i == 0 else node.graph.call_function(operator.mul, (result, one))
            result.meta["val"] = size if i == 0 else x.meta["val"].shape[: i + 1].numel()
    replace_node(node, result)


def is_power(node: fx.Node) -> bool:
    """Whether the node is ``size ** 2`` and its kind, which is a product."""
    return node.target is operator.pow and isinstance(node.args[1], int) and 1 <= node.args[1] <= 4


def _power_of_size(node: fx.Node) -> None:
    size, exponent = node.args
    assert isinstance(exponent, int)
    result = size
    with node.graph.inserting_before(node):
        for _ in range(exponent - 1):
            result = node.graph.call_function(operator.mul, (result, size))
            result.meta["val"] = result.args[0].meta["val"] * size.meta["val"]
    replace_node(node, result)


def _replace_named_padding(module: fx.GraphModule, node: fx.Node) -> None:
    """``padding="same"`` or ``"valid"`` as numbers; of an odd "same", the larger side is a pad of its own, as in torch."""
    a = arguments(node)
    weight = constant_of(module, a["weight"]) if is_constant(a["weight"]) else a["weight"].meta["val"]
    assert weight is not None
    dims = weight.dim() - 2
    dilation = numbers(a["dilation"], dims)
    total = [0] * dims
    if a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    rewriter = Rewriter(module, node)
    x = a["input"]
    if any(t % 2 for t in total):
        sides = [side for t in reversed(total) for side in (0, t % 2)]
        x = rewriter.call(aten.constant_pad_nd.default, x, sides, 0)
    target = _PADDED_BY_NAME[node.target]
    padding = [t // 2 for t in total]
    rewriter.replace(
        rewriter.call(target, x, a["weight"], a["bias"], numbers(a["stride"], dims), padding, dilation, a["groups"])
    )


def canonicalize(module: fx.GraphModule) -> None:
    """Rewrites ``module`` in place to the spellings that the later passes know."""
    graph = module.graph
    _drop_identities(graph)
    for node in list(graph.nodes):
        if node.target in _PADDED_BY_NAME:
            _replace_named_padding(module, node)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.view.default, aten._unsafe_view.default):
            # Copies that made a view possible are gone, and int8 images have another layout than the model's.
            node.target = aten.reshape.default
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            _batch_norm_of_decomposition(node)
        elif node.target is aten.sym_numel.default:
            _product_of_sizes(node)
        elif is_power(node):
            _power_of_size(node)
    # Also numbers drawn for nobody, as those of a layer that is made on the way and gets other weights.
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.recompile()
