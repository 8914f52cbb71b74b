"""Layers joined before quantization: batch norm in the layer before it, gates, transposed convolutions, attention, RMS norm.

The results are those of the model up to the rounding of float32.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from zeropoint.graph.attention import replace_attention, share_heads
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import add_constant, constant_of, is_constant
from zeropoint.graph.norms import replace_rms_norm
from zeropoint.graph.rewrite import Rewriter, both_orders, replace_node
from zeropoint.graph.transposed import TRANSPOSED, replace_transposed

__all__ = ["simplify"]

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


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
        replace_node(node, source)
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
    replace_node(node, conv)


def _is_sigmoid_gate(node: fx.Node) -> fx.Node | None:
    """``x`` of ``x * sigmoid(x)``."""
    for a, b in both_orders(node, aten.mul.Tensor):
        if isinstance(b, fx.Node) and b.target is aten.sigmoid.default and b.args[0] is a:
            return a
    return None


def simplify(module: fx.GraphModule) -> None:
    """Rewrites a canonical ``module`` in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.batch_norm.default:
            _fold_batch_norm(module, node)
        elif (x := _is_sigmoid_gate(node)) is not None:
            rewriter = Rewriter(module, node)
            rewriter.replace(rewriter.call(aten.silu.default, x))
        elif node.target in (aten.softmax.int, aten._softmax.default):
            replace_attention(module, node)
        elif node.target is aten.rsqrt.default:
            replace_rms_norm(module, node)
    for node in list(graph.nodes):
        if node.target in TRANSPOSED:
            replace_transposed(module, node)
        elif node.target is aten.scaled_dot_product_attention.default:
            share_heads(module, node)
    graph.eliminate_dead_code()
    module.recompile()
