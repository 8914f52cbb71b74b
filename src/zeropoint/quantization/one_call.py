"""From a float model to an int8 one in one call, module by module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from zeropoint.errors import QuantizationError
from zeropoint.quantization.coverage import NEVER_REACHED, REASON
from zeropoint.quantization.fuse_modules import find_fusable_modules, fuse_modules
from zeropoint.quantization.qconfig import QConfig, get_default_qconfig
from zeropoint.quantization.quantization_mappings import get_default_static_quant_module_mappings
from zeropoint.quantization.quantize import convert, prepare
from zeropoint.tensor import QTensor

__all__ = ["QuantizedModel", "as_arguments", "as_call", "fuse_and_convert", "quantize_modules"]


def as_arguments(inputs: Any) -> tuple[Any, ...]:
    """One batch, a tensor or a sequence of arguments, as positional arguments."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def as_call(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One batch as arguments of ``model``: a tensor, a sequence of arguments, or a mapping of arguments by name."""
    if isinstance(inputs, Mapping):
        bound = inspect.signature(model.forward).bind(**inputs)
        return bound.args, bound.kwargs
    return as_arguments(inputs), {}


def fuse_and_convert(
    model: nn.Module, example: tuple[Any, ...], calibrate: Callable[[nn.Module], None], qconfig: Any = None
) -> tuple[nn.Module, list[list[str]]]:
    """Fuses, prepares, calibrates and converts ``model`` in place; also gives the fused module names."""
    fused = find_fusable_modules(model, example)
    if fused:
        fuse_modules(model, fused, inplace=True)
    model.qconfig = qconfig or get_default_qconfig("zeropoint")  # type: ignore[assignment]
    for module in model.modules():
        # Their weights need qparams of another kind, and models read them as tensors.
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and not hasattr(module, "qconfig"):
            module.qconfig = None  # type: ignore[assignment]
    prepare(model, inplace=True)
    with torch.inference_mode():
        _calibrate_reached(model, calibrate)
    return convert(model, inplace=True), fused


def _calibrate_reached(model: nn.Module, calibrate: Callable[[nn.Module], None]) -> None:
    """Calibrates ``model``. Layers that saw nothing keep their floats, which their parents may read."""
    quantizable = get_default_static_quant_module_mappings()
    layers: dict[Any, nn.Module] = {
        module.activation_post_process: module
        for module in model.modules()
        if type(module) in quantizable and hasattr(module, "activation_post_process")
    }
    seen: set[nn.Module] = set()
    hooks = [observer.register_forward_hook(lambda called, *_: seen.add(called)) for observer in layers]
    calibrate(model)
    for hook in hooks:
        hook.remove()
    for observer, layer in layers.items():
        if observer not in seen:
            layer.qconfig = None  # type: ignore[assignment]
            setattr(layer, REASON, NEVER_REACHED)


class QuantizedModel(nn.Module):
    """A converted model that takes and gives ordinary tensors.

    Float inputs are quantized by the layers they come to, with the ranges that calibration saw there; what leaves
    the model quantized is dequantized. ``zeropoint.report(model)`` says what runs in int8.

    Attributes:
        engine: why this runs module by module and is no program.
    """

    def __init__(self, module: nn.Module, engine: str = "module by module, as asked") -> None:
        super().__init__()
        self.module, self.engine = module, engine

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return tree_map_only(QTensor, QTensor.dequantize, self.module(*args, **kwargs))


def _positional(model: nn.Module, inputs: Any) -> tuple[Any, ...]:
    """One batch as positional arguments of ``model``."""
    args, kwargs = as_call(model, inputs)
    if kwargs:
        raise QuantizationError(f"quantize: {', '.join(kwargs)} can only be given by keyword; wrap the model")
    return args


def quantize_modules(model: nn.Module, calibration: Iterable[Any], qconfig: QConfig | None = None) -> QuantizedModel:
    """Static int8, module by module; the float model is left as it is.

    Layers that can be fused are, ranges of activations come from the calibration inputs, and layers, functions and
    operators that have an int8 form run in it; the others run in float between them and are listed by
    ``zeropoint.report`` (embeddings too, unless they have a qconfig).

    Raises:
        QuantizationError: no calibration inputs, or arguments that can only be given by keyword.
    """
    batches = iter(calibration)
    try:
        first = _positional(model, next(batches))
    except StopIteration:
        raise QuantizationError("quantize: calibration gave no inputs") from None

    def calibrate(prepared: nn.Module) -> None:
        prepared(*first)
        for inputs in batches:
            prepared(*_positional(model, inputs))

    converted, _ = fuse_and_convert(copy.deepcopy(model).eval(), first, calibrate, qconfig)
    return QuantizedModel(converted)
