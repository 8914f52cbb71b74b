"""Models of bfloat16 or half: programs compute them in float32, and take and give what they take and give."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zeropoint.graph.capture import CaptureError, in_eval_mode

__all__ = ["in_float32"]

_LOW = (torch.bfloat16, torch.float16)


def _to_float32(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in _LOW else x


def in_float32(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """``model``; where it has weights of bfloat16 or half, a copy of it that computes in float32.

    The copy takes the same arguments and gives results of the same dtypes, which a run of ``model`` shows.

    Raises:
        CaptureError: the model or its copy does not run.
    """
    if not any(p.dtype in _LOW for p in model.parameters()):
        return model
    try:
        with torch.no_grad(), in_eval_mode(model):
            dtypes = [getattr(leaf, "dtype", None) for leaf in tree_flatten(model(*args, **kwargs))[0]]
            widened = _widened(model, dtypes)
            widened(*args, **kwargs)  # a cast in the model leaves operands of two dtypes, which export does not see
    except Exception as error:  # as whatever stops export
        raise CaptureError(f"capture: {type(error).__name__}: {str(error).strip()}") from error
    return widened


def _widened(model: nn.Module, dtypes: list[Any]) -> nn.Module:
    """A copy in float32 whose results are narrowed to ``dtypes``."""
    widened: Any = copy.deepcopy(model).float()
    computed = widened.forward

    @functools.wraps(computed)
    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten(computed(*tree_map(_to_float32, args), **tree_map(_to_float32, kwargs)))
        narrowed = [
            leaf.to(dtype) if dtype in _LOW and leaf.is_floating_point() else leaf
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        ]
        return tree_unflatten(narrowed, spec)

    widened.forward = forward
    assert isinstance(widened, nn.Module)
    return widened
