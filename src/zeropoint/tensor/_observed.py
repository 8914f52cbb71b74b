"""The float tensor of a prepared model, where the converted model will have a quantized one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from zeropoint.tensor import _functions
from zeropoint.tensor._callsite import canonical_name, current_frame

__all__ = ["ObservedTensor", "mark", "unmark"]


class ObservedTensor(torch.Tensor):
    """A plain float tensor that knows it comes out of an observer.

    Torch functions on it are those that will meet a quantized tensor after ``convert``: the ones that need
    a scale for their result are shown to an observer of their call site (``Frame.record``);
    outside any module that records, results are ordinary tensors again, as they will be then.
    """

    plain: torch.Tensor  # what it marks
    observer: Any  # the observer or fake quantize whose grid it will be on

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # On the tensors themselves, not on their marked aliases: what changes them in place keeps its history.
        plain_args, plain_kwargs = unmark(args), unmark(kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*plain_args, **plain_kwargs)
        if func in _functions.ATTRIBUTES:
            return result
        if _functions.keeps_qparams(func, args, kwargs):
            observer = _observer_of(args)
            round_to_grid = getattr(observer, "round_to_grid", None)
            if round_to_grid is not None and _functions.averages(func):
                result = round_to_grid(result)  # as it will be after convert: training sees it
            return mark(result, observer)
        if _functions.leaves_reals(func):
            return unmark(result)
        frame = current_frame()
        if frame is None:
            return unmark(result)
        key, record = frame.next_key(canonical_name(func)), frame.record
        if record is None:
            return unmark(result)
        return _functions.map_float_results(
            result, key, lambda k, value: mark(*record(frame.module, k, _unmark(value)))
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return mark(copy.deepcopy(_unmark(self), memo), self.__dict__.get("observer"))


def mark(value: Any, observer: Any = None) -> Any:
    """``value`` with its float tensors as :class:`ObservedTensor`, autograd history kept."""
    if torch.compiler.is_compiling():
        return value
    return tree_map_only(torch.Tensor, lambda x: _mark(x, observer), value)


def _mark(x: torch.Tensor, observer: Any) -> torch.Tensor:
    if type(x) is not torch.Tensor or not x.is_floating_point():
        return x
    marked = x.as_subclass(ObservedTensor)
    marked.plain, marked.observer = x, observer
    return marked


def _observer_of(args: Any) -> Any:
    first = next((a for a in tree_leaves(args) if isinstance(a, ObservedTensor)), None)
    return None if first is None else first.__dict__.get("observer")


def unmark(value: Any) -> Any:
    """``value`` with ordinary tensors in place of :class:`ObservedTensor`."""
    if isinstance(value, torch.Tensor):
        return _unmark(value)
    if isinstance(value, (int, float, bool, str, type(None), torch.Size)):
        return value
    return tree_map_only(ObservedTensor, _unmark, value)


def _unmark(x: torch.Tensor) -> torch.Tensor:
    if not isinstance(x, ObservedTensor):
        return x
    plain = x.__dict__.get("plain")
    if plain is not None:
        return plain
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor)
