"""Which layers of a converted model run in int8, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from zeropoint import backend
from zeropoint.nn import quantized as nnq
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.nn.quantized.dynamic.conv import _DynamicConv
from zeropoint.nn.quantized.modules.embedding_ops import _EmbeddingBase
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput
from zeropoint.quantization.recording import has_integer_form
from zeropoint.tensor._callsite import SITES

__all__ = ["LayerCoverage", "Report", "coverage", "report"]

# Modules of torch.nn that work on quantized tensors as they are (tensor/_functions.py).
_ON_INTEGERS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.ReplicationPad3d, nn.Upsample,
)  # fmt: skip
_NO_OPERATION = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_QUANTIZED = (
    QuantizedOutput, nnq.Quantize, nnq.DeQuantize, nnq.ReLU, nnq.ReLU6, nnq.MaxPool2d, nnq.AvgPool2d, nnq.AdaptiveAvgPool2d,
    _EmbeddingBase, nnqd.WeightOnlyLinear,
)  # fmt: skip

REASON = "_float_reason"
"""Attribute that ``convert`` leaves on a module that stays float."""
NEVER_REACHED = "the calibration inputs never reach it"


@dataclass(frozen=True)
class LayerCoverage:
    """One layer or call site: ``kind`` is "int8" or "float", ``reason`` says why it is float, or what it computes in."""

    name: str
    type: str
    kind: str
    reason: str


def _weights_stay_half(module: nn.Module) -> bool:
    return isinstance(module, nnqd.Linear) and module._float_weight is not None


def _gives_integers(module: nn.Module) -> bool:
    dynamic = isinstance(module, (nnqd.Linear, _DynamicConv))
    return isinstance(module, nnq.Quantize) or (isinstance(module, QuantizedOutput) and not dynamic)


def _sites(name: str, module: nn.Module) -> Iterator[LayerCoverage]:
    sites: Any = module._modules.get(SITES)
    for key in sites or ():
        function, _, ordinal = key.rpartition("_")
        if not ordinal.isdigit() or (function.rpartition("_")[2].isdigit() and function in sites):
            continue  # the second result of a call
        int8 = has_integer_form(function)
        reason = "" if int8 else f"{function} has no integer form: computed in float32, its result quantized"
        yield LayerCoverage(
            f"{name}.{key}" if name else key, f"call of {function}", "int8" if int8 else "float", reason
        )


def coverage(model: nn.Module) -> list[LayerCoverage]:
    """One entry per module or call site that computes something, in the model's order."""
    layers: list[LayerCoverage] = []
    inside: set[nn.Module] = set()
    static = any(_gives_integers(m) for m in model.modules())
    for name, module in model.named_modules():
        if module in inside or isinstance(module, (nnq.CallSites, nnq.CallSite)):
            continue
        own = getattr(module, "layer_coverage", None)
        if own is not None:  # a program
            layers.extend(LayerCoverage(".".join(filter(None, (name, n))), t, k, why) for n, t, k, why in own())
            continue
        recorded = list(_sites(name, module))
        layers.extend(recorded)
        if isinstance(module, _QUANTIZED):
            inside.update(m for m in module.modules() if m is not module)
            half = _weights_stay_half(module)
            reason = "float16 weights: the product runs in float32" if half else ""
            if isinstance(module, nnqd.WeightOnlyLinear):
                reason = f"weights of {module.bits} bits, activations of {module.activation_bits}"
            layers.append(LayerCoverage(name, module._get_name(), "float" if half else "int8", reason))
            continue
        leaf = not any(True for child in module.children() if not isinstance(child, nnq.CallSites))
        if not leaf or isinstance(module, _NO_OPERATION) or recorded:
            continue
        if isinstance(module, _ON_INTEGERS):
            reason = "" if static else "it works on what it gets, and nothing here gives it integers"
            layers.append(LayerCoverage(name, module._get_name(), "int8" if static else "float", reason))
        else:
            reason = getattr(module, REASON, "no int8 form of this module type, or it had no qconfig")
            layers.append(LayerCoverage(name, module._get_name(), "float", reason))
    return layers


@dataclass(frozen=True)
class Report:
    """What :func:`report` found; ``str()`` is a table."""

    layers: list[LayerCoverage]
    fallbacks: dict[str, int]
    isa: str

    @property
    def in_float(self) -> list[LayerCoverage]:
        return [layer for layer in self.layers if layer.kind == "float"]

    def __str__(self) -> str:
        lines = [f"{len(self.layers) - len(self.in_float)} of {len(self.layers)} layers in int8, kernels: {self.isa}"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines += [
            f"  {layer.name:{width}s}  {layer.kind:5s}  {layer.type}  {layer.reason}".rstrip() for layer in self.layers
        ]
        lines += [f"ran in float on quantized tensors: {name}, {count} times" for name, count in self.fallbacks.items()]
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Layer by layer what runs in int8 and what in float, and why; with the fallbacks counted so far."""
    return Report(coverage(model), backend.fallbacks(), backend.isa())
