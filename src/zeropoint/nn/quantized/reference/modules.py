"""The reference modules, all by one rule: weights go through quantize and dequantize before the float layer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from zeropoint.errors import QuantizationError
from zeropoint.tensor import (
    QTensor,
    as_qdtype,
    as_qscheme,
    is_per_channel,
    is_qdtype,
    per_tensor_affine,
    quantize_per_channel,
    quantize_per_tensor,
    quint8,
)

__all__ = [
    "GRU",
    "LSTM",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "RNNCell",
    "quantize_weight_by",
]


def quantize_weight_by(weight: torch.Tensor, qparams: dict[str, Any]) -> torch.Tensor:
    """``weight`` quantized as ``qparams`` say: qscheme, dtype, scale, zero_point, axis.

    A float dtype (float16) gives the weight rounded to that.

    Raises:
        QuantizationError: qparams without a scale.
    """
    dtype = qparams.get("dtype", quint8)
    if not is_qdtype(dtype):
        return weight.to(dtype).float()
    if qparams.get("scale") is None:
        raise QuantizationError("reference module: weight_qparams need scale and zero_point")
    scale, zero_point = (torch.as_tensor(qparams[k]) for k in ("scale", "zero_point"))
    if is_per_channel(as_qscheme(qparams.get("qscheme", per_tensor_affine))):
        return quantize_per_channel(weight.detach(), scale, zero_point, int(qparams.get("axis", 0)), as_qdtype(dtype))
    return quantize_per_tensor(weight.detach(), scale, zero_point, as_qdtype(dtype))


def _reals(weight: torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QTensor) else weight


class _Reference:
    """Mixed into a float module with the parameter ``weight``."""

    _IS_REFERENCE = True
    weight_qparams: dict[str, Any]

    def _init_weight_qparams(self, weight_qparams: dict[str, Any] | None) -> None:
        default = {"qscheme": per_tensor_affine, "dtype": quint8, "scale": 1.0, "zero_point": 0}
        self.weight_qparams = dict(default if weight_qparams is None else weight_qparams)

    def get_quantized_weight(self) -> torch.Tensor:
        """The weight as a quantized tensor."""
        return quantize_weight_by(self.weight, self.weight_qparams)

    def get_weight(self) -> torch.Tensor:
        """The weight after quantize and dequantize."""
        return _reals(self.get_quantized_weight())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weight: torch.Tensor = self._parameters["weight"]  # type: ignore[attr-defined]
        del self._parameters["weight"]  # type: ignore[attr-defined]
        try:
            self.weight = _reals(quantize_weight_by(weight, self.weight_qparams))
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__.pop("weight", None)
            self._parameters["weight"] = weight  # type: ignore[attr-defined]

    def _get_name(self) -> str:
        return f"QuantizedReference{type(self).__name__}"


def _reference(float_class: Any) -> Any:
    """The reference class of a float class with one weight: its constructor and ``weight_qparams``."""

    class Reference(_Reference, float_class):  # type: ignore[misc]
        def __init__(self, *args: Any, weight_qparams: dict[str, Any] | None = None, **kwargs: Any) -> None:
            if "bias_" in kwargs:
                kwargs["bias"] = kwargs.pop("bias_")
            float_class.__init__(self, *args, **kwargs)
            self._init_weight_qparams(weight_qparams)

        @classmethod
        def from_float(cls, mod: Any, weight_qparams: dict[str, Any], *unused: Any) -> Any:
            """Shares the parameters of ``mod``."""
            result = cls.__new__(cls)
            nn.Module.__init__(result)
            own = {k: v for k, v in mod.__dict__.items() if not k.startswith("_") and k != "qconfig"}
            result.__dict__.update(own)
            for name in ("_reversed_padding_repeated_twice", "_parameters"):
                if name in mod.__dict__:
                    result.__dict__[name] = dict(mod.__dict__[name]) if name == "_parameters" else mod.__dict__[name]
            result._init_weight_qparams(weight_qparams)
            return result

    Reference.__name__ = Reference.__qualname__ = float_class.__name__
    Reference.__module__ = __name__
    Reference.__doc__ = f"``torch.nn.{float_class.__name__}`` on a weight rounded to its integer grid."
    _sign(Reference, float_class, "weight_qparams")
    return Reference


def _sign(reference: Any, float_class: Any, extra: str) -> None:
    """The float class's signature and the qparams behind it, for help() and inspect."""
    own = [p for p in inspect.signature(float_class).parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameter = inspect.Parameter(extra, inspect.Parameter.KEYWORD_ONLY, default=None)
    reference.__signature__ = inspect.Signature([*own, parameter])


Linear = _reference(nn.Linear)
Conv1d = _reference(nn.Conv1d)
Conv2d = _reference(nn.Conv2d)
Conv3d = _reference(nn.Conv3d)
ConvTranspose1d = _reference(nn.ConvTranspose1d)
ConvTranspose2d = _reference(nn.ConvTranspose2d)
ConvTranspose3d = _reference(nn.ConvTranspose3d)
Embedding = _reference(nn.Embedding)
EmbeddingBag = _reference(nn.EmbeddingBag)


class _ReferenceRecurrent:
    """Mixed into recurrent layers and cells: every parameter named ``weight*`` has qparams of its own."""

    weight_qparams_dict: dict[str, Any]

    def _weights(self) -> dict[str, torch.Tensor]:
        named = dict(self.named_parameters(recurse=False))  # type: ignore[attr-defined]
        return {
            name: quantize_weight_by(p, self.weight_qparams_dict[name])
            for name, p in named.items()
            if name.startswith("weight") and name in self.weight_qparams_dict
        }

    def get_quantized_weight_bias_dict(self) -> dict[str, Any]:
        """Quantized weights and float biases by name."""
        biases = {k: v for k, v in self.named_parameters(recurse=False) if k.startswith("bias")}  # type: ignore[attr-defined]
        return {"weight": self._weights(), "bias": biases}

    def get_flat_weights(self) -> list[torch.Tensor]:
        """The weights after quantize and dequantize, and biases, in the float layer's order."""
        weights = {name: _reals(w) for name, w in self._weights().items()}
        return [weights.get(name, p) for name, p in self.named_parameters(recurse=False)]  # type: ignore[attr-defined]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        float_class: Any = type(self).__mro__[2]
        plain = self.__dict__.setdefault("_plain", _like(float_class, self))
        values = dict(self.named_parameters(recurse=False))  # type: ignore[attr-defined]
        values.update({name: _reals(w) for name, w in self._weights().items()})
        return functional_call(plain, values, args, kwargs)

    def _get_name(self) -> str:
        return f"QuantizedReference{type(self).__name__}"


def _like(float_class: Any, mod: Any) -> nn.Module:
    if issubclass(float_class, nn.RNNCellBase):
        options = {"nonlinearity": mod.nonlinearity} if float_class is nn.RNNCell else {}
        return float_class(mod.input_size, mod.hidden_size, mod.bias, **options)
    return float_class(
        mod.input_size, mod.hidden_size, mod.num_layers, mod.bias, mod.batch_first, mod.dropout, mod.bidirectional
    )


def _reference_recurrent(float_class: Any) -> Any:
    class Reference(_ReferenceRecurrent, float_class):  # type: ignore[misc]
        def __init__(self, *args: Any, weight_qparams_dict: dict[str, Any] | None = None, **kwargs: Any) -> None:
            float_class.__init__(self, *args, **kwargs)
            default = {"qscheme": per_tensor_affine, "dtype": quint8, "scale": 1.0, "zero_point": 0}
            names = [n for n, _ in self.named_parameters(recurse=False) if n.startswith("weight")]
            self.weight_qparams_dict = dict(weight_qparams_dict or dict.fromkeys(names, default))

        @classmethod
        def from_float(cls, mod: Any, weight_qparams_dict: dict[str, Any], *unused: Any) -> Any:
            """A copy of ``mod`` with qparams for its weights."""
            plain = _like(float_class, mod)
            arguments = [mod.input_size, mod.hidden_size]
            if isinstance(plain, nn.RNNCellBase):
                arguments += [mod.bias] + ([mod.nonlinearity] if float_class is nn.RNNCell else [])
            else:
                arguments += [mod.num_layers, mod.bias, mod.batch_first, mod.dropout, mod.bidirectional]
            result = cls(*arguments, weight_qparams_dict=weight_qparams_dict)
            result.load_state_dict(mod.state_dict())
            return result

    Reference.__name__ = Reference.__qualname__ = float_class.__name__
    Reference.__module__ = __name__
    Reference.__doc__ = f"``torch.nn.{float_class.__name__}`` on weights rounded to their integer grids."
    _sign(Reference, float_class, "weight_qparams_dict")
    return Reference


LSTM = _reference_recurrent(nn.LSTM)
GRU = _reference_recurrent(nn.GRU)
LSTMCell = _reference_recurrent(nn.LSTMCell)
GRUCell = _reference_recurrent(nn.GRUCell)
RNNCell = _reference_recurrent(nn.RNNCell)
