"""Functions on quantized tensors (``torch.nn.quantized.functional`` by name)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.ops.convolution import Convolution
from zeropoint.tensor import QTensor, as_qdtype, check_scale, check_zero_point, pointwise, qint8, quint8
from zeropoint.tensor._functions import int_tuple

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "add",
    "add_relu",
    "avg_pool2d",
    "avg_pool3d",
    "celu",
    "clamp",
    "conv1d",
    "conv2d",
    "conv3d",
    "elu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "interpolate",
    "leaky_relu",
    "linear",
    "max_pool1d",
    "max_pool2d",
    "mul",
    "relu",
    "relu6",
    "threshold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]


def _quantized(function: str, x: Any) -> QTensor:
    if not isinstance(x, QTensor) or x._axis is not None or x._qdtype.bits != 8:
        raise QuantizationError(
            f"Input to 'quantized.{function}' must be quantized! An 8-bit tensor quantized per tensor is needed, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    return x


def _weight(function: str, w: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    if not isinstance(w, QTensor) or w._qdtype != qint8 or w._axis not in (None, 0):
        raise QuantizationError(
            f"{function}: the weight must be qint8, quantized per tensor or per channel of axis 0, got {getattr(w, 'dtype', type(w).__name__)}"
        )
    if w._axis is None:
        scale, zero_point = torch.tensor([w._scale], dtype=torch.float32), torch.tensor([w._zero_point])
    else:
        scale, zero_point = w._scale, w._zero_point.to(torch.int64)
    return w._data.contiguous(), scale, zero_point if bool((zero_point != 0).any()) else None


def _bias(function: str, bias: torch.Tensor | None) -> torch.Tensor | None:
    if bias is None:
        return None
    if isinstance(bias, QTensor):
        return bias.dequantize()
    if not bias.is_floating_point():
        raise QuantizationError(f"{function}: the bias must be float, got {bias.dtype}")
    return bias.detach().float().contiguous()


def linear(
    input: QTensor,
    weight: QTensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    zero_point: int | None = None,
) -> QTensor:
    """``input @ weight.T + bias``; scale and zero point default to the input's. Packs the weight on each call."""
    x = _quantized("linear", input)
    w, w_scale, w_zero_point = _weight("linear", weight)
    scale = check_scale("linear", x._scale if scale is None else scale)
    zero_point = check_zero_point("linear", x._zero_point if zero_point is None else zero_point, quint8)
    data = ops.linear(
        x._data,
        w,
        ops.linear_pack(w, w_zero_point),
        w_scale,
        w_zero_point,
        _bias("linear", bias),
        x._scale,
        x._zero_point,
        scale,
        zero_point,
        0,
        255,
        torch.uint8,
    )
    return QTensor(data, scale, zero_point, quint8)


def _conv(dims: int, shape: str) -> Any:
    name = f"conv{dims}d"

    def conv(
        input: QTensor,
        weight: QTensor,
        bias: torch.Tensor | None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        scale: float = 1.0,
        zero_point: int = 0,
        dtype: Any = quint8,
    ) -> QTensor:
        x = _quantized(name, input)
        if padding_mode != "zeros":
            raise NotImplementedError("Only zero-padding is supported!")
        if x.dim() != dims + 2:
            raise ValueError(f"Input shape must be `{shape}`!")
        out = as_qdtype(dtype)
        if out not in (quint8, qint8):
            raise QuantizationError(f"{name}: dtype must be quint8 or qint8, got {out!r}")
        w, w_scale, w_zero_point = _weight(name, weight)
        scale, zero_point = check_scale(name, scale), check_zero_point(name, zero_point, out)
        steps, pad, gaps = (tuple(int_tuple(v, dims)) for v in (stride, padding, dilation))
        convolution = Convolution(steps, pad, gaps, groups)
        kernel = convolution.kernel_weight(w)
        data = convolution(
            x._data, kernel, convolution.pack(kernel, w_zero_point), w_scale, w_zero_point, _bias(name, bias),
            tuple(w.shape[2:]), x._scale, x._zero_point, scale, zero_point, out.quant_min, out.quant_max, out.storage,
        )  # fmt: skip
        return QTensor(data, scale, zero_point, out)

    conv.__name__ = conv.__qualname__ = name
    conv.__doc__ = f"{dims}-d convolution to ``scale`` and ``zero_point``. Packs the weight on each call."
    return conv


conv1d = _conv(1, "(N, C, L)")
conv2d = _conv(2, "(N, C, H, W)")
conv3d = _conv(3, "(N, C, D, H, W)")


def _binary(function: str, a: Any, b: Any, scale: Any, zero_point: Any, relu: bool = False) -> QTensor:
    a, b = _quantized(function, a), _quantized(function, b)
    scale, zero_point = check_scale(function, scale), check_zero_point(function, zero_point, a._qdtype)
    left, right = torch.broadcast_tensors(a._data, b._data)
    dtype = a._qdtype
    operator = ops.mul if function == "mul" else ops.add
    data = operator(
        left,
        a._scale,
        a._zero_point,
        right,
        b._scale,
        b._zero_point,
        scale,
        zero_point,
        zero_point if relu else dtype.quant_min,
        dtype.quant_max,
        dtype.storage,
    )
    return QTensor(data, scale, zero_point, dtype)


def add(a: QTensor, b: QTensor, scale: float, zero_point: int) -> QTensor:
    """``a + b`` with broadcasting, to ``scale`` and ``zero_point``."""
    return _binary("add", a, b, scale, zero_point)


def add_relu(a: QTensor, b: QTensor, scale: float, zero_point: int) -> QTensor:
    """``relu(a + b)``."""
    return _binary("add", a, b, scale, zero_point, relu=True)


def mul(a: QTensor, b: QTensor, scale: float, zero_point: int) -> QTensor:
    """``a * b`` with broadcasting."""
    return _binary("mul", a, b, scale, zero_point)


def relu(input: QTensor, inplace: bool = False) -> torch.Tensor:
    return F.relu(_quantized("relu", input), inplace)


def relu6(input: QTensor, inplace: bool = False) -> torch.Tensor:
    return F.relu6(_quantized("relu6", input), inplace)


def max_pool2d(
    input: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor:
    """Keeps the input's qparams. ``return_indices`` is not supported."""
    if return_indices:
        raise NotImplementedError("return_indices is not yet implemented!")
    return F.max_pool2d(_quantized("max_pool2d", input), kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Keeps the input's qparams."""
    return F.avg_pool2d(
        _quantized("avg_pool2d", input), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def max_pool1d(
    input: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor:
    """Keeps the input's qparams. ``return_indices`` is not supported."""
    if return_indices:
        raise NotImplementedError("return_indices is not yet implemented!")
    return F.max_pool1d(_quantized("max_pool1d", input), kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool3d(
    input: QTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Keeps the input's qparams."""
    return F.avg_pool3d(
        _quantized("avg_pool3d", input), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool3d(input: QTensor, output_size: Any) -> torch.Tensor:
    """Keeps the input's qparams."""
    return F.adaptive_avg_pool3d(_quantized("adaptive_avg_pool3d", input), output_size)


def hardsigmoid(input: QTensor, inplace: bool = False) -> QTensor:
    """``relu6(x + 3) / 6`` with torch's fixed output: scale 1/256 over all of the dtype."""
    x = _quantized("hardsigmoid", input)
    return _table("hardsigmoid", x, "hardsigmoid", 1.0 / 256.0, x._qdtype.quant_min)


def adaptive_avg_pool2d(input: QTensor, output_size: Any) -> torch.Tensor:
    """Keeps the input's qparams."""
    return F.adaptive_avg_pool2d(_quantized("adaptive_avg_pool2d", input), output_size)


def clamp(input: QTensor, min_: float, max_: float) -> torch.Tensor:
    return torch.clamp(_quantized("clamp", input), min_, max_)


def hardtanh(input: QTensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> torch.Tensor:
    return F.hardtanh(_quantized("hardtanh", input), min_val, max_val, inplace)


def interpolate(
    input: QTensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> torch.Tensor:
    """nearest on the integers, other modes on the reals and quantized back."""
    return F.interpolate(_quantized("interpolate", input), size, scale_factor, mode, align_corners)


def upsample(
    input: QTensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> torch.Tensor:
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_bilinear(input: QTensor, size: Any = None, scale_factor: Any = None) -> torch.Tensor:
    return upsample(input, size, scale_factor, mode="bilinear", align_corners=True)


def upsample_nearest(input: QTensor, size: Any = None, scale_factor: Any = None) -> torch.Tensor:
    return upsample(input, size, scale_factor, mode="nearest")


@lru_cache(maxsize=256)
def _parametrised(name: str, *parameters: float) -> Any:
    """One function object per set of parameters, so that its table is cached."""
    function = getattr(F, name)
    return lambda x: function(x, *parameters)


def _table(function: str, x: Any, name: str, scale: Any, zero_point: Any, *parameters: float) -> QTensor:
    x = _quantized(function, x)
    return pointwise(
        x,
        _parametrised(name, *parameters),
        check_scale(function, scale),
        check_zero_point(function, zero_point, x._qdtype),
    )


def hardswish(input: QTensor, scale: float, zero_point: int) -> QTensor:
    return _table("hardswish", input, "hardswish", scale, zero_point)


def elu(input: QTensor, scale: float, zero_point: int, alpha: float = 1.0) -> QTensor:
    return _table("elu", input, "elu", scale, zero_point, alpha)


def celu(input: QTensor, scale: float, zero_point: int, alpha: float = 1.0) -> QTensor:
    return _table("celu", input, "celu", scale, zero_point, alpha)


def leaky_relu(
    input: QTensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
    scale: float | None = None,
    zero_point: int | None = None,
) -> QTensor:
    """Scale and zero point default to the input's."""
    x = _quantized("leaky_relu", input)
    out_scale = x._scale if scale is None else scale
    out_zero_point = x._zero_point if zero_point is None else zero_point
    result = _table("leaky_relu", x, "leaky_relu", out_scale, out_zero_point, negative_slope)
    if inplace:
        return x.copy_(result)  # type: ignore[return-value]
    return result


def threshold(input: QTensor, threshold: float, value: float) -> QTensor:
    """Keeps the input's qparams."""
    x = _quantized("threshold", input)
    return _table("threshold", x, "threshold", x._scale, x._zero_point, threshold, value)
