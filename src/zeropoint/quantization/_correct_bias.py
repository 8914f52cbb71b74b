"""Bias correction: takes the mean error of each quantized layer's output out of its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2, from
data. Names of ``torch.ao.quantization._correct_bias``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn import quantized as nnq
from zeropoint.ns import _numeric_suite as ns
from zeropoint.tensor import QTensor

__all__ = ["MeanShadowLogger", "bias_correction", "get_module", "get_param", "parent_child_names"]

_supported_modules = {nn.Linear, nn.Conv2d}
_supported_modules_quantized = {nnq.Linear, nnq.Conv2d}


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a name."""
    return dict(model.named_modules())[name]


def parent_child_names(name: str) -> tuple[str, str]:
    """``("a.b", "c")`` of "a.b.c"."""
    parent, _, child = name.rpartition(".")
    return parent, child


def get_param(module: nn.Module, attr: str) -> Any:
    """``weight`` or ``bias``, whether it is an attribute or, as on quantized modules, a method."""
    param = getattr(module, attr, None)
    return param() if callable(param) else param


class MeanShadowLogger(ns.Logger):
    """Running means over the batches of a quantized module's output and of its float shadow's."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def forward(self, x: Any, y: Any) -> None:  # type: ignore[override]
        """``x`` quantized, ``y`` float."""
        x = x.dequantize() if isinstance(x, QTensor) else x
        self.count += 1
        for name, value in (("quantized", x), ("float", y)):
            value = value.detach()
            before = self.stats[name]
            self.stats[name] = value if before is None else before + (value - before) / self.count
        self.float_sum, self.quant_sum = self.stats["float"], self.stats["quantized"]

    def clear(self) -> None:
        self.stats["float"] = self.stats["quantized"] = None
        self.count = 0
        self.float_sum = self.quant_sum = None


def bias_correction(
    float_model: nn.Module,
    quantized_model: nn.Module,
    img_data: Any,
    target_modules: set[type] = _supported_modules_quantized,
    neval_batches: int | None = None,
) -> None:
    """Corrects the biases of ``quantized_model``, layer after layer, in place.

    Args:
        img_data: batches ``(input, target)``.
        target_modules: the quantized types to correct.
        neval_batches: how many batches to run for each layer, by default all.
    """
    ns.prepare_model_with_stubs(float_model, quantized_model, _supported_modules, MeanShadowLogger)
    targets = [name for name, m in quantized_model.named_modules() if type(m) in target_modules]
    for name in targets:
        corrected = get_module(quantized_model, name)
        bias = get_param(corrected, "bias")
        if bias is None:
            continue
        for count, (inputs, *_rest) in enumerate(img_data, start=1):
            quantized_model(inputs)
            if count == neval_batches:
                break
        parent = parent_child_names(name)[0]
        shadow = get_module(quantized_model, parent)
        logger: Any = shadow.logger
        if logger.stats["float"] is None:
            raise QuantizationError(f"bias_correction: {name} did not run on the data given")
        error = logger.stats["quantized"] - logger.stats["float"]
        dims = [i for i in range(error.dim()) if i != (1 if isinstance(corrected, nnq.Conv2d) else error.dim() - 1)]
        corrected.set_weight_bias(corrected.weight(), bias - error.mean(dims))  # type: ignore[operator]
        for module in quantized_model.modules():
            if isinstance(module, MeanShadowLogger):
                module.clear()
    _take_shadows_off(quantized_model)


def _take_shadows_off(model: nn.Module) -> None:
    for name, child in list(model.named_children()):
        if isinstance(child, ns.Shadow):
            setattr(model, name, child.orig_module)
        else:
            _take_shadows_off(child)
