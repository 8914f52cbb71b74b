"""One spelling for what models write in several, and batch norm folded into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from zeropoint.graph.constants import add_constant, constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter
from zeropoint.graph.transposed import TRANSPOSED, replace_transposed

__all__ = ["arguments", "canonicalize"]

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
_PADDED_BY_NAME = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by the names of its operator's schema, defaults filled in."""
    schema = node.target._schema.arguments
    known = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: known.get(a.name, a.default_value) for a in schema}


def _replace(node: fx.Node, value: fx.Node) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _same_dtype(node: fx.Node, source: fx.Node) -> bool:
    a, b = node.meta.get("val"), source.meta.get("val")
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.device == b.device


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target)
        if name.startswith("aten._assert") or "sym_constrain_range" in name:
            graph.erase_node(node)
        elif node.target in _IDENTITIES or (node.target in _COPIES and _same_dtype(node, node.args[0])):
            _replace(node, node.args[0])


def _batch_norm(
    module: fx.GraphModule, node: fx.Node
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float] | None:
    """Weight, bias, mean, variance and eps of a batch norm in eval mode whose statistics are fixed."""
    a = arguments(node)
    if a["training"] or not all(is_constant(a[k]) or a[k] is None for k in ("weight", "bias")):
        return None
    if not (is_constant(a["running_mean"]) and is_constant(a["running_var"])):
        return None
    mean, variance = constant_of(module, a["running_mean"]), constant_of(module, a["running_var"])
    assert mean is not None
    assert variance is not None
    weight, bias = constant_of(module, a["weight"]), constant_of(module, a["bias"])
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    return weight, bias, mean, variance, float(a["eps"])


def _fold_batch_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """Into the convolution or Linear that alone feeds it; otherwise it becomes a 1x1 convolution per channel."""
    found = _batch_norm(module, node)
    if found is None:
        return
    gamma, beta, mean, variance, eps = found
    source, graph = node.args[0], node.graph
    layer = isinstance(source, fx.Node) and (
        source.target in (*_CONVOLUTIONS, aten.linear.default)
        or (source.target in TRANSPOSED and arguments(source)["groups"] == 1)
    )
    if (
        layer
        and len(source.users) == 1
        and all(is_constant(w) or w is None for w in (*source.args[1:2], *source.args[2:3]))
    ):
        weight = constant_of(module, source.args[1])
        bias = constant_of(module, source.args[2]) if len(source.args) > 2 else None
        norm = (mean, variance, eps, gamma, beta)
        if source.target is aten.linear.default:
            folded = fuse_linear_bn_weights(weight, bias, *norm)
        else:
            folded = fuse_conv_bn_weights(weight, bias, *norm, transpose=source.target in TRANSPOSED)
        with graph.inserting_before(source):
            constants = [
                add_constant(module, graph, f"{source.name}_{n}", p.detach()) for n, p in zip("wb", folded, strict=True)
            ]
        source.args = (source.args[0], *constants, *source.args[3:])
        _replace(node, source)
        return
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() != 4:
        return
    factor = gamma.double() * torch.rsqrt(variance.double() + eps)
    offset = beta.double() - mean.double() * factor
    with graph.inserting_before(node):
        weight = add_constant(module, graph, f"{node.name}_w", factor.float().reshape(-1, 1, 1, 1))
        bias = add_constant(module, graph, f"{node.name}_b", offset.float())
        conv = graph.call_function(aten.conv2d.default, (source, weight, bias, [1, 1], [0, 0], [1, 1], factor.numel()))
    conv.meta = dict(node.meta)
    _replace(node, conv)


def _batch_norm_of_decomposition(node: fx.Node) -> fx.Node:
    """As ``batch_norm``, whose only result is the first of the decomposition's."""
    x, weight, bias, mean, variance, momentum, eps = node.args
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
        )
    norm.meta = dict(node.meta)
    for user in list(node.users):
        norm.meta["val"] = user.meta.get("val")
        _replace(user, norm)
    node.graph.erase_node(node)
    return norm


def _is_sigmoid_gate(node: fx.Node) -> fx.Node | None:
    """``x`` of ``x * sigmoid(x)``."""
    if node.target is not aten.mul.Tensor:
        return None
    for a, b in (node.args[:2], node.args[1::-1]):
        if isinstance(b, fx.Node) and b.target is aten.sigmoid.default and b.args[0] is a:
            return a
    return None


def _replace_named_padding(module: fx.GraphModule, node: fx.Node) -> None:
    """``padding="same"`` or ``"valid"`` as numbers; of an odd "same", the larger side is a pad of its own, as in torch."""
    a = arguments(node)
    value, weight = a["input"].meta["val"], a["weight"].meta.get("val")
    if weight is None:
        weight = constant_of(module, a["weight"])
    assert weight is not None
    dims = weight.dim() - 2
    spatial = lambda key: list(a[key]) * dims if len(a[key]) == 1 else list(a[key])
    dilation = spatial("dilation")
    total = [0] * dims
    if a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    rewriter = Rewriter(module, node)
    x = a["input"]
    if any(t % 2 for t in total):
        sides = [side for t in reversed(total) for side in (0, t % 2)]
        x = rewriter.call(aten.constant_pad_nd.default, x, sides, 0)
    assert value.dim() in (dims + 1, dims + 2)
    target = _PADDED_BY_NAME[node.target]
    padding = [t // 2 for t in total]
    rewriter.replace(rewriter.call(target, x, a["weight"], a["bias"], spatial("stride"), padding, dilation, a["groups"]))


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
            node = _batch_norm_of_decomposition(node)
        if node.target is aten.batch_norm.default:
            _fold_batch_norm(module, node)
        elif (x := _is_sigmoid_gate(node)) is not None:
            with graph.inserting_before(node):
                silu = graph.call_function(aten.silu.default, (x,))
            silu.meta = dict(node.meta)
            _replace(node, silu)
    for node in list(graph.nodes):
        if node.target in TRANSPOSED:
            replace_transposed(module, node, arguments(node))
    graph.eliminate_dead_code()
    module.recompile()
