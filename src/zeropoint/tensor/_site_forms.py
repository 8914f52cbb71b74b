"""Integer forms of functions whose result takes the qparams of its call site."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from zeropoint import ops
from zeropoint.tensor._callsite import canonical_name
from zeropoint.tensor._pointwise import make_table, requantize, traced
from zeropoint.tensor._qtensor import QTensor

__all__ = ["has_integer_form", "mirrored", "site_form"]

# Elementwise functions of one tensor and numbers: a table gives their exact result.
_POINTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "rsub",
        "neg",
        "negative",
        "abs",
        "absolute",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sqrt",
        "rsqrt",
        "square",
        "reciprocal",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "erf",
        "erfc",
        "sigmoid",
        "logsigmoid",
        "log_sigmoid",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "softsign",
        "softshrink",
        "hardshrink",
        "tanhshrink",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "threshold",
        "clamp",
        "clamp_min",
        "clamp_max",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "sign",
        "sgn",
        "logit",
        "nan_to_num",
        "remainder",
        "fmod",
        "floor_divide",
    ]
)


def _is_8bit(x: Any) -> bool:
    return isinstance(x, QTensor) and x._axis is None and x._qdtype.bits == 8


def site_form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    """The quantized result of ``func`` with the qparams of ``site``, or NotImplemented if there is no int8 form.

    ``site`` has ``_scale``, ``_zero_point`` and ``_output_dtype``.
    """
    name = canonical_name(func)
    form = _FORMS.get(name)
    if form is not None:
        result = form(func, args, kwargs, site)
        if result is not NotImplemented:
            return result
    if name in _POINTWISE and args and _is_8bit(args[0]):
        return _pointwise(func, args, kwargs, site)
    return NotImplemented


def _pointwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    x, rest = args[0], tree_leaves((args[1:], kwargs))
    if any(isinstance(value, torch.Tensor) for value in rest):
        return NotImplemented
    qparams = (x._scale, x._zero_point, x._qdtype, site._scale, site._zero_point, site._output_dtype)
    key = (func, qparams, repr((args[1:], sorted(kwargs.items()))))
    function = lambda v: func(v.clone(), *args[1:], **kwargs)  # on a copy: some of these change their argument
    if traced(x._data):
        return _wrap(ops.lookup(x._data, make_table(function, *qparams)), site)
    if site.table_key != key:
        site.table, site.table_key = make_table(function, *qparams), key
    return _wrap(ops.lookup(x._data, site.table), site)


def _wrap(data: torch.Tensor, site: Any) -> QTensor:
    return QTensor(data, site._scale, site._zero_point, site._output_dtype)


def mirrored(x: QTensor) -> QTensor:
    """``-x`` exactly: the integers and the zero point mirrored within the dtype's range."""
    total = x._qdtype.quant_min + x._qdtype.quant_max
    data = torch.bitwise_not(x._data)  # 255 - q of uint8 and -1 - q of int8, which is quant_min + quant_max - q
    return QTensor(data, x._scale, total - x._zero_point, x._qdtype)


def _two(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[QTensor, QTensor] | None:
    x: Any = args[0] if args else kwargs.get("input")
    y: Any = args[1] if len(args) > 1 else kwargs.get("other")
    options = {k: v for k, v in kwargs.items() if k not in ("input", "other")}
    if options.get("alpha", 1) != 1 or options.get("out") is not None or len(args) > 2:
        return None
    if not (_is_8bit(x) and _is_8bit(y)) or getattr(func, "__name__", "").startswith("__r"):
        return None
    return x, y


def _arithmetic(name: str) -> Callable[..., Any]:
    operator = ops.mul if name == "mul" else ops.add

    def form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
        pair = _two(func, args, kwargs)
        if pair is None:
            return NotImplemented
        x, y = pair
        if name == "sub":
            y = mirrored(y)
        a, b = (x._data, y._data) if x._data.shape == y._data.shape else torch.broadcast_tensors(x._data, y._data)
        dtype = site._output_dtype
        data = operator(
            a, x._scale, x._zero_point, b, y._scale, y._zero_point, site._scale, site._zero_point, dtype.quant_min,
            dtype.quant_max, dtype.storage,
        )  # fmt: skip
        return _wrap(data, site)

    return form


def _matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    pair = _two(func, args, {("other" if k == "mat2" else k): v for k, v in kwargs.items()})
    if pair is None:
        return NotImplemented
    x, y = pair
    dtype = site._output_dtype
    data = ops.matmul(
        x._data, x._scale, x._zero_point, y._data, y._scale, y._zero_point, site._scale, site._zero_point, dtype.quant_min,
        dtype.quant_max, dtype.storage,
    )  # fmt: skip
    return _wrap(data, site)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    x, dim = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "dim")
    if not _is_8bit(x) or dim is None or kwargs.get("dtype") is not None or len(args) > 2:
        return NotImplemented
    dtype = site._output_dtype
    data = ops.softmax(
        x._data, dim, x._scale, site._scale, site._zero_point, dtype.quant_min, dtype.quant_max, dtype.storage
    )
    return _wrap(data, site)


def _layer_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    x, shape = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "normalized_shape")
    affine = [_argument(args, kwargs, i, name) for i, name in ((2, "weight"), (3, "bias"))]
    if not _is_8bit(x) or any(a is not None and type(a) not in (torch.Tensor, torch.nn.Parameter) for a in affine):
        return NotImplemented
    count = math.prod(shape)
    weight, bias = (None if a is None else a.detach().float().reshape(-1).contiguous() for a in affine)
    dtype = site._output_dtype
    data = ops.normalize(
        x._data.contiguous(), x._data.numel() // max(count, 1), weight, bias, 1, x._scale, x._zero_point,
        _argument(args, kwargs, 4, "eps", 1e-5), True, site._scale, site._zero_point, dtype.quant_min, dtype.quant_max,
        dtype.storage,
    )  # fmt: skip
    return _wrap(data, site)


def _joined(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
        tensors = args[0] if args else kwargs.get("tensors")
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        if not tensors or not all(_is_8bit(t) for t in tensors) or kwargs.get("out") is not None:
            return NotImplemented
        return _wrap(function([_to_site(t, site) for t in tensors], dim), site)

    return form


def _to_site(x: QTensor, site: Any) -> torch.Tensor:
    same = x._scale == site._scale and x._zero_point == site._zero_point and x._qdtype == site._output_dtype
    return x._data if same else requantize(x, site._scale, site._zero_point, site._output_dtype)._data


def _where(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
    values = args
    if getattr(func, "__qualname__", "").startswith("TensorBase") and len(args) == 3 and _is_8bit(args[0]):
        values = (args[1], args[0], args[2])  # x.where(condition, y)
    if len(values) != 3 or kwargs or not (_is_8bit(values[1]) and _is_8bit(values[2])):
        return NotImplemented
    return _wrap(torch.where(values[0], _to_site(values[1], site), _to_site(values[2], site)), site)


def _larger_or_smaller(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Any) -> Any:
        pair = _two(func, args, kwargs)
        if pair is None:
            return NotImplemented
        return _wrap(function(_to_site(pair[0], site), _to_site(pair[1], site)), site)

    return form


_FORMS: dict[str, Callable[..., Any]] = {
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "cat": _joined(torch.cat),
    "concat": _joined(torch.cat),
    "concatenate": _joined(torch.cat),
    "stack": _joined(torch.stack),
    "where": _where,
    "maximum": _larger_or_smaller(torch.maximum),
    "minimum": _larger_or_smaller(torch.minimum),
    "max": _larger_or_smaller(torch.maximum),
    "min": _larger_or_smaller(torch.minimum),
}


def has_integer_form(name: str) -> bool:
    """Whether calls of this canonical name run on integers, given quantized arguments."""
    return name in _FORMS or name in _POINTWISE
