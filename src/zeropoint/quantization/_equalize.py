"""Cross-layer equalization: moves range between consecutive layers so that both quantize well.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.
Names of ``torch.ao.quantization._equalize``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError

__all__ = [
    "channel_range",
    "converged",
    "cross_layer_equalization",
    "equalize",
    "expand_groups_in_paired_modules_list",
    "get_module_bias",
    "get_module_weight",
    "get_name_by_module",
    "has_bias",
    "max_over_ndim",
    "min_over_ndim",
    "process_paired_modules_list_to_name",
    "set_module_bias",
    "set_module_weight",
]

_SUPPORTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _inner(module: Any) -> Any:
    """The layer with the weight: the module, or the first of a fused one."""
    return module[0] if isinstance(module, nn.Sequential) else module


def get_module_weight(module: nn.Module) -> torch.Tensor:
    return _inner(module).weight


def get_module_bias(module: nn.Module) -> torch.Tensor | None:
    return _inner(module).bias


def set_module_weight(module: nn.Module, weight: torch.Tensor) -> None:
    _inner(module).weight = nn.Parameter(weight)


def set_module_bias(module: nn.Module, bias: torch.Tensor) -> None:
    _inner(module).bias = nn.Parameter(bias)


def has_bias(module: nn.Module) -> bool:
    return get_module_bias(module) is not None


def max_over_ndim(input: torch.Tensor, axis_list: Any, keepdim: bool = False) -> torch.Tensor:
    """Maximum over several dimensions."""
    return torch.amax(input, dim=list(axis_list), keepdim=keepdim)


def min_over_ndim(input: torch.Tensor, axis_list: Any, keepdim: bool = False) -> torch.Tensor:
    """Minimum over several dimensions."""
    return torch.amin(input, dim=list(axis_list), keepdim=keepdim)


def channel_range(input: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Maximum less minimum of each index of ``axis``."""
    others = [i for i in range(input.dim()) if i != axis]
    return max_over_ndim(input, others) - min_over_ndim(input, others)


def cross_layer_equalization(module1: nn.Module, module2: nn.Module, output_axis: int = 0, input_axis: int = 1) -> None:
    """Scales output channel i of ``module1`` by ``1 / s`` and input channel i of ``module2`` by ``s``, in place.

    ``s = sqrt(r1 / r2)`` makes the ranges equal; the function of both stays the same wherever what lies
    between them is positively homogeneous (nothing, ReLU). A channel without range is left alone.

    Raises:
        QuantizationError: other module types, or channel counts that do not meet.
    """
    if not all(isinstance(_inner(m), _SUPPORTED) for m in (module1, module2)):
        raise QuantizationError(
            f"module type not supported: {type(module1).__name__} and {type(module2).__name__}; convolutions and Linear are"
        )
    weight1, weight2, bias = (
        get_module_weight(module1).detach(),
        get_module_weight(module2).detach(),
        get_module_bias(module1),
    )
    if weight1.size(output_axis) != weight2.size(input_axis):
        raise QuantizationError(
            f"Number of output channels of first arg ({weight1.size(output_axis)}) do not match number input channels of second "
            f"arg ({weight2.size(input_axis)})"
        )
    range1, range2 = channel_range(weight1, output_axis), channel_range(weight2, input_axis)
    scale = torch.sqrt(range1 / (range2 + 1e-9))
    scale = torch.where((range1 > 0) & (range2 > 0), scale, torch.ones_like(scale))
    along = lambda values, weight, axis: values.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    set_module_weight(module1, weight1 / along(scale, weight1, output_axis))
    set_module_weight(module2, weight2 * along(scale, weight2, input_axis))
    if bias is not None:
        set_module_bias(module1, bias.detach() / scale)


def process_paired_modules_list_to_name(model: nn.Module, paired_modules_list: Any) -> Any:
    """Pairs of modules as pairs of names."""
    return [
        [m if isinstance(m, str) else get_name_by_module(model, m) for m in pair]
        for pair in expand_groups_in_paired_modules_list(paired_modules_list)
    ]


def expand_groups_in_paired_modules_list(paired_modules_list: Any) -> list[list[Any]]:
    """``[a, b, c]`` as ``[a, b], [b, c]``.

    Raises:
        QuantizationError: a group of fewer than two.
    """
    pairs = []
    for group in paired_modules_list:
        if len(group) < 2:
            raise QuantizationError("Group must have at least two modules")
        pairs += [[group[i], group[i + 1]] for i in range(len(group) - 1)]
    return pairs


def get_name_by_module(model: nn.Module, module: nn.Module) -> str:
    """The qualified name of a submodule.

    Raises:
        QuantizationError: it is not part of the model.
    """
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise QuantizationError("module is not in the model")


def converged(curr_modules: dict[str, nn.Module], prev_modules: dict[str, nn.Module], threshold: float = 1e-4) -> bool:
    """Whether the weights moved by less than ``threshold`` (sum of the norms of their differences).

    Raises:
        QuantizationError: the dicts have other names.
    """
    if curr_modules.keys() != prev_modules.keys():
        raise QuantizationError("The keys to the given mappings must have the same set of names of modules")
    moved = torch.zeros(())
    for name in curr_modules:
        moved = (
            moved + torch.norm(get_module_weight(curr_modules[name]) - get_module_weight(prev_modules[name])).detach()
        )
    return bool(moved < threshold)


def equalize(model: nn.Module, paired_modules_list: Any, threshold: float = 1e-4, inplace: bool = True) -> nn.Module:
    """Equalizes pairs of consecutive layers until the weights rest.

    Args:
        paired_modules_list: lists of two or more names (or modules), each list a chain of layers.
    """
    if not inplace:
        pairs = process_paired_modules_list_to_name(model, paired_modules_list)
        model = copy.deepcopy(model)
    else:
        pairs = process_paired_modules_list_to_name(model, paired_modules_list)
    names = {name for pair in pairs for name in pair}
    current = {name: model.get_submodule(name) for name in names}
    previous = dict.fromkeys(names)
    while any(m is None for m in previous.values()) or not converged(current, previous, threshold):  # type: ignore[arg-type]
        for first, second in pairs:
            previous[first] = copy.deepcopy(current[first])
            previous[second] = copy.deepcopy(current[second])
            cross_layer_equalization(current[first], current[second])
    return model
