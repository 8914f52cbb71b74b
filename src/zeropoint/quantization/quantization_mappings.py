"""Which module takes which module's place in ``convert``, and what prepare observes."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn import intrinsic as nni
from zeropoint.nn import qat as nnqat
from zeropoint.nn import quantizable as nnquantizable
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import qat as nniqat
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.nn.intrinsic.quantized import dynamic as nniqd
from zeropoint.nn.qat import dynamic as nnqatd
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.nn.quantized import functional as qF
from zeropoint.nn.quantized import reference as nnqr
from zeropoint.nn.sparse import quantized as nnsq
from zeropoint.nn.sparse.quantized import dynamic as nnsqd
from zeropoint.quantization.observer import (
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)
from zeropoint.quantization.stubs import DeQuantStub, QuantStub

__all__ = [
    "DEFAULT_DYNAMIC_MODULE_MAPPING",
    "DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS",
    "DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS",
    "DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS",
    "DEFAULT_MODULE_MAPPING",
    "DEFAULT_MODULE_TO_ACT_POST_PROCESS",
    "DEFAULT_QAT_MODULE_MAPPING",
    "DEFAULT_QAT_MODULE_MAPPINGS",
    "DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS",
    "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS",
    "DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS",
    "get_default_compare_output_module_list",
    "get_default_dynamic_sparse_quant_module_mappings",
    "get_default_float_to_quantized_operator_mappings",
    "get_default_static_quant_reference_module_mappings",
    "get_default_static_sparse_quant_module_mappings",
    "get_embedding_qat_module_mappings",
    "get_embedding_static_quant_module_mappings",
    "get_quantized_operator",
    "get_default_dynamic_quant_module_mappings",
    "get_default_qat_module_mappings",
    "get_default_qconfig_propagation_list",
    "get_default_static_quant_module_mappings",
    "get_dynamic_quant_module_class",
    "get_static_quant_module_class",
    "no_observer_set",
]

_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")

DEFAULT_STATIC_QUANT_MODULE_MAPPINGS: dict[type, type] = {
    QuantStub: nnq.Quantize,
    DeQuantStub: nnq.DeQuantize,
    nn.BatchNorm1d: nnq.BatchNorm1d,
    nn.BatchNorm2d: nnq.BatchNorm2d,
    nn.BatchNorm3d: nnq.BatchNorm3d,
    nn.Dropout: nnq.Dropout,
    **{getattr(nn, name): getattr(nnq, name) for name in _CONVOLUTIONS},
    nn.ELU: nnq.ELU,
    nn.Embedding: nnq.Embedding,
    nn.EmbeddingBag: nnq.EmbeddingBag,
    nn.GroupNorm: nnq.GroupNorm,
    nn.Hardswish: nnq.Hardswish,
    nn.InstanceNorm1d: nnq.InstanceNorm1d,
    nn.InstanceNorm2d: nnq.InstanceNorm2d,
    nn.InstanceNorm3d: nnq.InstanceNorm3d,
    nn.LayerNorm: nnq.LayerNorm,
    nn.RMSNorm: nnq.RMSNorm,
    nn.LeakyReLU: nnq.LeakyReLU,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnq.Linear,
    nn.Linear: nnq.Linear,
    nn.ReLU6: nnq.ReLU6,
    nn.PReLU: nnq.PReLU,
    nn.Sigmoid: nnq.Sigmoid,
    nn.Tanh: nnq.Tanh,
    nn.Hardsigmoid: nnq.Hardsigmoid,
    nn.Softmax: nnq.Softmax,
    # Elementwise, so that a table gives them exactly; torch had no module for these.
    **dict.fromkeys((nn.SiLU, nn.GELU, nn.Mish, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink), nnq.Pointwise),
    nnq.FloatFunctional: nnq.QFunctional,
    nni.BNReLU2d: nniq.BNReLU2d,
    nni.BNReLU3d: nniq.BNReLU3d,
    nni.ConvReLU1d: nniq.ConvReLU1d,
    nni.ConvReLU2d: nniq.ConvReLU2d,
    nni.ConvReLU3d: nniq.ConvReLU3d,
    nni.ConvAdd2d: nniq.ConvAdd2d,
    nni.ConvAddReLU2d: nniq.ConvAddReLU2d,
    nni.LinearReLU: nniq.LinearReLU,
    nni.LinearLeakyReLU: nniq.LinearLeakyReLU,
    nni.LinearTanh: nniq.LinearTanh,
    **{getattr(nnqat, name): getattr(nnq, name) for name in _CONVOLUTIONS},
    nnqat.Linear: nnq.Linear,
    nnqat.Embedding: nnq.Embedding,
    nnqat.EmbeddingBag: nnq.EmbeddingBag,
    nniqat.ConvBn1d: nnq.Conv1d,
    nniqat.ConvBn2d: nnq.Conv2d,
    nniqat.ConvBn3d: nnq.Conv3d,
    nniqat.ConvBnReLU1d: nniq.ConvReLU1d,
    nniqat.ConvBnReLU2d: nniq.ConvReLU2d,
    nniqat.ConvBnReLU3d: nniq.ConvReLU3d,
    nniqat.ConvReLU1d: nniq.ConvReLU1d,
    nniqat.ConvReLU2d: nniq.ConvReLU2d,
    nniqat.ConvReLU3d: nniq.ConvReLU3d,
    nniqat.LinearReLU: nniq.LinearReLU,
    nniqat.LinearBn1d: nnq.Linear,
}  # fmt: skip
DEFAULT_MODULE_MAPPING = DEFAULT_STATIC_QUANT_MODULE_MAPPINGS  # the name of torch 1.3

DEFAULT_QAT_MODULE_MAPPINGS: dict[type, type] = {
    **{getattr(nn, name): getattr(nnqat, name) for name in _CONVOLUTIONS},
    nn.Linear: nnqat.Linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnqat.Linear,
    **{
        getattr(nni, name): getattr(nniqat, name)
        for name in (
            "ConvBn1d", "ConvBn2d", "ConvBn3d", "ConvBnReLU1d", "ConvBnReLU2d", "ConvBnReLU3d", "ConvReLU1d", "ConvReLU2d",
            "ConvReLU3d", "LinearReLU", "LinearBn1d",
        )
    },
}  # fmt: skip
DEFAULT_QAT_MODULE_MAPPING = DEFAULT_QAT_MODULE_MAPPINGS

DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS: dict[type, type] = {
    nn.GRUCell: nnqd.GRUCell,
    nn.Linear: nnqd.Linear,
    nnqatd.Linear: nnqd.Linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: nnqd.Linear,
    nn.LSTM: nnqd.LSTM,
    nn.GRU: nnqd.GRU,
    nn.RNN: nnqd.RNN,
    nn.LSTMCell: nnqd.LSTMCell,
    nn.RNNCell: nnqd.RNNCell,
    nni.LinearReLU: nniqd.LinearReLU,
    nn.EmbeddingBag: nnq.EmbeddingBag,
    nn.Embedding: nnq.Embedding,
    **{getattr(nn, name): getattr(nnqd, name) for name in _CONVOLUTIONS},
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
    if is_reference:
        table = {**DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS, **(additional_static_quant_mapping or {})}
    found = table.get(float_module_class)
    if found is None:
        raise QuantizationError(
            f"Floating point module class {float_module_class} does not have a corresponding quantized module class"
        )
    return found


DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS: dict[type, type] = {
    QuantStub: nnq.Quantize,
    DeQuantStub: nnq.DeQuantize,
    nn.Linear: nnqr.Linear,
    **{getattr(nn, name): getattr(nnqr, name) for name in _CONVOLUTIONS},
    nn.Embedding: nnqr.Embedding,
    nn.EmbeddingBag: nnqr.EmbeddingBag,
    nn.GRUCell: nnqr.GRUCell,
    nn.LSTMCell: nnqr.LSTMCell,
    nn.RNNCell: nnqr.RNNCell,
    nn.LSTM: nnqr.LSTM,
}
DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS: dict[type, type] = {nn.Linear: nnsq.Linear}
DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS: dict[type, type] = {nn.Linear: nnsqd.Linear}

# Functions with qparams of their own, and what computes them on quantized tensors.
DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS: dict[Any, Any] = {
    F.elu: qF.elu,
    F.hardswish: qF.hardswish,
    F.leaky_relu: qF.leaky_relu,
    F.dropout: F.dropout,
}


def get_default_static_quant_reference_module_mappings() -> dict[type, type]:
    """A copy of the float to reference table."""
    return copy.copy(DEFAULT_REFERENCE_STATIC_QUANT_MODULE_MAPPINGS)


def get_embedding_static_quant_module_mappings() -> dict[type, type]:
    """The float to int8 table with QAT embeddings (they are in the default table here)."""
    return copy.copy(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)


def get_embedding_qat_module_mappings() -> dict[type, type]:
    """The float to QAT table with embeddings."""
    return {**DEFAULT_QAT_MODULE_MAPPINGS, nn.EmbeddingBag: nnqat.EmbeddingBag, nn.Embedding: nnqat.Embedding}


def get_default_static_sparse_quant_module_mappings() -> dict[type, type]:
    """A copy of the sparse static table."""
    return copy.copy(DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS)


def get_default_dynamic_sparse_quant_module_mappings() -> dict[type, type]:
    """A copy of the sparse dynamic table."""
    return copy.copy(DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS)


def get_default_float_to_quantized_operator_mappings() -> dict[Any, Any]:
    """A copy of the function table."""
    return copy.copy(DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS)


def get_quantized_operator(float_op: Any) -> Any:
    """The quantized function of a float one; raises QuantizationError if it takes no qparams of its own."""
    found = DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS.get(float_op)
    if found is None:
        raise QuantizationError(f"Operator {float_op} does not have corresponding quantized op")
    return found


def get_default_compare_output_module_list() -> set[type]:
    """The types whose outputs the numeric suite compares."""
    return (
        set(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)
        | set(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS.values())
        | set(DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS)
        | set(DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS.values())
        | {nn.ReLU, nn.MaxPool2d}
    ) - {nn.Dropout, nnq.Dropout}


def get_default_qconfig_propagation_list() -> set[type]:
    """The types that prepare observes."""
    return (
        set(DEFAULT_STATIC_QUANT_MODULE_MAPPINGS)
        | set(DEFAULT_QAT_MODULE_MAPPINGS.values())
        | {nn.Sequential}
        | set(DEFAULT_MODULE_TO_ACT_POST_PROCESS)
    )


def no_observer_set() -> set[type]:
    """Types that never get an observer of their own: their parts have them."""
    return {
        getattr(package, name)
        for package in (nnquantizable, nnq)
        for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention")
    }
