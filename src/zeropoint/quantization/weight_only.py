"""Weights of Linear layers in 8 or 4 bits, activations left float."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantized.dynamic import WeightOnlyLinear
from zeropoint.quantization.fast_path import leave_fast_path

__all__ = ["quantize_weight_only"]


def quantize_weight_only(
    model: nn.Module,
    names: Iterable[str] | None = None,
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = False,
    activation_bits: int = 15,
    inplace: bool = False,
) -> nn.Module:
    """Swaps Linear layers for :class:`~zeropoint.nn.quantized.dynamic.WeightOnlyLinear`; needs no data.

    Args:
        names: qualified names of the layers, or of modules whose Linear layers are meant; by default all of the model.
        bits: 8 or 4 per weight.
        group_size: inputs that share a scale, a multiple of 32 up to 256.
        symmetric: no zero points; a little smaller and faster, and further from float at 4 bits.
        activation_bits: 15 (as good as float) or 8 (faster).

    Raises:
        QuantizationError: a name that is not there or has no Linear layer, or a value that is not accepted.
    """
    modules = dict(model.named_modules())
    wanted = [""] if names is None else list(names)
    layers: dict[str, nn.Linear] = {}
    for name in wanted:
        if name not in modules:
            raise QuantizationError(f"quantize_weight_only: the model has no submodule {name!r}")
        prefix = name + "." if name else ""
        found = {n: m for n, m in modules.items() if type(m) is nn.Linear and (n == name or n.startswith(prefix))}
        if not found:
            raise QuantizationError(f"quantize_weight_only: there is no Linear in {name or 'the model'}")
        layers.update(found)
    swapped = {
        name: WeightOnlyLinear.from_float(layer, bits, group_size, symmetric, activation_bits)
        for name, layer in layers.items()
    }
    if "" in swapped:
        return swapped[""]
    if not inplace:
        # The float weights that will go need not be copied.
        model = copy.deepcopy(model, {id(layer): layer for layer in layers.values()})
    for name, layer in swapped.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    leave_fast_path(model)
    return model
