"""Layer norm and RMS norm: what models spell out as one operator, and with the sum before and the rounding after it.

They stay float32, but in one pass over memory, and with the same bits on every CPU, which ATen's do not have.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint.graph.annotate import scalar_of
from zeropoint.graph.canonicalize import arguments
from zeropoint.graph.constants import constant_of, is_constant
from zeropoint.graph.rewrite import Rewriter, both_orders

__all__ = ["fuse_norms", "replace_rms_norm"]

aten = torch.ops.aten

_NORMS = {aten.layer_norm.default, aten.rms_norm.default}
_EPS = torch.finfo(torch.float32).eps  # of an RMS norm that names none


def _is_square(module: fx.GraphModule, node: Any, x: fx.Node) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.target is aten.mul.Tensor:
        return node.args[0] is x and node.args[1] is x
    if node.target is aten.square.default:
        return node.args[0] is x
    return node.target is aten.pow.Tensor_Scalar and node.args[0] is x and scalar_of(module, node.args[1]) == 2


def _float_features(node: Any) -> int | None:
    """Of a float32 value with a fixed last dimension."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.dim() < 1:
        return None
    return value.shape[-1] if isinstance(value.shape[-1], int) else None


def _rms_eps(module: fx.GraphModule, rsqrt: fx.Node, x: fx.Node) -> float | None:
    """``eps`` if ``rsqrt`` is ``rsqrt(mean(x^2, -1, keepdim) + eps)``."""
    for mean, number in both_orders(rsqrt.args[0], aten.add.Tensor):
        eps = scalar_of(module, number)
        if eps is None or not isinstance(mean, fx.Node) or mean.target is not aten.mean.dim:
            continue
        a = arguments(mean)
        dims = [d % x.meta["val"].dim() for d in a["dim"] or []]
        if a["keepdim"] and dims == [x.meta["val"].dim() - 1] and a["dtype"] in (None, torch.float32):
            return eps if _is_square(module, a["self"], x) and eps >= 0 else None
    return None


def replace_rms_norm(module: fx.GraphModule, rsqrt: fx.Node) -> None:
    """``x * rsqrt(mean(x^2) + eps) * weight`` (Zhang and Sennrich, 2019) as ``rms_norm``, where ``rsqrt`` is part of one."""
    if len(rsqrt.users) != 1:
        return
    product = next(iter(rsqrt.users))
    for x, factor in both_orders(product, aten.mul.Tensor):
        features = _float_features(x)
        if factor is not rsqrt or features is None:
            continue
        eps = _rms_eps(module, rsqrt, x)
        if eps is None:
            return
        result, weight = product, None
        user = next(iter(product.users)) if len(product.users) == 1 else None
        for scale, scaled in both_orders(user, aten.mul.Tensor):
            fixed = constant_of(module, scale) if scaled is product and is_constant(scale) else None
            if fixed is not None and fixed.shape == (features,) and fixed.dtype == torch.float32:
                result, weight = user, scale
                break
        rewriter = Rewriter(module, result)
        rewriter.replace(rewriter.call(aten.rms_norm.default, x, [features], weight, eps))
        return


def _shape(node: Any) -> list[str] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return [str(size) for size in value.shape] if isinstance(value, torch.Tensor) else None


def _residual(node: fx.Node, x: fx.Node) -> bool:
    """Whether ``x`` is a sum of two values of its shape that nobody takes before ``node`` does."""
    if x.target is not ops.add_float or x.args[2]:
        return False
    shape = _shape(x)
    alike = shape is not None and all(_shape(side) == shape for side in x.args[:2])
    return alike and not any(user < node for user in x.users)


def _fuse_norm(module: fx.GraphModule, node: fx.Node) -> None:
    a = arguments(node)
    x, parameters = a["input"], [a["weight"], a.get("bias")]
    if len(a["normalized_shape"]) != 1 or _float_features(node) != a["normalized_shape"][0]:
        return
    for parameter in parameters:
        if parameter is not None and not is_constant(parameter):
            return
        fixed = constant_of(module, parameter)
        if fixed is not None and (fixed.dtype != torch.float32 or not fixed.is_contiguous()):
            return
    centered = node.target is aten.layer_norm.default
    eps = _EPS if a["eps"] is None else float(a["eps"])
    rounded = [u for u in node.users if u.target is ops.quantize_per_tensor and u.args[0] is node]
    output = rounded[0].args[1:] if rounded and rounded[0].args[3] in (torch.uint8, torch.int8) else ()
    rounded = [u for u in rounded if output and u.args[1:] == output]
    summed = _residual(node, x)
    keep_sum = summed and len(x.users) > 1
    keep_norm = len(rounded) < len(node.users)
    with node.graph.inserting_before(node):
        sides = x.args[:2] if summed else (x, None)
        call = node.graph.call_function(
            ops.add_norm, (*sides, *parameters, eps, centered, keep_sum, keep_norm, *(output or (1.0, 0, None)))
        )
        call.meta = {k: v for k, v in node.meta.items() if k != "val"}
        results = [node.graph.call_function(operator.getitem, (call, i)) for i in range(3)]
    for old, new in ((x if keep_sum else None, results[0]), (node, results[1]), *((q, results[2]) for q in rounded)):
        if old is not None:
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not call and user not in rounded)
    for old in (*rounded, node):
        node.graph.erase_node(old)


def fuse_norms(module: fx.GraphModule) -> None:
    """Rewrites a lowered ``module`` in place; results are those of ATen up to the rounding of float32."""
    for node in list(module.graph.nodes):
        if node.target in _NORMS:
            _fuse_norm(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
