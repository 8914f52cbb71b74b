"""Pointwise functions of 8-bit tensors as 256-entry tables: exact, and equally fast for every function."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.tensor._dtype import QDtype
from zeropoint.tensor._qtensor import QTensor

__all__ = ["make_table", "pointwise", "requantize", "traced"]

Function = Callable[[torch.Tensor], torch.Tensor]


def make_table(
    function: Function,
    scale: float,
    zero_point: int,
    dtype: QDtype,
    out_scale: float,
    out_zero_point: int,
    out_dtype: QDtype,
) -> torch.Tensor:
    """``table[byte of q] = clamp(round_half_even(f(scale * (q - zero_point)) / out_scale) + out_zero_point)``.

    Everything in float64 from the float32 scales; NaN becomes ``out_zero_point``.
    """
    byte = torch.arange(256, dtype=torch.uint8)
    q = byte.view(torch.int8) if dtype.signed else byte
    s, out = (torch.tensor(v, dtype=torch.float32).double() for v in (scale, out_scale))
    value = function((q.double() - zero_point) * s) / out
    value = torch.where(torch.isnan(value), 0.0, value)
    return torch.clamp(torch.round(value) + out_zero_point, out_dtype.quant_min, out_dtype.quant_max).to(
        out_dtype.storage
    )


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


_cached_table = lru_cache(maxsize=4096)(make_table)


def traced(x: torch.Tensor) -> bool:
    """Whether ``x`` stands for a tensor in torch.compile or torch.export: no table may be kept or taken from a cache."""
    return type(x) is not torch.Tensor


def pointwise(
    x: QTensor, function: Function, scale: float, zero_point: int, dtype: QDtype | None = None, cache: bool = True
) -> QTensor:
    """``function`` (float64 to float64, elementwise) of ``x``, quantized to the given qparams.

    Raises:
        QuantizationError: ``x`` is not 8 bit per tensor.
    """
    if x._axis is not None or x._qdtype.bits != 8:
        raise QuantizationError(
            f"a table needs a tensor of 8 bits quantized per tensor, got {x._qdtype!r} {x.qscheme()!r}"
        )
    out = dtype or x._qdtype
    table = (_cached_table if cache and not traced(x._data) else make_table)(
        function, x._scale, x._zero_point, x._qdtype, scale, zero_point, out
    )
    return QTensor(ops.lookup(x._data, table), scale, zero_point, out)


def requantize(x: QTensor, scale: float, zero_point: int, dtype: QDtype | None = None) -> QTensor:
    """The same reals with other qparams."""
    return pointwise(x, _identity, scale, zero_point, dtype)
