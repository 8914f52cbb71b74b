"""Old checkpoints of torch's quantization as state_dicts and modules of zeropoint.

    state = zeropoint.compat.load_state_dict("old.pt")     # for a model converted with zeropoint
    model = zeropoint.compat.load_model("whole_model.pt", classes={"mypackage.net.Net": Net})

Neither needs torch's quantized dtypes, nor runs code that the file brings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zeropoint.compat.unpickle import OldModule, PackedObject, read
from zeropoint.errors import QuantizationError
from zeropoint.nn import quantized as nnq
from zeropoint.nn.intrinsic import quantized as nniq
from zeropoint.nn.intrinsic.quantized import dynamic as nniqd
from zeropoint.nn.quantized import dynamic as nnqd
from zeropoint.quantization.stubs import DeQuantStub, QuantStub, QuantWrapper
from zeropoint.tensor import QTensor

__all__ = ["convert_state_dict", "load_model", "load_state_dict"]

_State = dict[str, Any]


def load_state_dict(path: str | Path) -> _State:
    """The state_dict of an old file in the layout of zeropoint's modules: plain tensors only.

    Raises:
        QuantizationError: the file holds no state_dict (see :func:`load_model`), or cannot be read.
    """
    content = read(path)
    for key in ("state_dict", "model_state_dict", "model"):  # how training scripts wrap them
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise QuantizationError(f"{path}: holds a {type(content).__name__}, not a state_dict; use compat.load_model")
    return convert_state_dict(content)


def _weight_entries(prefix: str, weight: Any, bias: Any) -> _State:
    """``weight``, ``weight_scale``, ``weight_zero_point`` and ``bias`` of a module."""
    state: _State = {}
    if isinstance(weight, QTensor):
        per_tensor = weight._axis is None
        state[f"{prefix}weight"] = weight._data
        state[f"{prefix}weight_scale"] = torch.tensor(weight._scale) if per_tensor else weight._scale
        zero_point = torch.tensor(weight._zero_point) if per_tensor else weight._zero_point.to(torch.int64)
        state[f"{prefix}weight_zero_point"] = torch.tensor(0) if not bool((zero_point != 0).any()) else zero_point
    else:
        state[f"{prefix}weight"] = weight
    if bias is not None:
        state[f"{prefix}bias"] = bias.detach()
    return state


def _packed_linear(packed: Any) -> tuple[Any, Any]:
    """Weight and bias of packed parameters, whichever form the file's version had."""
    if isinstance(packed, PackedObject):
        packed = packed.state
    if isinstance(packed, (tuple, list)) and len(packed) == 2:
        return packed[0], packed[1]
    raise QuantizationError("checkpoint: packed parameters of an unknown form")


def _packed_cell(packed: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(weight, bias) of the input side and of the state side of one layer and direction."""
    if not isinstance(packed, PackedObject) or not isinstance(packed.state, tuple) or len(packed.state) < 5:
        raise QuantizationError("checkpoint: recurrent parameters of an unknown form")
    kind, tensors, _doubles, _longs, inner = packed.state[:5]
    if kind in ("quantized_dynamic", "quantized_fp16"):
        return _packed_linear(inner[0]), _packed_linear(inner[1])
    raise QuantizationError(f"checkpoint: recurrent parameters of kind {kind!r} ({len(tensors)} tensors) are not known")


def convert_state_dict(state: _State) -> _State:
    """An old state_dict, as :func:`~zeropoint.compat.unpickle.read` gives it, in zeropoint's layout.

    What is not quantized comes through as it is. Keys of ELU, Sigmoid, Softmax and PReLU are not there to be
    converted: torch never stored their scale; ``model.load_state_dict`` will name them as missing.
    """
    result: _State = OrderedDict()
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        prefix = f"{prefix}." if prefix else ""
        if name == "_packed_params" and prefix.endswith("_packed_params."):
            result.update(_weight_entries(prefix.removesuffix("_packed_params."), *_packed_linear(value)))
        elif name == "_packed_weight" and prefix.endswith("_packed_params."):
            result.update(_embedding_entries(prefix.removesuffix("_packed_params."), value))
        elif name == "dtype" and prefix.endswith("_packed_params."):
            continue
        elif name == "param" and "._all_weight_values." in f".{prefix}":
            owner, _, index = prefix.rstrip(".").rpartition("_all_weight_values.")
            for side, (weight, bias) in zip(("ih", "hh"), _packed_cell(value), strict=True):
                result.update(_weight_entries(f"{owner}layers.{index}.{side}.", weight, bias))
                result.update(_unused_output(f"{owner}layers.{index}.{side}."))
        elif name in ("_packed_weight_ih", "_packed_weight_hh"):
            side = f"{prefix}{name[-2:]}."
            result.update(_weight_entries(side, *_packed_linear(value)))
            result.update(_unused_output(side))
        elif isinstance(value, QTensor):
            result.update(_weight_entries(prefix, value, None) if name == "weight" else {key: value})
        elif isinstance(value, torch.Tensor):
            result[key] = value.detach()
        elif value is None:
            continue
        else:
            result[key] = value
    return result


def _unused_output(prefix: str) -> _State:
    return {f"{prefix}scale": torch.tensor(1.0), f"{prefix}zero_point": torch.tensor(0)}


def _embedding_entries(prefix: str, weight: QTensor) -> _State:
    rows, width = weight.shape
    module = nnq.Embedding(rows, width, _weight=weight, dtype=weight._qdtype)
    return {f"{prefix}{k}": v for k, v in module.state_dict().items()}


# -- whole modules --------------------------------------------------------------------------------------


def load_model(path: str | Path, classes: dict[str, type] | None = None) -> nn.Module:
    """A whole pickled module with its quantized layers replaced by zeropoint's.

    Args:
        classes: classes of the model's author that the file names, by qualified name.

    Raises:
        QuantizationError: the file holds no module, names unknown classes, or has a layer with no counterpart.
    """
    content = read(path, classes)
    if not isinstance(content, (OldModule, nn.Module)):
        raise QuantizationError(f"{path}: holds a {type(content).__name__}, not a module; use compat.load_state_dict")
    return _rebuilt("", content)


def _rebuilt(name: str, module: Any) -> Any:
    if isinstance(module, OldModule):
        builder = _BUILDERS.get(module.class_name)
        if builder is None:
            raise QuantizationError(
                f"checkpoint: {name or 'the model'} is a {module.qualified_name}, which has no counterpart"
            )
        new = builder(module)
        if isinstance(module.state, dict):
            new.training = bool(module.state.get("training", False))
        return new
    for child_name, child in list(module._modules.items()):
        if child is not None:
            module._modules[child_name] = _rebuilt(f"{name}.{child_name}" if name else child_name, child)
    return module


def _is_dynamic(old: OldModule) -> bool:
    return ".dynamic" in old.qualified_name


def _linear(old: OldModule) -> Any:
    state = old.state
    weight, bias = _packed_linear(state["_modules"]["_packed_params"].state["_packed_params"])
    package: Any = nnqd if _is_dynamic(old) else nnq
    if old.class_name == "LinearReLU":
        package = nniqd if _is_dynamic(old) else nniq
    elif old.class_name in ("LinearLeakyReLU", "LinearTanh"):
        package = nniq
    extra = [state["negative_slope"]] if old.class_name == "LinearLeakyReLU" else []
    new = getattr(package, old.class_name)(state["in_features"], state["out_features"], *extra, bias is not None)
    new.set_weight_bias(weight, bias)
    if not _is_dynamic(old):
        new.scale, new.zero_point = state["scale"], state["zero_point"]
    return new


def _conv(old: OldModule) -> Any:
    (
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        mode,
        weight,
        bias,
        scale,
        zero_point,
    ) = old.state[:14]
    package: Any = nnqd if _is_dynamic(old) else nniq if old.class_name.startswith(("ConvReLU", "ConvAdd")) else nnq
    cls = getattr(package, old.class_name)
    head = (inputs, outputs, kernel, stride, padding)
    if transposed:
        new = cls(*head, output_padding, groups, bias is not None, dilation, mode)
    else:
        new = cls(*head, dilation, groups, bias is not None, mode)
    new.set_weight_bias(weight, bias)
    new.scale, new.zero_point = scale, zero_point
    return new


def _recurrent(old: OldModule) -> Any:
    state = old.state
    new = getattr(nnqd, old.class_name)(
        state["input_size"], state["hidden_size"], state["num_layers"], state["bias"], state["batch_first"], state["dropout"],
        state["bidirectional"],
    )  # fmt: skip
    values = state["_modules"]["_all_weight_values"]
    for index, parameter in enumerate(values._modules.values()):
        packed = parameter.state["param"] if isinstance(parameter.state, dict) else parameter.state[0]
        for side, (weight, bias) in zip(("ih", "hh"), _packed_cell(packed), strict=True):
            new.layers[index][side].set_weight_bias(weight, bias)
    return new


def _cell(old: OldModule) -> Any:
    state = old.state
    new = getattr(nnqd, old.class_name)(state["input_size"], state["hidden_size"], state["bias"])
    for side in ("ih", "hh"):
        getattr(new, side).set_weight_bias(*_packed_linear(state[f"_packed_weight_{side}"]))
    if "nonlinearity" in state:
        new.nonlinearity = state["nonlinearity"]
    return new


def _embedding(old: OldModule) -> Any:
    state, packed = old.state, old.state["_modules"]["_packed_params"].state
    weight = packed["_packed_weight"]
    while isinstance(weight, PackedObject):
        weight = weight.state
    if isinstance(weight, (tuple, list)):
        weight = next(
            (
                t
                for part in weight
                for t in (part if isinstance(part, (tuple, list)) else [part])
                if isinstance(t, QTensor)
            ),
            None,
        )
    if not isinstance(weight, QTensor):
        raise QuantizationError(f"checkpoint: the packed weight of {old.qualified_name} is of an unknown form")
    options: dict[str, Any] = {}
    if old.class_name == "EmbeddingBag":
        options = {"mode": state.get("mode", "sum"), "include_last_offset": state.get("include_last_offset", False)}
    cls = getattr(nnq, old.class_name)
    return cls(state["num_embeddings"], state["embedding_dim"], _weight=weight, dtype=weight._qdtype, **options)


def _quantize(old: OldModule) -> Any:
    buffers = old.state["_buffers"]
    return nnq.Quantize(buffers["scale"], buffers["zero_point"], old.state["dtype"])


def _scale_of(old: OldModule) -> tuple[float, int]:
    values = {**old.state.get("_buffers", {}), **old.state}
    for scale, zero_point in (("scale", "zero_point"), ("output_scale", "output_zero_point")):
        if scale in values:
            return float(values[scale]), int(values[zero_point])
    raise QuantizationError(f"checkpoint: {old.qualified_name} has no scale")


def _activation(*arguments: str) -> Callable[[OldModule], Any]:
    def build(old: OldModule) -> Any:
        return getattr(nnq, old.class_name)(*_scale_of(old), *[old.state[a] for a in arguments])

    return build


def _prelu(old: OldModule) -> Any:
    new = nnq.PReLU(*_scale_of(old), old.state["num_parameters"])
    new.set_weight(old.state["weight"])
    return new


def _norm(old: OldModule) -> Any:
    state = old.state
    parameters = {**state.get("_buffers", {}), **state.get("_parameters", {})}
    weight, bias = parameters.get("weight"), parameters.get("bias")
    cls = getattr(nnq, old.class_name)
    if old.class_name == "LayerNorm":
        return cls(state["normalized_shape"], weight, bias, *_scale_of(old), state["eps"], state["elementwise_affine"])
    if old.class_name == "GroupNorm":
        return cls(
            state["num_groups"], state["num_channels"], weight, bias, *_scale_of(old), state["eps"], state["affine"]
        )
    return cls(state["num_features"], weight, bias, *_scale_of(old), state["eps"], state["momentum"], state["affine"])


def _batch_norm(old: OldModule) -> Any:
    state = old.state
    new = getattr(nniq if old.class_name.startswith("BNReLU") else nnq, old.class_name)(
        state["num_features"], state["eps"]
    )
    parameters = {**state.get("_buffers", {}), **state.get("_parameters", {})}
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(new, name).copy_(parameters[name])
    new.scale, new.zero_point = _scale_of(old)
    return new


def _functional(old: OldModule) -> Any:
    new = nnq.QFunctional()
    new.scale, new.zero_point = _scale_of(old)
    return new


def _wrapper(old: OldModule) -> Any:
    children = {name: _rebuilt(name, child) for name, child in old.state["_modules"].items() if child is not None}
    new = QuantWrapper(nn.Identity())
    new._modules.update(children)
    return new


def _softmax(old: OldModule) -> Any:
    return nnq.Softmax(old.state.get("dim"), *_scale_of(old))


_BUILDERS: dict[str, Callable[[OldModule], Any]] = {
    **dict.fromkeys(("Linear", "LinearReLU", "LinearLeakyReLU", "LinearTanh"), _linear),
    **dict.fromkeys(
        (
            "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "ConvReLU1d", "ConvReLU2d",
            "ConvReLU3d", "ConvAdd2d", "ConvAddReLU2d",
        ),
        _conv,
    ),
    **dict.fromkeys(("LSTM", "GRU"), _recurrent),
    **dict.fromkeys(("LSTMCell", "GRUCell", "RNNCell"), _cell),
    **dict.fromkeys(("Embedding", "EmbeddingBag"), _embedding),
    "Quantize": _quantize,
    "DeQuantize": lambda old: nnq.DeQuantize(),
    "QuantStub": lambda old: QuantStub(),
    "DeQuantStub": lambda old: DeQuantStub(),
    "QuantWrapper": _wrapper,
    "ReLU6": lambda old: nnq.ReLU6(bool(old.state.get("inplace", False))),
    "Dropout": lambda old: nnq.Dropout(old.state.get("p", 0.5)),
    "ELU": _activation("alpha"),
    "Hardswish": _activation(),
    "LeakyReLU": _activation("negative_slope"),
    "Sigmoid": _activation(),
    "Softmax": _softmax,
    "PReLU": _prelu,
    **dict.fromkeys(("LayerNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), _norm),
    **dict.fromkeys(("BatchNorm2d", "BatchNorm3d", "BNReLU2d", "BNReLU3d"), _batch_norm),
    "QFunctional": _functional,
    "FloatFunctional": lambda old: nnq.FloatFunctional(),
}  # fmt: skip
