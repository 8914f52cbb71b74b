"""Small questions about qconfigs, ranges and modules, under the names of ``torch.ao.quantization.utils``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from zeropoint.errors import QuantizationError
from zeropoint.quantization.quant_type import QuantType
from zeropoint.tensor import (
    as_qdtype,
    choose_qparams,
    is_per_channel,
    is_per_tensor,
    is_qdtype,
    per_tensor_affine,
    qint8,
    qint32,
    quant_range,
    quint8,
)

__all__ = [
    "DEPRECATION_WARNING",
    "MatchAllNode",
    "NodePattern",
    "Pattern",
    "activation_dtype",
    "activation_is_dynamically_quantized",
    "activation_is_int32_quantized",
    "activation_is_int8_quantized",
    "activation_is_statically_quantized",
    "calculate_qmin_qmax",
    "check_min_max_valid",
    "check_node",
    "determine_qparams",
    "get_combined_dict",
    "get_fqn_to_example_inputs",
    "get_qconfig_dtypes",
    "get_qparam_dict",
    "get_quant_type",
    "get_swapped_custom_module_class",
    "getattr_from_fqn",
    "has_no_children_ignoring_parametrizations",
    "is_per_channel",
    "is_per_tensor",
    "op_is_int8_dynamically_quantized",
    "to_underlying_dtype",
    "validate_qmin_qmax",
    "weight_dtype",
    "weight_is_quantized",
    "weight_is_statically_quantized",
]

DEPRECATION_WARNING = "zeropoint's workflow is not deprecated; the name is here for programs that import it"
NodePattern = Any
Pattern = Callable[..., Any]


class MatchAllNode:
    """A pattern that fits every node of a traced graph."""


def _kind(dtype: Any) -> Any:
    return as_qdtype(dtype) if is_qdtype(dtype) else dtype


def activation_dtype(qconfig: Any) -> Any:
    return qconfig.activation().dtype


def weight_dtype(qconfig: Any) -> Any:
    return qconfig.weight().dtype


def activation_is_dynamically_quantized(qconfig: Any) -> bool:
    return bool(getattr(qconfig.activation(), "is_dynamic", False))


def activation_is_statically_quantized(qconfig: Any) -> bool:
    return _kind(activation_dtype(qconfig)) in (quint8, qint8, qint32, torch.float16) and (
        not activation_is_dynamically_quantized(qconfig)
    )


def activation_is_int8_quantized(qconfig: Any) -> bool:
    return _kind(activation_dtype(qconfig)) in (quint8, qint8, torch.uint8, torch.int8)


def activation_is_int32_quantized(qconfig: Any) -> bool:
    return _kind(activation_dtype(qconfig)) in (qint32, torch.int32)


def weight_is_quantized(qconfig: Any) -> bool:
    return is_qdtype(weight_dtype(qconfig)) or weight_dtype(qconfig) == torch.float16


def weight_is_statically_quantized(qconfig: Any) -> bool:
    return _kind(weight_dtype(qconfig)) in (quint8, qint8, torch.uint8, torch.int8)


def op_is_int8_dynamically_quantized(qconfig: Any) -> bool:
    """uint8 activations chosen at run time and int8 weights."""
    return (
        _kind(activation_dtype(qconfig)) in (quint8, torch.uint8)
        and _kind(weight_dtype(qconfig)) in (qint8, torch.int8)
        and activation_is_dynamically_quantized(qconfig)
    )


def get_qconfig_dtypes(qconfig: Any) -> tuple[Any, Any, bool]:
    """Dtype of activations, of weights, and whether activations are dynamic."""
    activation = qconfig.activation()
    return activation.dtype, qconfig.weight().dtype, bool(getattr(activation, "is_dynamic", False))


def get_quant_type(qconfig: Any) -> QuantType:
    """The kind of quantization a qconfig stands for.

    Raises:
        QuantizationError: neither activations nor weights are quantized.
    """
    weight, activation = qconfig.weight(), qconfig.activation()
    if getattr(activation, "is_dynamic", False):
        return QuantType.DYNAMIC
    if is_qdtype(weight.dtype):
        return QuantType.STATIC if is_qdtype(activation.dtype) else QuantType.WEIGHT_ONLY
    if weight.dtype == torch.float16:
        return QuantType.STATIC if activation.dtype == torch.float16 else QuantType.WEIGHT_ONLY
    raise QuantizationError(
        f"Unrecognized dtype combination in get_quant_type: activation({activation.dtype}), weight({weight.dtype})"
    )


def check_min_max_valid(min_val: torch.Tensor, max_val: torch.Tensor) -> bool:
    """Whether a range was observed; warns if not.

    Raises:
        QuantizationError: min above max.
    """
    if min_val.numel() == 0 or max_val.numel() == 0 or bool(((min_val == torch.inf) & (max_val == -torch.inf)).any()):
        warnings.warn("must run observer before calling calculate_qparams. Returning default values.", stacklevel=2)
        return False
    if not bool((min_val <= max_val).all()):
        raise QuantizationError(f"min {min_val} should be less than max {max_val}")
    return True


def validate_qmin_qmax(quant_min: int, quant_max: int) -> None:
    """Raises QuantizationError if the range is empty or excludes 0."""
    if not quant_min <= 0 <= quant_max:
        raise QuantizationError("Used-specified quantization range must include 0.")
    if not quant_min < quant_max:
        raise QuantizationError("qmin must be strictly less than qmax for user-specified quantization range.")


def calculate_qmin_qmax(
    quant_min: int, quant_max: int, has_customized_qrange: bool, dtype: Any, reduce_range: bool
) -> tuple[int, int]:
    """The integer range of ``dtype``, or the given one, a bit narrower with ``reduce_range``."""
    if has_customized_qrange:
        return quant_range(as_qdtype(dtype), quant_min, quant_max, reduce_range)
    return quant_range(as_qdtype(dtype), reduce_range=reduce_range)


def determine_qparams(
    min_val: torch.Tensor,
    max_val: torch.Tensor,
    quant_min: int,
    quant_max: int,
    dtype: Any,
    eps: torch.Tensor,
    has_customized_qrange: bool,
    qscheme: Any = per_tensor_affine,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of a range; ``zeropoint.tensor.choose_qparams`` under torch's name."""
    if not check_min_max_valid(min_val, max_val):
        return torch.tensor([1.0], device=min_val.device), torch.tensor([0], device=min_val.device)
    return choose_qparams(min_val, max_val, dtype, qscheme, quant_min, quant_max, eps, has_customized_qrange)


def get_qparam_dict(observer_or_fake_quant: Any) -> dict[str, Any]:
    """qscheme, dtype, scale, zero point, and what else describes the grid."""
    qscheme = getattr(observer_or_fake_quant, "qscheme", None)
    qparams: dict[str, Any] = {"qscheme": qscheme, "dtype": observer_or_fake_quant.dtype}
    if qscheme is None or getattr(observer_or_fake_quant, "is_dynamic", False):
        return {**qparams, "scale": None, "zero_point": None}
    if is_per_channel(qscheme):
        qparams["axis"] = observer_or_fake_quant.ch_axis
    qparams["scale"], qparams["zero_point"] = observer_or_fake_quant.calculate_qparams()
    for name in ("quant_min", "quant_max"):
        if hasattr(observer_or_fake_quant, name):
            qparams[name] = getattr(observer_or_fake_quant, name)
    return qparams


def get_combined_dict(default_dict: dict[Any, Any], additional_dict: dict[Any, Any]) -> dict[Any, Any]:
    """A copy of the first with the second's entries on top."""
    return {**default_dict, **additional_dict}


def get_swapped_custom_module_class(custom_module: Any, custom_module_class_mapping: Any, qconfig: Any) -> Any:
    """The class that takes a custom module's place under this qconfig."""
    mapping = custom_module_class_mapping.get(get_quant_type(qconfig), {})
    if type(custom_module) not in mapping:
        raise QuantizationError(
            f"did not find corresponding observed module class for {type(custom_module)} in mapping: {mapping}"
        )
    return mapping[type(custom_module)]


def getattr_from_fqn(obj: Any, fqn: str) -> Any:
    """``obj.a.b.c`` from "a.b.c"."""
    for name in fqn.split("."):
        obj = getattr(obj, name)
    return obj


def has_no_children_ignoring_parametrizations(module: nn.Module) -> bool:
    """Whether a module is a leaf, parametrizations not counted."""
    if len(module._modules) == 0:
        return True
    return is_parametrized(module) and len(module._modules) == 1 and "parametrizations" in module._modules


def to_underlying_dtype(qdtype: Any) -> torch.dtype:
    """The plain integers that hold a quantized dtype.

    Raises:
        QuantizationError: not a quantized dtype.
    """
    return as_qdtype(qdtype).storage


def get_fqn_to_example_inputs(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """The positional inputs of each submodule when the model runs on ``example_inputs``."""
    found: dict[str, tuple[Any, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args))
        for name, module in model.named_modules()
    ]
    try:
        model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def check_node(node: Any, modules: dict[str, Any]) -> tuple[bool, bool, bool]:
    """For a node of a traced graph: is it a function, a method or a module that keeps its input's grid."""
    is_call_function = node.op == "call_function" and node.target in _KEEPING_FUNCTIONS
    is_call_method = node.op == "call_method" and node.target in _KEEPING_METHODS
    is_call_module = node.op == "call_module" and type(modules[str(node.target)]) in _KEEPING_MODULES
    return is_call_function, is_call_method, is_call_module


_KEEPING_METHODS = (
    "clamp", "mean", "relu", "relu_", "chunk", "contiguous", "detach", "permute", "repeat", "reshape", "size", "squeeze",
    "transpose", "unsqueeze", "view",
)  # fmt: skip
_KEEPING_FUNCTIONS = (
    torch.nn.functional.relu, torch.nn.functional.max_pool2d, torch.nn.functional.avg_pool2d, torch.cat, torch.flatten, torch.mean,
    torch.transpose, torch.unsqueeze, torch.squeeze, torch.chunk, torch.stack,
)  # fmt: skip
_KEEPING_MODULES = (
    nn.ReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
)
