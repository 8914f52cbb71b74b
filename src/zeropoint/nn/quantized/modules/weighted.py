"""What Linear and Conv share: weights, output qparams, packing and their state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint import backend, ops
from zeropoint._reference.quantize import f32
from zeropoint.errors import QuantizationError, UncalibratedError
from zeropoint.ops.convolution import Packed
from zeropoint.tensor import (
    QDtype,
    QTensor,
    as_qdtype,
    check_scale,
    check_zero_point,
    is_per_channel,
    qint8,
    quantize_per_channel,
    quantize_per_tensor,
    quint8,
)

__all__ = [
    "FloatInput",
    "PackedOnUse",
    "QuantizedOutput",
    "WeightedQuantizedModule",
    "observed_qparams",
    "observer_qparams",
    "quantize_weight",
    "quantized_input",
    "relu_bound",
    "weight_observer",
]


def quantized_input(module: nn.Module, x: Any) -> QTensor:
    """``x`` if it is 8 bit per tensor; a float tensor quantized as calibration saw it come in.

    Raises:
        QuantizationError: another dtype, or a float tensor where calibration saw a quantized one.
    """
    if isinstance(x, QTensor) and x._axis is None and x._qdtype.bits == 8:
        return x
    qparams = getattr(module, "_input_qparams", None)
    if qparams is not None and isinstance(x, torch.Tensor) and not isinstance(x, QTensor) and x.is_floating_point():
        scale, zero_point, dtype = qparams
        return QTensor(
            ops.quantize_per_tensor(x.detach().float(), scale, zero_point, dtype.storage), scale, zero_point, dtype
        )
    name = getattr(module, "_qualified_name", "") or type(module).__name__
    given = f"{x.dtype!r} {x.qscheme()!r}" if isinstance(x, QTensor) else str(getattr(x, "dtype", type(x).__name__))
    raise QuantizationError(
        f"{name}: the input must be quint8 or qint8 quantized per tensor, got {given}. Put a QuantStub before this part of the "
        "model, or quantize the input with zeropoint.quantize_per_tensor"
    )


def observed_qparams(module: nn.Module) -> tuple[float, int, QDtype, bool]:
    """Scale, zero point, dtype of a float module's ``activation_post_process``, and whether it observed anything."""
    observer = getattr(module, "activation_post_process", None)
    if observer is None:
        raise QuantizationError(
            f"{type(module).__name__}.from_float: the module has no activation_post_process; run prepare() and calibrate first"
        )
    return observer_qparams(observer)


def observer_qparams(observer: Any) -> tuple[float, int, QDtype, bool]:
    """Scale, zero point, dtype of an observer, and whether it observed anything."""
    scale, zero_point = observer.calculate_qparams()
    return float(scale), int(zero_point), as_qdtype(observer.dtype), bool(getattr(observer, "calibrated", True))


def quantize_weight(weight: torch.Tensor, observer: Any) -> QTensor:
    """Float weight to int8 with the observer's qparams, per tensor or along its channel axis."""
    weight = weight.detach().float()
    if as_qdtype(observer.dtype) != qint8:
        raise QuantizationError(f"weights are quantized to qint8, the qconfig's weight observer has {observer.dtype!r}")
    observer(weight)  # a QAT observer that still listens takes in the final, folded weight, as torch's does
    scale, zero_point = observer.calculate_qparams()
    axis = getattr(observer, "ch_axis", -1)
    if scale.numel() == 1 and axis in (-1, None):
        result = quantize_per_tensor(weight, float(scale), int(zero_point), qint8)
    else:
        result = quantize_per_channel(weight, scale, zero_point.to(torch.int64), axis, qint8)
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if low is None or high is None or (low <= qint8.quant_min and high >= qint8.quant_max):
        return result
    return result.with_data(result._data.clamp(low, high))  # fewer bits, as the observer (and QAT) has them


def weight_observer(mod: nn.Module, inner: nn.Module, axis: int = 0) -> Any:
    """The weight's fake quantize of a QAT module, else a new observer from the qconfig; per channel it looks along ``axis``."""
    fake_quant = getattr(inner, "weight_fake_quant", None) or getattr(mod, "weight_fake_quant", None)
    if fake_quant is not None:
        return fake_quant
    qconfig = getattr(mod, "qconfig", None) or getattr(inner, "qconfig", None)
    if qconfig is None:
        raise QuantizationError(f"{type(mod).__name__}.from_float: the input float module must have qconfig defined")
    observer = qconfig.weight()
    if axis and is_per_channel(observer.qscheme):
        observer.ch_axis = axis
    return observer


def relu_bound(mod: nn.Module) -> float | None:
    """6.0 if the module's fused activation is a ReLU6, None for a plain ReLU or none."""
    return 6.0 if any(isinstance(child, nn.ReLU6) for child in mod.children()) else None


_State = dict[str, Any]


class FloatInput(nn.Module):
    """A module that takes float tensors too, if calibration saw it get them: quantized with the qparams seen.

    State, only if there are such qparams: ``input_scale``, ``input_zero_point``, ``input_signed``.
    """

    _input_qparams: tuple[float, int, QDtype] | None = None

    def set_input(self, scale: float, zero_point: int, dtype: QDtype) -> None:
        """Qparams for float inputs."""
        name = type(self).__name__
        self._input_qparams = (f32(check_scale(name, scale)), check_zero_point(name, zero_point, dtype), dtype)

    def _save_to_state_dict(self, destination: _State, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._input_qparams is not None:
            scale, zero_point, dtype = self._input_qparams
            destination[prefix + "input_scale"] = torch.tensor(scale)
            destination[prefix + "input_zero_point"] = torch.tensor(zero_point)
            destination[prefix + "input_signed"] = torch.tensor(dtype.signed)

    def _load_from_state_dict(
        self,
        state_dict: _State,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        values = [state_dict.get(prefix + name) for name in _INPUT_STATE]
        if all(v is not None for v in values):
            scale, zero_point, signed = values
            try:
                self.set_input(float(scale), int(zero_point), qint8 if bool(signed) else quint8)  # type: ignore[arg-type]
            except QuantizationError as error:
                error_msgs.append(f"{prefix}input_scale: {error}")
        rest = {k: v for k, v in state_dict.items() if k not in {prefix + name for name in _INPUT_STATE}}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


_INPUT_STATE = ("input_scale", "input_zero_point", "input_signed")


class QuantizedOutput(FloatInput):
    """A module that owns the scale and zero point of its output.

    Converted without calibration it has none: ``scale`` is NaN in the state_dict, and running it is an
    error that names it, until a state_dict or an assignment brings them.
    """

    _scale: float
    _zero_point: int
    _calibrated: bool
    _relu = False  # whether a ReLU is fused in

    def __init__(self) -> None:
        super().__init__()
        self._scale, self._zero_point, self._calibrated = 1.0, 0, True
        self._output_dtype = quint8
        self._qualified_name = ""
        self.relu_max: float | None = None  # 6.0 where the fused activation is a ReLU6
        self._clamp_key: tuple[Any, ...] = ()
        self._clamp_range = (0, 255)

    @property
    def scale(self) -> float:
        return self._scale

    @scale.setter
    def scale(self, value: Any) -> None:
        self._scale = f32(check_scale(type(self).__name__, value))
        self._calibrated = True

    @property
    def zero_point(self) -> int:
        return self._zero_point

    @zero_point.setter
    def zero_point(self, value: Any) -> None:
        # Assignment order must not matter: any of the two 8-bit ranges is fine here, the operator checks.
        number = int(value)
        if not -128 <= number <= 255:
            raise QuantizationError(f"{type(self).__name__}: zero_point {number} is outside the 8-bit ranges")
        self._zero_point = number
        if number < 0:
            self._output_dtype = qint8

    def set_output(self, scale: float, zero_point: int, dtype: QDtype, calibrated: bool) -> None:
        """Output qparams from an observer; ``calibrated`` False marks them as missing."""
        if dtype not in (quint8, qint8):
            raise QuantizationError(
                f"{type(self).__name__}: activations are quint8 or qint8, the qconfig's observer has {dtype!r}"
            )
        self._output_dtype = dtype
        self._scale = f32(check_scale(type(self).__name__, scale))
        self._zero_point = check_zero_point(type(self).__name__, zero_point, dtype)
        self._calibrated = calibrated

    def _clamp(self) -> tuple[int, int]:
        """Integer bounds of the output: the dtype's, cut by the fused ReLU or ReLU6."""
        key = (self._scale, self._zero_point, self._output_dtype, self.relu_max)
        if key != self._clamp_key:
            dtype = self._output_dtype
            low, high = self._zero_point if self._relu else dtype.quant_min, dtype.quant_max
            if self.relu_max is not None:
                high = int(
                    ops.quantize_per_tensor(torch.tensor([self.relu_max]), self._scale, self._zero_point, dtype.storage)
                )
            self._clamp_key, self._clamp_range = key, (low, high)
        return self._clamp_range

    def _require_calibration(self) -> None:
        raise UncalibratedError(
            f"{self._qualified_name or type(self).__name__}: this {type(self).__name__} was converted without calibration and has no "
            "output scale. Run calibration data through the prepared model before convert(), or load_state_dict() a calibrated one"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale"] = torch.tensor(self._scale if self._calibrated else float("nan"))
        destination[prefix + "zero_point"] = torch.tensor(self._zero_point)
        if self._output_dtype.signed:
            destination[prefix + "output_signed"] = torch.tensor(True)
        if self.relu_max is not None:
            destination[prefix + "relu_max"] = torch.tensor(self.relu_max)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        values: dict[str, Any] = {name: state_dict.get(prefix + name) for name in ("scale", "zero_point")}
        absent = [prefix + name for name, value in values.items() if value is None]
        if absent:
            missing_keys.extend(absent)
        else:
            signed = bool(state_dict.get(prefix + "output_signed", False)) or int(values["zero_point"]) < 0
            scale = float(values["scale"])
            try:
                self.set_output(
                    1.0 if scale != scale else scale,
                    int(values["zero_point"]),
                    qint8 if signed else quint8,
                    scale == scale,
                )
            except QuantizationError as error:
                error_msgs.append(f"{prefix}scale: {error}")
        relu_max = state_dict.get(prefix + "relu_max")
        self.relu_max = None if relu_max is None else float(relu_max)
        own = ("scale", "zero_point", "output_signed", "relu_max")
        # The keys read here must not count as unexpected: nn.Module only knows parameters and buffers.
        rest = {
            k: v for k, v in state_dict.items() if k not in {prefix + name for name in (*own, *self._state_names())}
        }
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _state_names(self) -> tuple[str, ...]:
        """Names of the state this class reads itself."""
        return ()


class PackedOnUse(nn.Module):
    """A module whose weight is packed for the instruction set in use when it first runs, and again for another."""

    _packed: Packed | None = None
    _packed_layout = -1

    def _pack_weight(self) -> Packed:
        raise NotImplementedError

    def pack(self) -> Packed:
        """Packs the weight for the instruction set in use, unless it is already; running does so by itself.

        An exported graph has the packing in it: it may run on another CPU.
        """
        if torch.compiler.is_exporting():
            return self._pack_weight()
        if self._packed is None or self._packed_layout != backend.layout_id():
            self._packed, self._packed_layout = self._pack_weight(), backend.layout_id()
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights belong to this process's instruction set; they are made again.
        return {**self.__dict__, "_packed": None, "_packed_layout": -1}


class WeightedQuantizedModule(PackedOnUse, QuantizedOutput):
    """Linear and convolutions: int8 weight, float bias, packed for the instruction set on first use.

    State: ``weight`` (int8), ``weight_scale`` (float32, 0-d or one per output channel),
    ``weight_zero_point`` (int64, same shape, or 0-d if all are 0), ``bias`` (float32, if any), ``scale``, ``zero_point``:
    plain tensors only, never the packed form. A quantized tensor under ``weight`` is read too.
    """

    _weight: QTensor
    _bias: torch.Tensor | None
    _weight_axis = 0  # of the output channels

    def set_weight_bias(self, w: QTensor, b: torch.Tensor | None) -> None:
        """Sets weight (qint8, per tensor or per channel of its output channels' axis) and float bias.

        Raises:
            QuantizationError: another dtype, axis or shape, or weights whose sums overflow int32.
        """
        name = type(self).__name__
        if not isinstance(w, QTensor) or w._qdtype != qint8:
            raise QuantizationError(
                f"{name}.set_weight_bias: the weight must be a qint8 quantized tensor, got {getattr(w, 'dtype', type(w).__name__)!r}"
            )
        if w._axis not in (None, self._weight_axis):
            raise QuantizationError(
                f"{name}.set_weight_bias: per-channel weights must have axis {self._weight_axis}, got axis {w._axis}"
            )
        if tuple(w.shape) != self._weight_shape():
            raise QuantizationError(
                f"{name}.set_weight_bias: the weight must have shape {self._weight_shape()}, got {tuple(w.shape)}"
            )
        if b is not None and tuple(b.shape) != (self._outputs(),):
            raise QuantizationError(
                f"{name}.set_weight_bias: the bias must have shape {(self._outputs(),)}, got {tuple(b.shape)}"
            )
        self._weight = w
        self._bias = None if b is None else b.detach().float().contiguous()
        scale = torch.tensor([w._scale], dtype=torch.float32) if w._axis is None else w._scale
        zero_point = torch.tensor([w._zero_point]) if w._axis is None else w._zero_point.to(torch.int64)
        self._int_weight, self._w_scale, zero_point = self._kernel_form(w._data, scale, zero_point)
        self._w_zero_point = zero_point if bool((zero_point != 0).any()) else None
        self._packed = None

    def _outputs(self) -> int:
        """Number of output channels."""
        return self._weight_shape()[0]

    def _kernel_form(
        self, data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weight, scales and zero points as the operator takes them."""
        return data.contiguous(), scale.contiguous(), zero_point.contiguous()

    def weight(self) -> QTensor:
        return self._weight

    def bias(self) -> torch.Tensor | None:
        return self._bias

    def _weight_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _ready(self) -> Packed:
        if not self._calibrated:
            self._require_calibration()
        return self.pack()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        w = self._weight
        destination[prefix + "weight"] = w._data
        destination[prefix + "weight_scale"] = torch.tensor(w._scale) if w._axis is None else w._scale
        destination[prefix + "weight_zero_point"] = (
            torch.tensor(0)
            if self._w_zero_point is None
            else torch.tensor(w._zero_point)
            if w._axis is None
            else w._zero_point.to(torch.int64)
        )
        if self._bias is not None:
            destination[prefix + "bias"] = self._bias

    def _state_names(self) -> tuple[str, ...]:
        return ("weight", "weight_scale", "weight_zero_point", "bias")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
        if isinstance(weight, QTensor):
            loaded = weight
        else:
            scale, zero_point = (state_dict.get(prefix + name) for name in ("weight_scale", "weight_zero_point"))
            absent = [
                n
                for n, v in (("weight", weight), ("weight_scale", scale), ("weight_zero_point", zero_point))
                if v is None
            ]
            if absent:
                if "weight" not in absent and weight.is_floating_point():  # type: ignore[union-attr]
                    error_msgs.append(
                        f"{prefix}weight: this is a float checkpoint; quantize the float model, or load a quantized one"
                    )
                missing_keys.extend(prefix + name for name in absent)
                return
            try:
                loaded = self._assemble(weight, scale, zero_point)  # type: ignore[arg-type]
            except QuantizationError as error:
                error_msgs.append(f"{prefix}weight: {error}")
                return
        try:
            self.set_weight_bias(loaded, bias)
        except QuantizationError as error:
            error_msgs.append(f"{prefix}weight: {error}")

    def _assemble(self, weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> QTensor:
        from zeropoint.tensor import make_per_channel_quantized_tensor, make_per_tensor_quantized_tensor

        if scale.dim() == 0:
            return make_per_tensor_quantized_tensor(weight, scale, zero_point)
        return make_per_channel_quantized_tensor(weight, scale, zero_point.expand(scale.shape), self._weight_axis)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightedQuantizedModule:
        import copy

        result = type(self).__new__(type(self))
        memo[id(self)] = result
        for key, value in self.__getstate__().items():
            result.__dict__[key] = copy.deepcopy(value, memo)
        return result

    def _output(self, data: torch.Tensor) -> QTensor:
        return QTensor(data, self._scale, self._zero_point, self._output_dtype)
