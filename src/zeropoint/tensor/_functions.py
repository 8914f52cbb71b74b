"""What torch functions do with quantized tensors.

Four kinds, each a table keyed by the torch function: *movements* run on the integers and keep the qparams;
*integer forms* compute on integers and keep them too; *questions* answer about the reals (comparisons,
argmax); everything else needs a scale for its result. Where calibration recorded one for this call site
(tensor/_callsite.py) the function runs in int8 if it has such a form (tensor/_site_forms.py) and else in
float, and its result is quantized; where none is known it dequantizes. What ran in float is counted
(``zeropoint.backend.fallbacks``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses import UnsupportedFakeTensorException
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from zeropoint import backend, ops
from zeropoint._reference.quantize import f32
from zeropoint.errors import QuantizationError
from zeropoint.tensor._callsite import canonical_name, current_frame
from zeropoint.tensor._dtype import QDtype

__all__ = [
    "ATTRIBUTES",
    "averages",
    "call",
    "dispatch",
    "int_tuple",
    "integer_form",
    "keeps_qparams",
    "leaves_reals",
    "map_float_results",
]

_Tensor: Any = torch.Tensor


def _is_q(value: Any) -> bool:
    from zeropoint.tensor._qtensor import QTensor

    return isinstance(value, QTensor)


def _name(func: Any) -> str:
    return getattr(func, "__name__", None) or str(func)


def _on_reals(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    to_float = lambda value: value.dequantize() if _is_q(value) else value
    return func(*tree_map(to_float, args), **tree_map(to_float, kwargs))


def _fallback(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    backend.count_fallback(_name(func))
    return _on_reals(func, args, kwargs)


_FORMS: dict[Any, Callable[..., Any]] = {}
# Forms that keep qparams only for some arguments, or take better ones where their call site has them.
_CONDITIONS: dict[Any, Callable[..., bool]] = {}


def _never(*args: Any, **kwargs: Any) -> bool:
    return False


def integer_form(
    *functions: Any, when: Callable[..., bool] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what ``functions`` do when their first argument is quantized, keeping its qparams.

    The decorated function may return ``NotImplemented`` to fall back to float. ``when`` tells, from the
    arguments alone, whether the form applies; where it does not, the call site's qparams are asked first.
    """

    def register(form: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            _FORMS[function] = form
            if when is not None:
                _CONDITIONS[function] = when
        return form

    return register


def keeps_qparams(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the result has the qparams of the first argument, so that the call site needs none."""
    if func in _MOVEMENTS:
        return True
    if func not in _FORMS:
        return False
    condition = _CONDITIONS.get(func)
    return condition is None or condition(*args, **kwargs)


def averages(func: Any) -> bool:
    """Whether the function keeps qparams but makes values that were not on the grid before."""
    return func in _AVERAGING


def leaves_reals(func: Any) -> bool:
    """Whether the function asks about the reals and has no quantized result."""
    return func in _QUESTIONS


def map_float_results(result: Any, key: str, function: Callable[[str, torch.Tensor], Any]) -> Any:
    """``function(key, r)`` on each float tensor of a result; the second has the key ``key_1``, and so on."""
    if isinstance(result, torch.Tensor):
        return function(key, result) if result.is_floating_point() else result
    if not isinstance(result, (tuple, list)):
        return result
    mapped = [
        map_float_results(r, key if i == 0 else f"{key}_{i}", function) if isinstance(r, torch.Tensor) else r
        for i, r in enumerate(result)
    ]
    make = getattr(type(result), "_make", None)
    return make(mapped) if make is not None else type(result)(mapped)


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Entry of ``QTensor.__torch_function__``."""
    with torch._C.DisableTorchFunctionSubclass():
        if func in ATTRIBUTES:
            return func(*args, **kwargs)
        if _name(func) == "__get__" and func not in _FORMS and func not in _MOVEMENTS:
            return func(*args, **kwargs)  # any other property: of the outer tensor
        if keeps_qparams(func, args, kwargs):
            move = _MOVEMENTS.get(func)
            result = _FORMS[func](*args, **kwargs) if move is None else _move(move, args, kwargs)
            return _fallback(func, args, kwargs) if result is NotImplemented else result
        if func in _QUESTIONS:
            return _on_reals(func, args, kwargs)
        frame = current_frame()
        if frame is None or frame.traced is None:
            _break_dynamo_graph(func, args)
        if frame is not None:
            key, sites = frame.next_key(canonical_name(func)), frame.sites()
            if sites is not None and key in sites:
                return _at_call_site(func, args, kwargs, sites, key)
        form = _FORMS.get(func)
        if form is not None:
            result = form(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _fallback(func, args, kwargs)


def _break_dynamo_graph(func: Any, args: Any) -> None:
    """An error if torch.compile traces this call outside any module that ``convert`` made.

    The compiled function may be called from several places, each with a scale of its own, and would take that
    of the first. An error rather than a wrong scale.
    """
    if torch.compiler.is_exporting():
        return
    found = next((a for a in tree_leaves(args) if _is_q(a)), None)
    if found is not None and type(found._data) is not torch.Tensor:
        raise UnsupportedFakeTensorException(
            f"{_name(func)} of a quantized tensor needs the scale of its call site, and torch.compile sees no converted "
            "module around it. Compile the model or the module, or use FloatFunctional. Where the compiled model's own forward "
            "calls it, torch.compile looks past the model's hooks unless torch._dynamo.config.wrap_top_frame is True"
        )


def _in_place(name: str, kwargs: dict[str, Any]) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    if dunder:
        return name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")
    return kwargs.get("inplace") is True or name.endswith("_")


def _at_call_site(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Any, key: str) -> Any:
    from zeropoint.tensor._qtensor import QTensor
    from zeropoint.tensor._site_forms import site_form

    result = site_form(func, args, kwargs, sites[key])
    if result is NotImplemented:
        result = map_float_results(
            _fallback(func, args, kwargs),
            key,
            lambda k, value: sites[k].quantize(value) if k in sites else value,
        )
    if _in_place(_name(func), kwargs) and args and _is_q(args[0]) and isinstance(result, QTensor):
        target: Any = args[0]
        target._data, target._scale, target._zero_point = result._data, result._scale, result._zero_point
        target._qdtype, target._axis = result._qdtype, result._axis
        return target
    return result


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Entry of ``QTensor.__torch_dispatch__``: what reaches it past the torch functions (compile, autograd)."""
    move = _ATEN_MOVEMENTS.get(func)
    if move is not None:
        result = _move(move, args, kwargs)
        if result is not NotImplemented:
            return result
    return _fallback(func, args, kwargs)


# Properties of the outer tensor that need no translation.
ATTRIBUTES = {
    getattr(_Tensor, name).__get__
    for name in ("shape", "device", "layout", "requires_grad", "is_leaf", "grad_fn", "ndim", "is_cuda", "is_meta", "is_sparse", "is_mkldnn", "_version", "names", "itemsize")
    if hasattr(_Tensor, name)
} | {
    _Tensor.size, _Tensor.dim, _Tensor.numel, _Tensor.nelement, _Tensor.stride, _Tensor.is_contiguous, _Tensor.storage_offset,
    _Tensor.is_floating_point, _Tensor.__len__, _Tensor.ndimension, torch.numel, torch.is_floating_point,
}  # fmt: skip

# -- movements: the integers move, the qparams stay ----------------------------------------------------


def _new_axis(source: Any, data: torch.Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Where the channel axis of a per-channel tensor went, by moving the axis numbers themselves."""
    if source._axis is None:
        return None
    # Each element carries its channel; the axis along which the result's channels vary is the new one.
    channels = torch.arange(source._data.shape[source._axis])
    shape = [1] * source.dim()
    shape[source._axis] = -1
    marked = func(channels.reshape(shape).expand(source._data.shape).clone(), *args, **kwargs)
    for axis in range(marked.dim()):
        if marked.shape[axis] != len(channels):
            continue
        view = [1] * marked.dim()
        view[axis] = -1
        if torch.equal(marked, channels.reshape(view).expand(marked.shape)):
            return axis
    return -1


def _move(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source: Any = args[0] if args else None
    if not _is_q(source):
        return NotImplemented
    if tree_any(_is_q, (args[1:], kwargs)):
        if not _name(func).endswith("_as"):
            return NotImplemented
        args = (source, *(a._data if _is_q(a) else a for a in args[1:]))
    result = func(source._data, *args[1:], **kwargs)

    def wrap(data: Any) -> Any:
        if not isinstance(data, torch.Tensor) or data.dtype != source._data.dtype:
            return data
        axis = _new_axis(source, data, lambda t, *a, **k: _pick(func(t, *a, **k), result, data), args[1:], kwargs)
        return NotImplemented if axis == -1 else source.with_data(data, axis)

    if isinstance(result, (tuple, list)):
        wrapped = [wrap(r) for r in result]
        if any(w is NotImplemented for w in wrapped):
            return NotImplemented
        return type(result)(wrapped)
    return wrap(result)


def _pick(outputs: Any, result: Any, data: torch.Tensor) -> torch.Tensor:
    """The output that corresponds to ``data`` within ``result``."""
    if not isinstance(result, (tuple, list)):
        return outputs
    return outputs[next(i for i, r in enumerate(result) if r is data)]


_MOVEMENT_NAMES = (
    "view", "reshape", "permute", "transpose", "t", "contiguous", "clone", "detach", "squeeze", "unsqueeze", "flatten",
    "unflatten", "expand", "expand_as", "repeat", "flip", "roll", "narrow", "select", "index_select", "gather", "chunk", "split",
    "unbind", "movedim", "swapaxes", "tile", "repeat_interleave", "take_along_dim", "masked_select", "unfold", "ravel",
    "swapdims", "split_with_sizes", "tensor_split", "rot90", "diagonal", "moveaxis", "adjoint", "view_as", "reshape_as",
)  # fmt: skip

_MOVEMENTS: dict[Any, Callable[..., Any]] = {
    _Tensor.__getitem__: _Tensor.__getitem__,
    _Tensor.T.__get__: _Tensor.T.__get__,
    _Tensor.mT.__get__: _Tensor.mT.__get__,
    _Tensor.data.__get__: _Tensor.detach,
}
for _owner in (_Tensor, torch):
    for _movement in _MOVEMENT_NAMES:
        if hasattr(_owner, _movement):
            _MOVEMENTS[getattr(_owner, _movement)] = getattr(_owner, _movement)
for _module_function in (F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle):
    _MOVEMENTS[_module_function] = _module_function

_aten = torch.ops.aten
_ATEN_MOVEMENTS: dict[Any, Callable[..., Any]] = {
    op: op
    for op in (
        _aten.view.default, _aten._unsafe_view.default, _aten.permute.default, _aten.transpose.int, _aten.t.default,
        _aten.clone.default, _aten.detach.default, _aten.alias.default, _aten.squeeze.dim, _aten.squeeze.default,
        _aten.unsqueeze.default, _aten.expand.default, _aten.select.int, _aten.slice.Tensor, _aten.as_strided.default,
        _aten.split.Tensor, _aten.index_select.default,
    )
}  # fmt: skip

# -- integer forms ------------------------------------------------------------------------------------


def _per_tensor(x: Any) -> bool:
    return _is_q(x) and x._axis is None


@integer_form(_Tensor.dtype.__get__)
def _dtype(x: Any) -> Any:
    return x._qdtype


@integer_form(_Tensor.is_quantized.__get__)
def _is_quantized(x: Any) -> bool:
    return True


@integer_form(torch.dequantize, _Tensor.dequantize)
def _dequantize(x: Any) -> Any:
    return x.dequantize()


@integer_form(torch.int_repr, _Tensor.int_repr)
def _int_repr(x: Any) -> Any:
    return x.int_repr()


def _same_qparams(a: Any, b: Any) -> bool:
    if a._axis != b._axis or a._qdtype != b._qdtype:
        return False
    if a._axis is None:
        # Scales may be held as Python floats; what every formula sees is their float32.
        return f32(a._scale) == f32(b._scale) and bool(a._zero_point == b._zero_point)
    return torch.equal(a._scale, b._scale) and torch.equal(a._zero_point, b._zero_point)


@integer_form(torch.equal, _Tensor.equal)
def _equal(a: Any, b: Any) -> bool:
    """Same qparams and same integers; a quantized and a float tensor are never equal."""
    return _is_q(a) and _is_q(b) and a.shape == b.shape and _same_qparams(a, b) and torch.equal(a._data, b._data)


def _cut(x: Any, low: float | None, high: float | None) -> Any:
    """Clamp at real bounds by clamping the integers at the bounds' own quantized values."""
    if not _per_tensor(x):
        return NotImplemented
    bounds = [
        None if bound is None else _quantized_bound(bound, x._scale, x._zero_point, x._qdtype) for bound in (low, high)
    ]
    return x.with_data(torch.clamp(x._data, bounds[0], bounds[1]))


@lru_cache(maxsize=1024)
def _quantized_bound(bound: float, scale: float, zero_point: int, qdtype: Any) -> int:
    return int(ops.quantize_per_tensor(torch.tensor([float(bound)]), scale, zero_point, qdtype.storage))


@integer_form(torch.relu, F.relu, _Tensor.relu)
def _relu(x: Any, inplace: bool = False) -> Any:
    return _update(x, _cut(x, 0.0, None), inplace)


@integer_form(torch.relu_, _Tensor.relu_, F.relu_)
def _relu_(x: Any) -> Any:
    return _update(x, _cut(x, 0.0, None), True)


@integer_form(F.relu6)
def _relu6(x: Any, inplace: bool = False) -> Any:
    return _update(x, _cut(x, 0.0, 6.0), inplace)


@integer_form(F.hardtanh)
def _hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _update(x, _cut(x, min_val, max_val), inplace)


@integer_form(torch.clamp, _Tensor.clamp, torch.clip, _Tensor.clip)
def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        return NotImplemented
    return _cut(x, min, max)


def _update(x: Any, result: Any, inplace: bool) -> Any:
    if inplace and result is not NotImplemented:
        x._data.copy_(result._data)
        return x
    return result


@integer_form(torch.cat, torch.concat, torch.concatenate, when=_never)
def _cat(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    """Without a call site: with the first tensor's qparams, as torch does; the others are requantized."""
    first = tensors[0]
    if not all(_per_tensor(t) and t._qdtype == first._qdtype for t in tensors) or first._qdtype.bits != 8 or kwargs:
        return NotImplemented
    return first.with_data(torch.cat([_with_qparams_of(t, first)._data for t in tensors], dim))


@integer_form(torch.stack, when=_never)
def _stack(tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    first = tensors[0]
    if not all(_per_tensor(t) and t._qdtype == first._qdtype for t in tensors) or first._qdtype.bits != 8 or kwargs:
        return NotImplemented
    return first.with_data(torch.stack([_with_qparams_of(t, first)._data for t in tensors], dim))


def _with_qparams_of(x: Any, like: Any) -> Any:
    from zeropoint.tensor._pointwise import requantize

    return x if _same_qparams(x, like) else requantize(x, like._scale, like._zero_point, like._qdtype)


def int_tuple(value: Any, n: int) -> list[int]:
    """One number or ``n``, as ``n``: kernel sizes, strides, padding."""
    values = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return values * n if len(values) == 1 else values


def _batched(x: Any, function: Callable[[torch.Tensor], torch.Tensor], dims: int = 2) -> Any:
    """Runs a [N, C, H, W] operator on that or on [C, H, W]; with ``dims`` 1 on [N, C, L] or [C, L]."""
    data = x._data
    if data.dim() not in (dims + 1, dims + 2):
        shapes = "[N, C, H, W] or [C, H, W]" if dims == 2 else "[N, C, L] or [C, L]"
        raise QuantizationError(f"pooling needs {shapes}, got {tuple(x.shape)}")
    if data.dim() == dims + 1:
        data = data.unsqueeze(0)
    out = function(data) if dims == 2 else function(data.unsqueeze(2)).squeeze(2)
    return x.with_data(out.squeeze(0) if x._data.dim() == dims + 1 else out)


def _eight_bit(x: Any) -> bool:
    return _per_tensor(x) and x._qdtype.bits == 8


def _max_pool(dims: int) -> Callable[..., Any]:
    def form(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """Maximum of the integers: quantization is monotone."""
        if return_indices or not _eight_bit(x):
            return NotImplemented
        if dims == 3:
            return _as_float32(x, F.max_pool3d, kernel_size, stride, padding, dilation, ceil_mode)
        kernel, steps = int_tuple(kernel_size, dims), int_tuple(stride or kernel_size, dims)
        pad, gaps = int_tuple(padding, dims), int_tuple(dilation, dims)
        one, zero = [1] * (2 - dims), [0] * (2 - dims)  # a 1-d window is a 2-d one of height 1
        return _batched(
            x,
            lambda data: ops.max_pool2d(data, one + kernel, one + steps, zero + pad, one + gaps, ceil_mode),
            dims,
        )

    return form


def _as_float32(x: Any, function: Callable[..., Any], *args: Any) -> Any:
    """A function that only picks among its input's values, on the integers as exact floats."""
    return x.with_data(function(x._data.float(), *args).to(x._data.dtype))


for _dims, _functions in (
    (1, (F.max_pool1d, torch.max_pool1d)),
    (2, (F.max_pool2d, torch.max_pool2d)),
    (3, (F.max_pool3d, torch.max_pool3d)),
):
    integer_form(*_functions)(_max_pool(_dims))


def _average_pool(dims: int) -> Callable[..., Any]:
    def form(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        """Mean of the integers with x's qparams."""
        if not _eight_bit(x):
            return NotImplemented
        if dims == 3:
            value = F.avg_pool3d(
                x.dequantize(), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
            )
            return _requantized(x, value)
        kernel, steps = int_tuple(kernel_size, dims), int_tuple(stride or kernel_size, dims)
        pad, one, zero = int_tuple(padding, dims), [1] * (2 - dims), [0] * (2 - dims)
        return _batched(
            x,
            lambda data: ops.avg_pool2d(
                data,
                x._zero_point,
                one + kernel,
                one + steps,
                zero + pad,
                ceil_mode,
                count_include_pad,
                divisor_override,
            ),
            dims,
        )

    return form


for _average_dims, _average in ((1, F.avg_pool1d), (2, F.avg_pool2d), (3, F.avg_pool3d)):
    integer_form(_average)(_average_pool(_average_dims))


def _adaptive_sizes(x: Any, output_size: Any, dims: int) -> list[int]:
    sizes = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
    return [x.shape[-dims + i] if s is None else int(s) for i, s in enumerate(sizes)]


@integer_form(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    if not _eight_bit(x):
        return NotImplemented
    sizes = _adaptive_sizes(x, output_size, 2)
    return _batched(x, lambda data: ops.adaptive_avg_pool2d(data, x._zero_point, sizes))


@integer_form(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
def _adaptive_avg_pool1d(x: Any, output_size: Any) -> Any:
    if not _eight_bit(x):
        return NotImplemented
    sizes = [1, *_adaptive_sizes(x, output_size, 1)]
    return _batched(x, lambda data: ops.adaptive_avg_pool2d(data, x._zero_point, sizes), 1)


@integer_form(F.adaptive_avg_pool3d)
def _adaptive_avg_pool3d(x: Any, output_size: Any) -> Any:
    if not _eight_bit(x):
        return NotImplemented
    return _requantized(x, F.adaptive_avg_pool3d(x.dequantize(), output_size))


def _picking(function: Any) -> Callable[..., Any]:
    def form(x: Any, *args: Any, **kwargs: Any) -> Any:
        """Picks values of its input; also their indices, if asked."""
        if not _per_tensor(x):
            return NotImplemented
        result = function(x._data.float(), *args, **kwargs)
        if isinstance(result, torch.Tensor):
            return x.with_data(result.to(x._data.dtype))
        return x.with_data(result[0].to(x._data.dtype)), result[1]

    return form


for _picker in (
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
    torch.adaptive_max_pool1d,
    F.max_unpool2d,
):
    integer_form(_picker)(_picking(_picker))


def _is_average_pool(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **kwargs: Any) -> bool:
    return x.dim() == 4 and isinstance(dim, (tuple, list)) and sorted(d % 4 for d in dim) == [2, 3] and dtype is None


@integer_form(torch.mean, _Tensor.mean, when=_is_average_pool)
def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **kwargs: Any) -> Any:
    """Over H and W of [N, C, H, W]: an average pool, with x's qparams as torch has it."""
    if not _per_tensor(x) or not _is_average_pool(x, dim, keepdim, dtype=dtype) or x._qdtype.bits != 8:
        return NotImplemented
    data = ops.adaptive_avg_pool2d(x._data, x._zero_point, [1, 1])
    return x.with_data(data if keepdim else data.flatten(1))


@integer_form(F.dropout, torch.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(x: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    return NotImplemented if training else x


def _fixed_grid(function: Any, scale: float, unsigned: int, signed: int) -> Callable[..., Any]:
    """Functions with a bounded range have torch's fixed qparams where no call site is known."""

    def form(x: Any, *args: Any, **kwargs: Any) -> Any:
        from zeropoint.tensor._pointwise import pointwise

        if not _eight_bit(x) or args:
            return NotImplemented
        return pointwise(x, function, scale, signed if x._qdtype.signed else unsigned)

    return form


for _bounded in (torch.sigmoid, _Tensor.sigmoid, F.sigmoid):
    integer_form(_bounded, when=_never)(_fixed_grid(torch.sigmoid, 1.0 / 256.0, 0, -128))
for _bounded in (torch.tanh, _Tensor.tanh, F.tanh):
    integer_form(_bounded, when=_never)(_fixed_grid(torch.tanh, 2.0 / 256.0, 128, 0))
integer_form(F.hardsigmoid, when=_never)(_fixed_grid(F.hardsigmoid, 1.0 / 256.0, 0, -128))


def _on_own_grid(function: Any) -> Callable[..., Any]:
    """As torch: with the input's qparams where no call site is known."""

    def form(x: Any, *args: Any, **kwargs: Any) -> Any:
        from zeropoint.tensor._pointwise import pointwise

        if not _eight_bit(x) or tree_any(lambda v: isinstance(v, torch.Tensor), (args, kwargs)):
            return NotImplemented
        options = {k: v for k, v in kwargs.items() if k != "inplace"}
        result = pointwise(x, lambda v: function(v, *args, **options), x._scale, x._zero_point, cache=False)
        return _update(x, result, kwargs.get("inplace") is True)

    return form


for _own_grid in (F.leaky_relu, F.gelu, F.elu):
    integer_form(_own_grid, when=_never)(_on_own_grid(_own_grid))
for _threshold in (F.threshold, getattr(F, "threshold_"), torch.threshold, getattr(torch, "threshold_")):  # noqa: B009
    integer_form(_threshold)(_on_own_grid(_threshold))


@integer_form(F.interpolate)
def _interpolate(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None, **kwargs: Any
) -> Any:
    """Nearest picks integers and bilinear mixes them; other modes interpolate reals and are quantized back."""
    if not _per_tensor(x):
        return NotImplemented
    if mode in ("nearest", "nearest-exact"):
        moved = F.interpolate(x._data.float(), size, scale_factor, mode, align_corners, **kwargs)
        return x.with_data(moved.to(x._data.dtype))
    if mode == "bilinear" and x.dim() == 4 and _eight_bit(x) and not kwargs.get("antialias"):
        given = not isinstance(scale_factor, (int, float, type(None)))
        factors = [float(f) for f in (scale_factor if given else (scale_factor or 0.0,) * 2)]
        if kwargs.get("recompute_scale_factor"):
            size, factors = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)], [0.0, 0.0]
        sizes = [] if size is None else [size, size] if isinstance(size, int) else list(size)
        return x.with_data(ops.interpolate_bilinear2d(x._data, sizes, bool(align_corners), *factors))
    return _requantized(x, F.interpolate(x.dequantize(), size, scale_factor, mode, align_corners, **kwargs))


def _requantized(x: Any, value: torch.Tensor) -> Any:
    return x.with_data(ops.quantize_per_tensor(value, x._scale, x._zero_point, x._qdtype.storage))


@integer_form(F.pad)
def _pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """Constant padding is the quantized constant; the other modes copy integers."""
    if not _per_tensor(x):
        return NotImplemented
    if mode == "constant":
        fill = ops.quantize_per_tensor(torch.tensor([float(value or 0.0)]), x._scale, x._zero_point, x._qdtype.storage)
        return x.with_data(F.pad(x._data, pad, "constant", int(fill)))
    return x.with_data(F.pad(x._data.float(), pad, mode).to(x._data.dtype))


def _sorted_like(function: Callable[..., Any]) -> Callable[..., Any]:
    """sort and topk order integers as they order reals."""

    def form(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not _per_tensor(x):
            return NotImplemented
        values, indices = function(x._data, *args, **kwargs)
        return type(function(torch.zeros(x._data.shape), *args, **kwargs))((x.with_data(values), indices))

    return form


for _ordering in (torch.sort, torch.topk):
    integer_form(_ordering, getattr(_Tensor, _ordering.__name__))(_sorted_like(_ordering))


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """Extremes of the integers are those of the reals."""

    def form(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not _per_tensor(x) or any(isinstance(a, torch.Tensor) for a in args):
            return NotImplemented
        result = function(x._data, *args, **kwargs)
        if isinstance(result, torch.Tensor):
            return x.with_data(result)
        return type(result)((x.with_data(result[0]), result[1]))

    return form


def _one_tensor(x: Any, *args: Any, **kwargs: Any) -> bool:
    return not any(isinstance(a, torch.Tensor) for a in (*args, kwargs.get("other")))


for _name_of_extreme in ("max", "min", "amax", "amin"):
    for _extreme_owner in (torch, _Tensor):
        _extreme_function = getattr(_extreme_owner, _name_of_extreme)
        integer_form(_extreme_function, when=_one_tensor)(_extreme(_extreme_function))


@integer_form(torch.masked_fill, _Tensor.masked_fill)
def _masked_fill(x: Any, mask: torch.Tensor, value: Any) -> Any:
    """The value is quantized with x's qparams, and saturates at their range."""
    if not _per_tensor(x):
        return NotImplemented
    return x.with_data(
        torch.masked_fill(x._data, mask, _quantized_bound(float(value), x._scale, x._zero_point, x._qdtype))
    )


_AVERAGING: set[Any] = {
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, torch.mean, _Tensor.mean, F.interpolate, F.threshold, torch.threshold, F.pad, torch.masked_fill,
    _Tensor.masked_fill, torch.clamp, _Tensor.clamp, torch.clip, _Tensor.clip, F.hardtanh, F.relu6,
}  # fmt: skip

# Answers about the reals, exact without a scale of their own; never counted as fallbacks.
_QUESTIONS: set[Any] = {
    getattr(owner, name)
    for owner in (torch, _Tensor)
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "greater", "greater_equal", "less", "less_equal", "not_equal", "__eq__", "__ne__",
        "__lt__", "__le__", "__gt__", "__ge__", "argmax", "argmin", "argsort", "isnan", "isinf", "isfinite", "allclose", "isclose",
        "float", "half", "double", "bfloat16", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero", "any",
        "all", "count_nonzero", "signbit", "__array__", "__contains__", "is_nonzero",
    )
    if hasattr(owner, name)
}  # fmt: skip


@integer_form(_Tensor.copy_)
def _copy_(x: Any, source: Any, non_blocking: bool = False) -> Any:
    """Into a quantized tensor: a float source is quantized with x's qparams, a quantized one brings its own."""
    if not _is_q(x):
        x.copy_(source.dequantize())
        return x
    if _is_q(source):
        if source._qdtype != x._qdtype:
            raise QuantizationError(
                f"copy_: cannot copy {source._qdtype!r} into {x._qdtype!r}; quantize to the same dtype"
            )
        x._data.copy_(source._data)
        x._scale, x._zero_point, x._axis = source._scale, source._zero_point, source._axis
        return x
    if x._axis is not None:
        raise QuantizationError("copy_: into a per-channel quantized tensor only a quantized tensor can be copied")
    x._data.copy_(
        ops.quantize_per_tensor(source.detach().float().expand(x.shape), x._scale, x._zero_point, x._qdtype.storage)
    )
    return x


@integer_form(_Tensor.__setitem__)
def _setitem(x: Any, index: Any, value: Any) -> None:
    if not _per_tensor(x):
        raise QuantizationError("assignment by index needs a tensor quantized per tensor")
    if _is_q(value):
        value = _with_qparams_of(value, x)._data
    else:
        value = ops.quantize_per_tensor(
            torch.as_tensor(value).detach().float(), x._scale, x._zero_point, x._qdtype.storage
        )
    x._data[index] = value


@integer_form(_Tensor.fill_)
def _fill_(x: Any, value: Any) -> Any:
    _setitem(x, ..., value)
    return x


def _only_moves(x: Any, *args: Any, **kwargs: Any) -> bool:
    names_dtype = any(isinstance(a, (torch.dtype, torch.Tensor)) for a in (*args, *kwargs.values()))
    return not names_dtype


@integer_form(_Tensor.to, _Tensor.cpu, _Tensor.cuda, when=_only_moves)
def _to(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Moves the integers to a device or layout. A float dtype dequantizes, the tensor's own dtype changes nothing."""
    if not _only_moves(x, *args, **kwargs):
        return NotImplemented
    asked = next((a for a in (*args, *kwargs.values()) if isinstance(a, QDtype)), x._qdtype)
    if asked is not x._qdtype:
        raise QuantizationError(
            f"Tensor.to: {asked} has other integers than {x._qdtype}; dequantize, and quantize with a scale for them"
        )
    args, kwargs = (
        tuple(a for a in args if not isinstance(a, QDtype)),
        {k: v for k, v in kwargs.items() if not isinstance(v, QDtype)},
    )
    probe = torch.empty(0).to(*args, **kwargs) if args or kwargs else torch.empty(0)
    moved = x._data.to(probe.device, memory_format=kwargs.get("memory_format") or torch.preserve_format)
    if x._axis is None:
        return x.with_data(moved)
    result = x.with_data(moved)
    result._scale, result._zero_point = x._scale.to(probe.device), x._zero_point.to(probe.device)
    return result


@integer_form(_Tensor.data_ptr)
def _data_ptr(x: Any) -> int:
    return x._data.data_ptr()


@integer_form(_Tensor.element_size)
def _element_size(x: Any) -> int:
    return x._data.element_size()


@integer_form(_Tensor.requires_grad_)
def _requires_grad_(x: Any, requires_grad: bool = True) -> Any:
    if requires_grad:
        raise QuantizationError(
            "a quantized tensor cannot require gradients; train with fake quantization (prepare_qat)"
        )
    return x


# Asked of every tensor by whoever prints it; not an operation that fell back.
@integer_form(_Tensor.__repr__, _Tensor.__format__, _Tensor.__str__)
def _text(x: Any, *args: Any, **kwargs: Any) -> str:
    return repr(x)


@integer_form(_Tensor.__deepcopy__)
def _deepcopy(x: Any, memo: dict[int, Any]) -> Any:
    return type(x).__deepcopy__(x, memo)
