"""What runs your model: instruction set, threads, and what fell back to float.

>>> import zeropoint as zp
>>> zp.backend.isa() in zp.backend.available_isas()
True
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zeropoint import _native
from zeropoint.errors import QuantizationError

__all__ = [
    "available_isas",
    "bad_values",
    "check_values",
    "count_fallback",
    "fallbacks",
    "isa",
    "layout_id",
    "native",
    "note_values",
    "reset_bad_values",
    "reset_fallbacks",
    "strict",
    "threads",
    "use_isa",
]

_REFERENCE = "reference"
_fallbacks: Counter[str] = Counter()
_bad_values: Counter[str] = Counter()
_strict = False
_checking = False
_layout = 0


def _names() -> list[str]:
    return [torch.ops.zeropoint.isa_name(i) for i in range(torch.ops.zeropoint.isa_count())]


def native() -> bool:
    """Whether the native kernels are loaded; otherwise everything runs on the PyTorch reference."""
    return _native.loaded()


def isa() -> str:
    """The instruction set in use: ``scalar``, ``avx2``, ``avxvnni``, ``avx512vnni``, ``amx`` (by
    name only: ``use_isa``, ``ZEROPOINT_ISA``), ``neon_dotprod``, ``neon_i8mm``, or ``reference`` without kernels."""
    return _names()[torch.ops.zeropoint.isa_current()] if native() else _REFERENCE


def available_isas() -> list[str]:
    """The instruction sets this CPU can run, slowest first."""
    if not native():
        return [_REFERENCE]
    return [name for i, name in enumerate(_names()) if torch.ops.zeropoint.isa_available(i)]


def threads() -> int:
    """Threads the kernels use: torch's (``torch.set_num_threads``)."""
    return torch.get_num_threads()


def layout_id() -> int:
    """Changes whenever packed weights have to be packed again (another instruction set)."""
    return _layout


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs the block on another instruction set, for tests and measurements. Process-wide.

    Raises:
        QuantizationError: the name is unknown or this CPU cannot run it.
    """
    if name not in available_isas():
        raise QuantizationError(f"use_isa: {name!r} is not available here; available: {', '.join(available_isas())}")
    if not native():
        yield
        return
    before = torch.ops.zeropoint.isa_current()
    _select(_names().index(name))
    try:
        yield
    finally:
        _select(before)


def _select(index: int) -> None:
    global _layout
    if index != torch.ops.zeropoint.isa_current():
        torch.ops.zeropoint.isa_select(index)
        _layout += 1


def count_fallback(operation: str) -> None:
    """Records that ``operation`` had no integer form and ran in float; raises inside ``strict()``."""
    if _strict:
        raise QuantizationError(
            f"{operation} has no integer form and strict mode is on; dequantize() its inputs, use a module or "
            "zeropoint.nn.quantized.functional, or leave strict mode"
        )
    _fallbacks[operation] += 1


def fallbacks() -> dict[str, int]:
    """How often each operation met a quantized tensor without an integer form and ran in float."""
    return dict(_fallbacks)


def reset_fallbacks() -> None:
    _fallbacks.clear()


@contextmanager
def strict() -> Iterator[None]:
    """Inside the block a fallback to float raises instead of being counted."""
    global _strict
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


@contextmanager
def check_values() -> Iterator[None]:
    """Inside the block every quantization counts the NaN and infinite values it meets (``bad_values()``).

    Off by default: it costs a pass over the input.
    """
    global _checking
    before, _checking = _checking, True
    try:
        yield
    finally:
        _checking = before


def note_values(x: torch.Tensor) -> None:
    """Counts the NaN and infinities of a float tensor that is about to be quantized, if checks are on."""
    if _checking:
        _bad_values["nan"] += int(torch.isnan(x).sum())
        _bad_values["inf"] += int(torch.isinf(x).sum())


def bad_values() -> dict[str, int]:
    """NaN and infinite values met inside :func:`check_values`; NaN became real 0, infinities saturated."""
    return {kind: _bad_values[kind] for kind in ("nan", "inf")}


def reset_bad_values() -> None:
    _bad_values.clear()


def check_environment() -> None:
    """Called at import: an unknown ``ZEROPOINT_ISA`` is an error, not silently ignored."""
    cap = os.environ.get("ZEROPOINT_ISA")
    if cap and native() and cap not in _names():
        raise QuantizationError(f"ZEROPOINT_ISA={cap!r} is not an instruction set; use one of {', '.join(_names())}")
