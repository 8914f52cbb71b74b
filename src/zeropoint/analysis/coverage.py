"""Which layers of a converted model run in int8, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zeropoint.nn import quantized as nnq
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput

__all__ = ["LayerCoverage", "coverage"]

# Modules of torch.nn that work on quantized tensors as they are (tensor/_functions.py).
_ON_INTEGERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    nn.ConstantPad2d,
)
_NO_OPERATION = (nn.Identity, nn.Dropout, nn.Dropout2d)
_QUANTIZED = (
    QuantizedOutput,
    nnq.Quantize,
    nnq.DeQuantize,
    nnq.ReLU,
    nnq.ReLU6,
    nnq.MaxPool2d,
    nnq.AvgPool2d,
    nnq.AdaptiveAvgPool2d,
)


@dataclass(frozen=True)
class LayerCoverage:
    """One leaf: ``kind`` is "int8" or "float", ``reason`` says why it is float."""

    name: str
    type: str
    kind: str
    reason: str


def coverage(model: nn.Module) -> list[LayerCoverage]:
    """One entry per module that computes something, in the model's order."""
    layers = []
    for name, module in model.named_modules():
        leaf = isinstance(module, _QUANTIZED) or not any(True for _ in module.children())
        if not leaf or isinstance(module, _NO_OPERATION):
            continue
        if isinstance(module, (*_QUANTIZED, *_ON_INTEGERS)):
            layers.append(LayerCoverage(name, module._get_name(), "int8", ""))
        else:
            reason = "no int8 form of this module type yet, or it had no qconfig"
            layers.append(LayerCoverage(name, module._get_name(), "float", reason))
    return layers
