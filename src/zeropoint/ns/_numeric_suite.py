"""The numeric suite of eager quantization (``torch.ao.ns._numeric_suite`` by name)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn import quantized as nnq
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.quantization.quantization_mappings import get_default_compare_output_module_list
from zeropoint.tensor import QTensor, unmark

__all__ = [
    "NON_LEAF_MODULE_TO_ADD_OBSERVER_ALLOW_LIST",
    "Logger",
    "OutputLogger",
    "Shadow",
    "ShadowLogger",
    "compare_model_outputs",
    "compare_model_stub",
    "compare_weights",
    "get_logger_dict",
    "get_matching_activations",
    "prepare_model_outputs",
    "prepare_model_with_stubs",
]

NON_LEAF_MODULE_TO_ADD_OBSERVER_ALLOW_LIST = {nnqd.Linear, nnq.Linear, nnqd.LSTM, nn.LSTM}


def _find_match(names: Any, key: str, suffix: str) -> str | None:
    """The float model's name for a quantized model's key that ends in ``suffix``.

    The quantized key may have more levels (a fused float layer keeps its weight one level deeper, a QAT one not).
    """
    if key in names:
        return key
    stem = key.removesuffix(suffix).rstrip(".")
    for candidate in names:
        other = candidate.removesuffix(suffix).rstrip(".")
        if candidate.endswith(suffix) and (other == f"{stem}.0" or f"{other}.0" == stem):
            return str(candidate)
    return None


def compare_weights(float_dict: dict[str, Any], quantized_dict: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of both state_dicts by the quantized one's key: ``{"float": ..., "quantized": ...}``.

    A quantized weight is a quantized tensor: integers, scale and zero point of the state put together.
    """
    from zeropoint.tensor import make_per_channel_quantized_tensor, make_per_tensor_quantized_tensor

    result: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in quantized_dict.items():
        if not key.endswith("weight") or not isinstance(value, torch.Tensor):
            continue
        scale, zero_point = quantized_dict.get(f"{key}_scale"), quantized_dict.get(f"{key}_zero_point")
        quantized = value
        if scale is not None and not isinstance(value, QTensor):
            if scale.dim() == 0:
                quantized = make_per_tensor_quantized_tensor(value, scale, zero_point)
            else:
                axis = 0 if value.shape[0] == len(scale) else 1
                zero_points = zero_point.expand(scale.shape)  # type: ignore[union-attr]
                quantized = make_per_channel_quantized_tensor(value, scale, zero_points, axis)
        match = _find_match(float_dict, key, "weight")
        if match is not None:
            result[key] = {"float": float_dict[match], "quantized": quantized}
    return result


class Logger(nn.Module):
    """Base of the loggers: ``stats`` holds what they saw."""

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, Any] = {}
        self.dtype = nnq.Quantize  # observers have one; loggers do not use it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ShadowLogger(Logger):
    """Keeps the outputs of a quantized module and of its float shadow on the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.stats["float"] = []
        self.stats["quantized"] = []

    def forward(self, x: Any, y: Any) -> None:  # type: ignore[override]
        """``x`` quantized, ``y`` float; tuples by their first."""
        x, y = (t[0] if isinstance(t, tuple) else t for t in (x, y))
        self.stats["quantized"].append(x.dequantize().detach() if isinstance(x, QTensor) else x.detach())
        self.stats["float"].append(y.detach())


class OutputLogger(Logger):
    """Keeps every output of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stats["tensor_val"] = []

    def forward(self, x: Any) -> Any:
        self.stats["tensor_val"].append(x)
        return x


class Shadow(nn.Module):
    """A quantized module beside its float original; the quantized one's result goes on."""

    def __init__(self, q_module: nn.Module, float_module: nn.Module, logger_cls: Callable[[], Any]) -> None:
        super().__init__()
        self.orig_module = q_module
        self.shadow_module = float_module
        self.dequant = nnq.DeQuantize()
        self.logger = logger_cls()

    def _reals(self, values: Any) -> Any:
        return [unmark(self.dequant(v)) if isinstance(v, torch.Tensor) else v for v in values]

    def _both(self, method: str, quantized: tuple[Any, ...], reals: tuple[Any, ...]) -> Any:
        output = getattr(self.orig_module, method)(*quantized)
        self.logger(output, getattr(self.shadow_module, method)(*reals))
        return output

    def forward(self, *x: Any) -> Any:
        return self._both("__call__", x, tuple(self._reals(x)))

    def add(self, x: Any, y: Any) -> Any:
        return self._both("add", (x, y), tuple(self._reals((x, y))))

    def add_scalar(self, x: Any, y: float) -> Any:
        return self._both("add_scalar", (x, y), tuple(self._reals((x, y))))

    def mul(self, x: Any, y: Any) -> Any:
        return self._both("mul", (x, y), tuple(self._reals((x, y))))

    def mul_scalar(self, x: Any, y: float) -> Any:
        return self._both("mul_scalar", (x, y), tuple(self._reals((x, y))))

    def cat(self, x: Any, dim: int = 0) -> Any:
        return self._both("cat", (x, dim), (self._reals(x), dim))

    def add_relu(self, x: Any, y: Any) -> Any:
        return self._both("add_relu", (x, y), tuple(self._reals((x, y))))


def prepare_model_with_stubs(
    float_module: nn.Module, q_module: nn.Module, module_swap_list: set[type], logger_cls: Callable[[], Any]
) -> None:
    """Puts a :class:`Shadow` in place of each quantized module whose float original is of a listed type, in place."""
    floats = dict(float_module.named_children())
    for name, child in list(q_module.named_children()):
        original = floats.get(name)
        if original is None:
            continue
        if type(original) in module_swap_list and type(original) is not type(child):
            setattr(q_module, name, Shadow(child, original, logger_cls))
        else:
            prepare_model_with_stubs(original, child, module_swap_list, logger_cls)


def get_logger_dict(mod: nn.Module, prefix: str = "") -> dict[str, dict[str, Any]]:
    """``stats`` of every logger below ``mod`` by qualified name."""
    path = f"{prefix}." if prefix else ""
    return {f"{path}{name}.stats": m.stats for name, m in mod.named_modules() if isinstance(m, Logger)}


def compare_model_stub(
    float_model: nn.Module, q_model: nn.Module, module_swap_list: set[type], *data: Any, logger_cls: Any = ShadowLogger
) -> dict[str, dict[str, Any]]:
    """Runs the quantized model with float shadows on ``data``; their outputs by name. Changes ``q_model``."""
    prepare_model_with_stubs(float_model, q_model, module_swap_list, logger_cls)
    q_model(*data)
    return get_logger_dict(q_model)


def _log_output(module: nn.Module, args: Any, output: Any) -> None:
    module.activation_post_process(output)  # type: ignore[operator]


def prepare_model_outputs(
    float_module: nn.Module, q_module: nn.Module, logger_cls: Any = OutputLogger, allow_list: Any = None
) -> None:
    """Hangs a logger on every module of a listed type of both models, in place.

    Raises:
        QuantizationError: a model that is prepared for calibration: its observers stand where loggers would.
    """
    types = tuple(get_default_compare_output_module_list() if allow_list is None else allow_list)
    for model in (float_module, q_module):
        for module in list(model.modules()):
            if type(module) not in types or isinstance(module, Logger):
                continue
            present = module._modules.get("activation_post_process")
            if present is not None and not isinstance(present, (nn.Identity, Logger)):
                raise QuantizationError(
                    "prepare_model_outputs: the model has observers; give the float or converted model"
                )
            if isinstance(module, (nnq.FloatFunctional, nnq.QFunctional)):
                module.activation_post_process = logger_cls()
            elif not isinstance(present, Logger):
                module.add_module("activation_post_process", logger_cls())
                module.register_forward_hook(_log_output)


def get_matching_activations(float_module: nn.Module, q_module: nn.Module) -> dict[str, dict[str, Any]]:
    """Outputs that both models logged, by the quantized one's name."""
    floats, quantized = get_logger_dict(float_module), get_logger_dict(q_module)
    suffix = "activation_post_process.stats"
    result: dict[str, dict[str, Any]] = {}
    for key, stats in quantized.items():
        match = _find_match(sorted(floats, reverse=True), key, suffix)
        if match is not None:
            result[key] = {"float": floats[match]["tensor_val"], "quantized": stats["tensor_val"]}
    return result


def compare_model_outputs(
    float_model: nn.Module, q_model: nn.Module, *data: Any, logger_cls: Any = OutputLogger, allow_list: Any = None
) -> dict[str, dict[str, Any]]:
    """Runs both models on ``data`` and gives the outputs of matching layers. Changes both models."""
    prepare_model_outputs(float_model, q_model, logger_cls, allow_list)
    float_model(*data)
    q_model(*data)
    return get_matching_activations(float_model, q_model)
