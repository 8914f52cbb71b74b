"""The eager workflow: prepare, calibrate, convert (``torch.ao.quantization.quantize`` by name)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn import quantizable as nnquantizable
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import _FusedModule
from zeropoint.nn.quantized.modules.weighted import QuantizedOutput, WeightedQuantizedModule
from zeropoint.quantization.coverage import NEVER_REACHED, REASON, report
from zeropoint.quantization.fast_path import leave_fast_path
from zeropoint.quantization.observer import is_activation_post_process
from zeropoint.quantization.qconfig import (
    assert_valid_qconfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
)
from zeropoint.quantization.quantization_mappings import (
    DEFAULT_MODULE_TO_ACT_POST_PROCESS,
    get_default_dynamic_quant_module_mappings,
    get_default_qat_module_mappings,
    get_default_qconfig_propagation_list,
    get_default_static_quant_module_mappings,
    get_default_static_quant_reference_module_mappings,
    no_observer_set,
)
from zeropoint.quantization.recording import (
    INPUT_OBSERVER,
    finish_call_sites,
    follow_forwards,
    is_recording_hook,
    quantizes,
    set_float_input,
)
from zeropoint.quantization.stubs import DeQuantStub, QuantWrapper
from zeropoint.quantization.utils import get_qparam_dict
from zeropoint.tensor import as_qdtype, is_qdtype, mark, qint8, quint4x2, quint8

__all__ = [
    "_observer_forward_hook",
    "add_observer",
    "add_observer_",
    "add_quant_dequant",
    "convert",
    "default_eval_fn",
    "get_default_custom_config_dict",
    "get_observer_dict",
    "prepare",
    "prepare_qat",
    "propagate_qconfig",
    "propagate_qconfig_",
    "propagate_qconfig_helper",
    "quantize",
    "quantize_dynamic",
    "quantize_qat",
    "swap_module",
]


_CUSTOM = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention")


def default_eval_fn(model: nn.Module, calib_data: Iterable[Any]) -> None:
    """Runs the model on each ``(input, target)`` of ``calib_data``."""
    for data, _target in calib_data:
        model(data)


def get_default_custom_config_dict() -> dict[str, Any]:
    """The custom-module tables of prepare and convert: recurrent layers and attention."""
    return {
        "float_to_observed_custom_module_class": {getattr(nn, n): getattr(nnquantizable, n) for n in _CUSTOM},
        "observed_to_quantized_custom_module_class": {getattr(nnquantizable, n): getattr(nnq, n) for n in _CUSTOM},
    }


def propagate_qconfig_helper(
    module: nn.Module,
    qconfig_dict: dict[Any, Any],
    white_list: Any = None,
    qconfig_parent: Any = None,
    prefix: str = "",
    prepare_custom_config_dict: dict[str, Any] | None = None,
) -> None:
    """Gives ``module`` and all below it a ``qconfig``.

    Order of precedence: the module's own attribute, its name in ``qconfig_dict``, its type there, its
    parent's. Types outside ``white_list``, if given, keep none but pass their parent's on.
    """
    qconfig = qconfig_dict.get(type(module), qconfig_parent)
    qconfig = qconfig_dict.get(prefix, qconfig)
    qconfig = getattr(module, "qconfig", qconfig)
    assert_valid_qconfig(qconfig, module)
    if white_list is None or type(module) in white_list:
        module.qconfig = qconfig
    skip = prepare_custom_config_dict or {}
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if name in skip.get("non_traceable_module_name", []) or type(child) in skip.get(
            "non_traceable_module_class", []
        ):
            continue
        propagate_qconfig_helper(child, qconfig_dict, white_list, qconfig, full, prepare_custom_config_dict)


def propagate_qconfig_(
    module: nn.Module,
    qconfig_dict: dict[Any, Any] | None = None,
    prepare_custom_config_dict: dict[str, Any] | None = None,
) -> None:
    """Spreads ``qconfig`` over a model, in place.

    Args:
        qconfig_dict: qconfigs by submodule name or by type; ``""`` is the whole model.
    """
    propagate_qconfig_helper(module, qconfig_dict or {}, prepare_custom_config_dict=prepare_custom_config_dict)


propagate_qconfig = propagate_qconfig_


def _observer_forward_hook(self: nn.Module, input: Any, output: Any) -> Any:
    """Forward hook that shows a module's output to its ``activation_post_process``."""
    observer: Any = self.activation_post_process
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or isinstance(self, _EMBEDDINGS):
        return output  # no grid for it: integers, tuples, and embeddings, which give floats in int8 too
    result = observer(output)
    return mark(result, observer) if quantizes(observer) else result


def _observer_forward_pre_hook(self: nn.Module, input: Any) -> Any:
    return self.activation_post_process(input[0])  # type: ignore[operator]


def _needs_observation(module: nn.Module) -> bool:
    return getattr(module, "qconfig", None) is not None


def _quantizes_statically(module: nn.Module) -> bool:
    return _needs_observation(module) and quantizes(module.qconfig.activation())  # type: ignore[union-attr, operator]


def _make_observer(module: nn.Module) -> nn.Module:
    qconfig: Any = module.qconfig
    special = DEFAULT_MODULE_TO_ACT_POST_PROCESS.get(type(module))
    if special is not None and hasattr(qconfig.activation, "with_args"):
        return special()
    return qconfig.activation()


def _device_of(module: nn.Module) -> torch.device | None:
    return next((p.device for p in (*module.parameters(), *module.buffers())), None)


def _insert_observer(module: nn.Module) -> None:
    if not _needs_observation(module) or isinstance(module, DeQuantStub) or hasattr(module, "activation_post_process"):
        return
    observer = _make_observer(module)
    device = _device_of(module)
    if device is not None:
        observer.to(device)
    module.add_module("activation_post_process", observer)
    module.register_forward_hook(_observer_forward_hook, prepend=True)


def add_observer_(
    module: nn.Module,
    qconfig_propagation_list: set[type] | None = None,
    non_leaf_module_list: Any = None,
    device: Any = None,
    custom_module_class_mapping: dict[type, Any] | None = None,
) -> None:
    """Adds an ``activation_post_process`` and its forward hook to every leaf that has a qconfig.

    A FloatFunctional gets one in place of its Identity; a fused module counts as a leaf; Dropout gets none.
    """
    types = get_default_qconfig_propagation_list() if qconfig_propagation_list is None else qconfig_propagation_list
    custom = custom_module_class_mapping or {}
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Dropout) or is_activation_post_process(child):
            continue
        if isinstance(child, nnq.FloatFunctional):
            if _needs_observation(child):
                child.activation_post_process = _make_observer(child)
        elif isinstance(child, _FusedModule) or (
            non_leaf_module_list is not None and type(child) in non_leaf_module_list
        ):
            _insert_observer(child)
        elif _quantizes_statically(child) and type(child) in custom:
            observed = custom[type(child)].from_float(child)
            setattr(module, name, observed)
            if type(observed) not in no_observer_set():
                _insert_observer(observed)
        else:
            add_observer_(child, types, non_leaf_module_list, device, custom)
    if not any(True for _ in module.children()) and not isinstance(module, nn.Sequential) and type(module) in types:
        _insert_observer(module)


add_observer = add_observer_


def add_quant_dequant(module: nn.Module) -> nn.Module:
    """Wraps every leaf that has a qconfig in a QuantWrapper; the result may be a wrapper itself."""
    if not any(True for _ in module.children()) and getattr(module, "qconfig", None):
        return QuantWrapper(module)
    for name, child in module.named_children():
        module._modules[name] = add_quant_dequant(child)
    return module


def prepare(
    model: nn.Module,
    inplace: bool = False,
    allow_list: set[type] | None = None,
    observer_non_leaf_module_list: Any = None,
    prepare_custom_config_dict: dict[str, Any] | None = None,
    white_list: set[type] | None = None,
    qconfig_dict: dict[Any, Any] | None = None,
) -> nn.Module:
    """Prepares a float model for calibration: propagates qconfigs and adds observers.

    Args:
        inplace: change the model itself rather than a copy.
        allow_list: the types to observe, by default those that convert knows. ``white_list`` is the same.
        observer_non_leaf_module_list: types to observe although they have children.
        qconfig_dict: qconfigs by submodule name or type (torch 1.3).

    Warns if no submodule has a qconfig, since nothing would be quantized.
    """
    custom = (prepare_custom_config_dict or get_default_custom_config_dict()).get(
        "float_to_observed_custom_module_class", {}
    )
    if not inplace:
        model = copy.deepcopy(model)
    propagate_qconfig_(model, qconfig_dict)
    if not any(getattr(m, "qconfig", None) for m in model.modules()):
        warnings.warn(
            "None of the submodule got qconfig applied. Make sure you passed correct configuration through `qconfig_dict` or "
            "by assigning the `.qconfig` attribute directly on submodules",
            stacklevel=2,
        )
    add_observer_(model, allow_list or white_list, observer_non_leaf_module_list, None, custom)
    follow_forwards(model)
    return model


def _remove_observers(model: nn.Module) -> None:
    """Takes observers, their hooks and qconfigs off a converted model."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if hook in (_observer_forward_hook, _observer_forward_pre_hook):
                    hooks.pop(key)
        observer = getattr(module, "activation_post_process", None)
        if observer is not None and is_activation_post_process(observer):
            delattr(module, "activation_post_process")
        if INPUT_OBSERVER in module._modules:
            delattr(module, INPUT_OBSERVER)
        if "qconfig" in module.__dict__:
            del module.qconfig


def swap_module(
    mod: nn.Module,
    mapping: dict[type, Any],
    custom_module_class_mapping: dict[type, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """The quantized counterpart of ``mod`` if it has a qconfig and ``mapping`` its type, else ``mod``.

    Forward hooks and pre-hooks are kept, observers' excepted.
    """
    if getattr(mod, "qconfig", None) is None:
        return mod
    custom = custom_module_class_mapping or {}
    if type(mod) in custom:
        new = custom[type(mod)].from_observed(mod)
    elif getattr(mapping.get(type(mod)), "_IS_REFERENCE", False):
        observer: Any = mod.qconfig.weight()  # type: ignore[union-attr, operator]
        observer(mod.weight)
        new = mapping[type(mod)].from_float(mod, get_qparam_dict(observer))
    elif type(mod) in mapping:
        new = mapping[type(mod)].from_float(mod)
    else:
        return mod
    for key, pre_hook in mod._forward_pre_hooks.items():
        if pre_hook is not _observer_forward_pre_hook and not is_recording_hook(pre_hook):
            new.register_forward_pre_hook(pre_hook, with_kwargs=key in mod._forward_pre_hooks_with_kwargs)
    for key, hook in mod._forward_hooks.items():
        if hook is not _observer_forward_hook and not is_recording_hook(hook):
            new.register_forward_hook(
                hook,
                with_kwargs=key in mod._forward_hooks_with_kwargs,
                always_call=key in mod._forward_hooks_always_called,
            )
    set_float_input(mod, new)
    device = _device_of(mod)
    if device is not None:
        new.to(device)
    new.training = mod.training
    return new


def _convert_children(module: nn.Module, mapping: dict[type, Any], custom: dict[type, Any]) -> None:
    for name, child in list(module.named_children()):
        if not isinstance(child, _FusedModule) and type(child) not in custom and type(child) not in mapping:
            _convert_children(child, mapping, custom)
        setattr(module, name, swap_module(child, mapping, custom))


def _say_why_float(model: nn.Module, table: dict[type, Any]) -> None:
    """Leaves on each float leaf the reason, for ``zeropoint.report``."""
    for module in model.modules():
        if any(True for child in module.children() if not is_activation_post_process(child)):
            continue
        if getattr(module, REASON, "") == NEVER_REACHED:
            continue
        if getattr(module, "qconfig", None) is None:
            reason = "it has no qconfig"
        elif type(module) not in table:
            reason = f"{type(module).__name__} has no int8 form"
        else:
            continue
        if type(module) in table or type(module).__module__.startswith("torch.nn"):
            setattr(module, REASON, reason)


def convert(
    module: nn.Module,
    mapping: dict[type, Any] | None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    is_reference: bool = False,
    convert_custom_config_dict: dict[str, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """Turns a calibrated model into a quantized one.

    Args:
        mapping: float type to quantized type; the default table is
            :func:`~zeropoint.quantization.get_default_static_quant_module_mappings`.
        inplace: change the model itself rather than a copy.
        is_reference: float modules on dequantized weights (``nn.quantized.reference``) instead of int8 ones.
        remove_qconfig: take observers and qconfigs off afterwards.

    The result has ``quantization_report``: layer by layer int8, or float with the reason (also
    ``zeropoint.report(model)``, which adds the fallbacks counted since).

    Warns with the names of modules that were never calibrated. They get no scale: running one before a
    state_dict brings it raises :class:`~zeropoint.errors.UncalibratedError`.

    Raises:
        QuantizationError: a module cannot be converted.
    """
    if not inplace:
        module = copy.deepcopy(module)
    defaults = (
        get_default_static_quant_reference_module_mappings if is_reference else get_default_static_quant_module_mappings
    )
    table = defaults() if mapping is None else mapping
    config = get_default_custom_config_dict() if convert_custom_config_dict is None else convert_custom_config_dict
    custom = config.get("observed_to_quantized_custom_module_class", {})
    with warnings.catch_warnings():
        # The warning below names the modules; one per observer would only repeat it.
        warnings.filterwarnings("ignore", message="must run observer before calling calculate_qparams")
        if type(module) in table or type(module) in custom:
            module = swap_module(module, table, custom)
        else:
            _convert_children(module, table, custom)
    leave_fast_path(module)
    _say_why_float(module, table)
    uncalibrated = []
    for name, child in module.named_modules():
        if isinstance(child, (QuantizedOutput, nnq.Quantize)):
            child._qualified_name = name
        if (isinstance(child, QuantizedOutput) and not child._calibrated) or (
            isinstance(child, nnq.Quantize) and bool(torch.isnan(child.scale))
        ):
            uncalibrated.append(name or type(child).__name__)
    if uncalibrated:
        warnings.warn(
            f"convert: these modules were never calibrated and cannot run until a state_dict gives them scale and zero point: {', '.join(uncalibrated)}",
            stacklevel=2,
        )
    for child in module.modules():
        if isinstance(child, WeightedQuantizedModule):
            child.pack()  # here rather than at the first run, which may be a trace
    if remove_qconfig:
        finish_call_sites(module, keep_frames=bool(uncalibrated))
        _remove_observers(module)
        module.quantization_report = report(module)  # type: ignore[assignment]
    return module


def quantize(
    model: nn.Module,
    run_fn: Callable[..., Any],
    run_args: Any,
    mapping: dict[type, Any] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Post-training static quantization in one call: prepare, ``run_fn(model, *run_args)``, convert.

    ``run_args`` is a list or tuple of arguments; torch 1.3 passed the calibration data itself, which is
    recognised by ``run_fn`` being :func:`default_eval_fn`.
    """
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    prepare(model, inplace=True)
    if run_fn is default_eval_fn and not (isinstance(run_args, (list, tuple)) and len(run_args) == 1):
        run_fn(model, run_args)
    else:
        run_fn(model, *run_args)
    return convert(model, mapping, inplace=True)


def prepare_qat(model: nn.Module, mapping: dict[type, Any] | None = None, inplace: bool = False) -> nn.Module:
    """Prepares a model for quantization-aware training: QAT modules in place of float ones, and fake quantizes.

    Args:
        mapping: float type to QAT type, by default :func:`get_default_qat_module_mappings`.

    Raises:
        QuantizationError: the model is in eval mode.
    """
    if not model.training:
        raise QuantizationError("prepare_qat only works on models in training mode; call model.train() first")
    table = get_default_qat_module_mappings() if mapping is None else mapping
    if not inplace:
        model = copy.deepcopy(model)
    propagate_qconfig_(model)
    convert(model, mapping=table, inplace=True, remove_qconfig=False, convert_custom_config_dict={})
    return prepare(model, inplace=True, observer_non_leaf_module_list=set(table.values()))


def quantize_qat(model: nn.Module, run_fn: Callable[..., Any], run_args: Any, inplace: bool = False) -> nn.Module:
    """Quantization-aware training in one call: prepare_qat, ``run_fn(model, *run_args)``, convert."""
    if not inplace:
        model = copy.deepcopy(model)
    model.train()
    prepare_qat(model, inplace=True)
    run_fn(model, *run_args)
    return convert(model, inplace=True)


# What quantize_dynamic takes by default.
_DYNAMIC = (nn.Linear, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_EMBEDDINGS = (nn.EmbeddingBag, nn.Embedding)


def _dynamic_defaults(dtype: Any) -> tuple[tuple[type, ...], Any]:
    """Types and qconfig of a dtype, as torch has them."""
    if dtype == torch.float16:
        return _DYNAMIC, float16_dynamic_qconfig
    kind = as_qdtype(dtype) if is_qdtype(dtype) else None
    if kind is qint8:
        return _DYNAMIC, default_dynamic_qconfig
    if kind is quint8:
        return _EMBEDDINGS, float_qparams_weight_only_qconfig
    if kind is quint4x2:
        return _EMBEDDINGS, float_qparams_weight_only_qconfig_4bit
    raise QuantizationError(
        f"Unknown dtype specified for quantize_dynamic: {dtype!r}; use qint8, float16, or quint8 and quint4x2 for embeddings"
    )


_DYNAMIC_RECURRENT = (
    nnq.dynamic.LSTM, nnq.dynamic.GRU, nnq.dynamic.RNN, nnq.dynamic.LSTMCell, nnq.dynamic.GRUCell, nnq.dynamic.RNNCell
)  # fmt: skip


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Any = None,
    dtype: Any = qint8,
    mapping: dict[type, Any] | None = None,
    inplace: bool = False,
    per_row: bool = False,
    group_size: int | None = None,
) -> nn.Module:
    """int8 weights, activations quantized at run time to each input's range; no calibration.

    Args:
        qconfig_spec: set of module types or names, or a dict of those to qconfigs; by default every
            Linear, LSTM, GRU, RNN and cell (for quint8 and quint4x2: Embedding and EmbeddingBag).
        dtype: qint8; float16 to keep weights in half precision; quint8 or quint4x2 for embeddings.
        mapping: float type to dynamic type, by default :func:`get_default_dynamic_quant_module_mappings`.
        per_row: give each row (token) and each output channel of the weights a range of its own, instead of one
            per tensor as torch does. Nearer to float, most of all for language models, at the same speed.
        group_size: give each ``group_size`` inputs of a Linear (a multiple of 32 up to 256) a range of their own in
            each row; implies ``per_row``. Nearer still, a few per cent slower. Recurrent layers stay per row.

    Raises:
        QuantizationError: another dtype, or a requested type that has no dynamic form.
    """
    per_row = per_row or group_size is not None
    table = get_default_dynamic_quant_module_mappings() if mapping is None else mapping
    types, default = _dynamic_defaults(dtype)
    if per_row and default is default_dynamic_qconfig:
        default = per_channel_dynamic_qconfig
    if qconfig_spec is None:
        qconfig_spec = dict.fromkeys(types, default)
    elif not isinstance(qconfig_spec, dict):
        qconfig_spec = dict.fromkeys(qconfig_spec, default)
    names = dict(model.named_modules())
    for key, qconfig in qconfig_spec.items():
        wanted = type(names[key]) if key in names else key
        if (
            qconfig is not None
            and isinstance(wanted, type)
            and wanted not in table
            and ((key in names and not any(names[key].children())) or key not in names)
        ):
            raise QuantizationError(
                f"quantize_dynamic: {wanted.__name__} has no dynamic form; there are: {', '.join(t.__name__ for t in table)}"
            )
        if isinstance(key, str) and key not in names:
            raise QuantizationError(f"quantize_dynamic: the model has no submodule {key!r}")
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    propagate_qconfig_(model, qconfig_spec)
    model = convert(model, mapping=table, inplace=True)
    if per_row:
        _set_ranges_per_row(model, group_size)
    return model


def _set_ranges_per_row(module: nn.Module, group_size: int | None) -> None:
    """Every dynamic Linear per row and group; those inside recurrent layers per row, which is all that operator has."""
    if isinstance(module, nnq.dynamic.Linear):
        module.per_row, module.group_size = True, group_size
    recurrent = isinstance(module, _DYNAMIC_RECURRENT)
    for child in module.children():
        _set_ranges_per_row(child, None if recurrent else group_size)


def get_observer_dict(mod: nn.Module, target_dict: dict[str, nn.Module], prefix: str = "") -> None:
    """Collects the observers of a prepared model into ``target_dict`` by qualified name."""
    path = prefix + "." if prefix else prefix
    observer = getattr(mod, "activation_post_process", None)
    if observer is not None:
        target_dict[path + "activation_post_process"] = observer
    for name, child in mod.named_children():
        get_observer_dict(child, target_dict, path + name)
