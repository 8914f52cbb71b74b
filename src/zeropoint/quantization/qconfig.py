"""QConfig: which observers (or fake quantizes) a module's activations and weights get."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.quantization.fake_quantize import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    default_dynamic_fake_quant,
    default_embedding_fake_quant,
    default_embedding_fake_quant_4bit,
    default_fake_quant,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127,
)
from zeropoint.quantization.observer import (
    ClipWeightedHistogramObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    PlaceholderObserver,
    _PartialWrapper,
    default_debug_observer,
    default_dynamic_quant_observer,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_observer,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_weight_observer,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)
from zeropoint.tensor import qint8

__all__ = [
    "QConfig",
    "QConfigAny",
    "QConfigDynamic",
    "assert_valid_qconfig",
    "default_activation_only_qconfig",
    "default_debug_qconfig",
    "default_dynamic_qat_qconfig",
    "default_dynamic_qconfig",
    "default_embedding_qat_qconfig",
    "default_embedding_qat_qconfig_4bit",
    "default_per_channel_qconfig",
    "default_per_channel_symmetric_qnnpack_qat_qconfig",
    "default_per_channel_symmetric_qnnpack_qconfig",
    "default_qat_qconfig",
    "default_qat_qconfig_v2",
    "default_qconfig",
    "default_quint8_weight_qconfig",
    "default_reuse_input_qconfig",
    "default_symmetric_qnnpack_qat_qconfig",
    "default_symmetric_qnnpack_qconfig",
    "default_weight_only_qconfig",
    "float16_dynamic_qconfig",
    "float16_static_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "get_default_qat_qconfig",
    "get_default_qat_qconfig_dict",
    "get_default_qconfig",
    "get_default_qconfig_dict",
    "per_channel_dynamic_qconfig",
    "qconfig_equals",
]


class QConfig(namedtuple("QConfig", ["activation", "weight"])):
    """Constructors of the observer for activations and of the one for weights.

    They are classes or ``with_args`` results, not instances, since each module gets its own.
    """

    __slots__ = ()

    def __new__(cls, activation: Any, weight: Any) -> QConfig:
        if isinstance(activation, nn.Module) or isinstance(weight, nn.Module):
            raise QuantizationError(
                "QConfig received observer instance, please pass observer class instead. "
                "Use MyObserver.with_args(x=1) to override arguments to constructor if needed"
            )
        return super().__new__(cls, activation, weight)


class QConfigDynamic(namedtuple("QConfigDynamic", ["activation", "weight"])):
    """The older spelling of a dynamic qconfig, kept for code that has it."""

    __slots__ = ()

    def __new__(cls, activation: Any = nn.Identity, weight: Any = nn.Identity) -> QConfigDynamic:
        if isinstance(weight, nn.Module):
            raise QuantizationError(
                "QConfigDynamic received observer instance, please pass observer class instead. "
                "Use MyObserver.with_args(x=1) to override arguments to constructor if needed"
            )
        return super().__new__(cls, activation, weight)


QConfigAny = QConfig | None

default_qconfig = QConfig(default_observer, default_weight_observer)
default_debug_qconfig = QConfig(default_debug_observer, default_weight_observer)
default_per_channel_qconfig = QConfig(default_observer, default_per_channel_weight_observer)
default_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_weight_observer)
float16_dynamic_qconfig = QConfig(
    PlaceholderObserver.with_args(dtype=torch.float16, is_dynamic=True),
    PlaceholderObserver.with_args(dtype=torch.float16),
)
float16_static_qconfig = QConfig(
    PlaceholderObserver.with_args(dtype=torch.float16), PlaceholderObserver.with_args(dtype=torch.float16)
)
per_channel_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_per_channel_weight_observer)
float_qparams_weight_only_qconfig = QConfig(default_placeholder_observer, default_float_qparams_observer)
float_qparams_weight_only_qconfig_4bit = QConfig(default_placeholder_observer, default_float_qparams_observer_4bit)
default_qat_qconfig = QConfig(default_fake_quant, default_weight_fake_quant)
default_dynamic_qat_qconfig = QConfig(default_dynamic_fake_quant, default_weight_fake_quant)
default_weight_only_qconfig = QConfig(nn.Identity, default_weight_fake_quant)
default_activation_only_qconfig = QConfig(default_fake_quant, nn.Identity)
default_qat_qconfig_v2 = QConfig(default_fused_act_fake_quant, default_fused_wt_fake_quant)
default_reuse_input_qconfig = QConfig(default_reuse_input_observer, NoopObserver)
default_quint8_weight_qconfig = QConfig(HistogramObserver, MinMaxObserver)
default_embedding_qat_qconfig = QConfig(NoopObserver.with_args(dtype=torch.float32), default_embedding_fake_quant)
default_embedding_qat_qconfig_4bit = QConfig(
    NoopObserver.with_args(dtype=torch.float32), default_embedding_fake_quant_4bit
)

_symmetric_activation = HistogramObserver.with_args(dtype=qint8, reduce_range=False, eps=2**-12)
_symmetric_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=-128, quant_max=127, dtype=qint8, reduce_range=False, eps=2**-12
)
default_symmetric_qnnpack_qconfig = QConfig(_symmetric_activation, weight_observer_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(
    _symmetric_activation, per_channel_weight_observer_range_neg_127_to_127
)
default_symmetric_qnnpack_qat_qconfig = QConfig(_symmetric_fake_quant, fused_wt_fake_quant_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(
    _symmetric_fake_quant, fused_per_channel_wt_fake_quant_range_neg_127_to_127
)

_BACKENDS = ("x86", "fbgemm", "onednn", "qnnpack", "zeropoint")


def _check_backend(function: str, backend: str, version: int, versions: tuple[int, ...]) -> None:
    if backend not in _BACKENDS:
        raise QuantizationError(f"{function}: backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    if version not in versions:
        raise QuantizationError(f"{function}: version must be one of {versions}, got {version!r}")


def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """The qconfig for post-training quantization.

    Histogram observers over the full 8-bit range and weights per channel. Only ``"fbgemm"`` gives up
    one bit of the activations as torch's does: zeropoint's kernels never saturate and need no reserve.
    ``"qnnpack"`` has weights per tensor. ``"zeropoint"``, the default of :func:`zeropoint.quantize`, has ranges that clip less:
    :class:`ClipWeightedHistogramObserver`.

    Raises:
        QuantizationError: an unknown backend or version.
    """
    _check_backend("get_default_qconfig", backend, version, (0,))
    if backend == "fbgemm":
        return QConfig(HistogramObserver.with_args(reduce_range=True), default_per_channel_weight_observer)
    weight = default_weight_observer if backend == "qnnpack" else default_per_channel_weight_observer
    activation = ClipWeightedHistogramObserver if backend == "zeropoint" else HistogramObserver
    return QConfig(activation.with_args(reduce_range=False), weight)


def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """The qconfig for quantization-aware training; see :func:`get_default_qconfig` for the backends.

    ``version`` 0 has observer and fake quantize as modules of their own, 1 the fused one.
    """
    _check_backend("get_default_qat_qconfig", backend, version, (0, 1))
    fake_quantize = FusedMovingAvgObsFakeQuantize if version else FakeQuantize
    activation = fake_quantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, reduce_range=backend == "fbgemm"
    )
    if backend == "qnnpack":
        return QConfig(activation, default_fused_wt_fake_quant if version else default_weight_fake_quant)
    return QConfig(
        activation, default_fused_per_channel_wt_fake_quant if version else default_per_channel_weight_fake_quant
    )


def get_default_qconfig_dict(backend: str = "x86", version: int = 0) -> dict[str, Any]:
    """:func:`get_default_qconfig_mapping` as a dict."""
    from zeropoint.quantization.qconfig_mapping import get_default_qconfig_mapping

    return get_default_qconfig_mapping(backend, version).to_dict()


def get_default_qat_qconfig_dict(backend: str = "x86", version: int = 1) -> dict[str, Any]:
    """:func:`get_default_qat_qconfig_mapping` as a dict."""
    from zeropoint.quantization.qconfig_mapping import get_default_qat_qconfig_mapping

    return get_default_qat_qconfig_mapping(backend, version).to_dict()


def assert_valid_qconfig(qconfig: Any, mod: nn.Module) -> None:
    """Raises QuantizationError if ``qconfig`` cannot serve ``mod`` (ConvTranspose with per-channel weights of axis 0)."""
    if qconfig is None:
        return
    if not isinstance(qconfig, (QConfig, QConfigDynamic)):
        raise QuantizationError(f"qconfig must be a QConfig or None, got {type(qconfig).__name__}")


def _same_constructor(a: Any, b: Any) -> bool:
    if isinstance(a, _PartialWrapper) or isinstance(b, _PartialWrapper):
        return bool(a == b)
    return a is b


def qconfig_equals(q1: QConfigAny, q2: QConfigAny) -> bool:
    """Whether two qconfigs construct the same observers with the same arguments."""
    if q1 is None or q2 is None:
        return q1 is q2
    return _same_constructor(q1.activation, q2.activation) and _same_constructor(q1.weight, q2.weight)
