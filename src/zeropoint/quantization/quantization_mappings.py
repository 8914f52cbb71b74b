"""Which module takes which module's place in ``convert``, and what prepare observes."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn import qat as nnqat
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import qat as nniqat
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.quantization.observer import (
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)
from zeropoint.quantization.stubs import DeQuantStub, QuantStub

__all__ = [
    "DEFAULT_DYNAMIC_MODULE_MAPPING",
    "DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS",
    "DEFAULT_MODULE_MAPPING",
    "DEFAULT_MODULE_TO_ACT_POST_PROCESS",
    "DEFAULT_QAT_MODULE_MAPPING",
    "DEFAULT_QAT_MODULE_MAPPINGS",
    "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS",
    "get_default_dynamic_quant_module_mappings",
    "get_default_qat_module_mappings",
    "get_default_qconfig_propagation_list",
    "get_default_static_quant_module_mappings",
    "get_dynamic_quant_module_class",
    "get_static_quant_module_class",
    "no_observer_set",
]

DEFAULT_STATIC_QUANT_MODULE_MAPPINGS: dict[type, type] = {
    QuantStub: nnq.Quantize,
    DeQuantStub: nnq.DeQuantize,
    nn.BatchNorm2d: nnq.BatchNorm2d,
    nn.Conv2d: nnq.Conv2d,
    nn.Linear: nnq.Linear,
    nn.ReLU6: nnq.ReLU6,
    nn.ELU: nnq.ELU,
    nn.Hardswish: nnq.Hardswish,
    nn.LeakyReLU: nnq.LeakyReLU,
    nn.Sigmoid: nnq.Sigmoid,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnq.Linear,
    nnq.FloatFunctional: nnq.QFunctional,
    nni.BNReLU2d: nniq.BNReLU2d,
    nni.ConvReLU2d: nniq.ConvReLU2d,
    nni.LinearReLU: nniq.LinearReLU,
    nnqat.Conv2d: nnq.Conv2d,
    nnqat.Linear: nnq.Linear,
    nniqat.ConvBn2d: nnq.Conv2d,
    nniqat.ConvBnReLU2d: nniq.ConvReLU2d,
    nniqat.ConvReLU2d: nniq.ConvReLU2d,
    nniqat.LinearReLU: nniq.LinearReLU,
}
DEFAULT_MODULE_MAPPING = DEFAULT_STATIC_QUANT_MODULE_MAPPINGS  # the name of torch 1.3

DEFAULT_QAT_MODULE_MAPPINGS: dict[type, type] = {
    nn.Conv2d: nnqat.Conv2d,
    nn.Linear: nnqat.Linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnqat.Linear,
    nni.ConvBn2d: nniqat.ConvBn2d,
    nni.ConvBnReLU2d: nniqat.ConvBnReLU2d,
    nni.ConvReLU2d: nniqat.ConvReLU2d,
    nni.LinearReLU: nniqat.LinearReLU,
}
DEFAULT_QAT_MODULE_MAPPING = DEFAULT_QAT_MODULE_MAPPINGS

DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS: dict[type, type] = {
    nn.Linear: nnqd.Linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnqd.Linear,
    nni.LinearReLU: nnqd.Linear,
    nn.LSTM: nnqd.LSTM,
    nn.GRU: nnqd.GRU,
    nn.RNN: nnqd.RNN,
    nn.LSTMCell: nnqd.LSTMCell,
    nn.GRUCell: nnqd.GRUCell,
    nn.RNNCell: nnqd.RNNCell,
}
DEFAULT_DYNAMIC_MODULE_MAPPING = DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS

# Outputs with a range known beforehand: their observers are fixed.
DEFAULT_MODULE_TO_ACT_POST_PROCESS: dict[type, Any] = {
    nn.Hardsigmoid: default_fixed_qparams_range_0to1_observer,
    nn.Sigmoid: default_fixed_qparams_range_0to1_observer,
    nn.Softmax: default_fixed_qparams_range_0to1_observer,
    nn.Tanh: default_fixed_qparams_range_neg1to1_observer,
}


def get_default_static_quant_module_mappings() -> dict[type, type]:
    """A copy of the float to int8 table."""
    return copy.copy(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)


def get_default_qat_module_mappings() -> dict[type, type]:
    """A copy of the float to QAT table."""
    return copy.copy(DEFAULT_QAT_MODULE_MAPPINGS)


def get_default_dynamic_quant_module_mappings() -> dict[type, type]:
    """A copy of the float to dynamic int8 table."""
    return copy.copy(DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS)


def get_dynamic_quant_module_class(
    float_module_class: type, additional_dynamic_quant_mapping: dict[type, type] | None = None
) -> type:
    """The dynamic int8 class of a float class; raises QuantizationError if there is none."""
    table = {**DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS, **(additional_dynamic_quant_mapping or {})}
    if float_module_class not in table:
        raise QuantizationError(
            f"Floating point module class {float_module_class} does not have a corresponding quantized module class"
        )
    return table[float_module_class]


def get_static_quant_module_class(
    float_module_class: type,
    additional_static_quant_mapping: dict[type, type] | None = None,
    is_reference: bool = False,
) -> type:
    """The int8 class of a float class; raises QuantizationError if there is none."""
    table = {**DEFAULT_STATIC_QUANT_MODULE_MAPPINGS, **(additional_static_quant_mapping or {})}
    found = table.get(float_module_class)
    if found is None:
        raise QuantizationError(
            f"Floating point module class {float_module_class} does not have a corresponding quantized module class"
        )
    return found


def get_default_qconfig_propagation_list() -> set[type]:
    """The types that prepare observes."""
    return (
        set(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)
        | set(DEFAULT_QAT_MODULE_MAPPINGS.values())
        | {nn.Sequential}
        | set(DEFAULT_MODULE_TO_ACT_POST_PROCESS)
    )


def no_observer_set() -> set[type]:
    """Types that never get an observer of their own."""
    return set()
