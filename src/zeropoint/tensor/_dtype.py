"""Quantized dtypes and schemes as plain values.

Torch's own tokens (``torch.quint8``, ``torch.per_tensor_affine`` ...) are accepted everywhere by
their name, and never touched as attributes, so nothing breaks when torch drops them.
"""

from __future__ import annotations

import enum
from typing import Any

import torch

from zeropoint.errors import QuantizationError
from zeropoint.tensor._callsite import current_frame

__all__ = [
    "QDtype",
    "QScheme",
    "as_qdtype",
    "as_qscheme",
    "is_per_channel",
    "is_per_tensor",
    "is_qdtype",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "qint4",
    "qint8",
    "qint32",
    "quint2x4",
    "quint4x2",
    "quint8",
]


class QDtype(enum.Enum):
    """A quantized dtype: ``bits`` wide integers in ``[quant_min, quant_max]``, kept in ``storage``.

    An enumeration, because torch.compile knows how to hold its members as constants.
    """

    quint8 = ("quint8", 8, False, torch.uint8)
    qint8 = ("qint8", 8, True, torch.int8)
    qint32 = ("qint32", 32, True, torch.int32)
    quint4x2 = ("quint4x2", 4, False, torch.uint8)
    quint2x4 = ("quint2x4", 2, False, torch.uint8)
    qint4 = ("qint4", 4, True, torch.int8)

    def __init__(self, label: str, bits: int, signed: bool, storage: torch.dtype) -> None:
        self.bits, self.signed, self.storage = bits, signed, storage

    @property
    def quant_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def itemsize(self) -> int:
        return self.storage.itemsize

    @property
    def is_floating_point(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"zeropoint.{self.name}"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``hidden.to(input.dtype)`` in a model whose input is quantized now: float values stay float32.

        They have no scale to be quantized with; the layer that they come to has.
        """
        if current_frame() is None:
            raise QuantizationError(
                f"{func.__name__}: {next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))} needs a scale; "
                "use zeropoint.quantize_per_tensor(x, scale, zero_point, dtype)"
            )
        in_float = lambda a: torch.float32 if isinstance(a, cls) else a
        return func(*map(in_float, args), **{k: in_float(v) for k, v in (kwargs or {}).items()})

    __str__ = __repr__


quint8 = QDtype.quint8
qint8 = QDtype.qint8
qint32 = QDtype.qint32
quint4x2 = QDtype.quint4x2
quint2x4 = QDtype.quint2x4
qint4 = QDtype.qint4


class QScheme(enum.Enum):
    """How scale and zero point vary over a tensor; names as in torch."""

    PER_TENSOR_AFFINE = "per_tensor_affine"
    PER_TENSOR_SYMMETRIC = "per_tensor_symmetric"
    PER_CHANNEL_AFFINE = "per_channel_affine"
    PER_CHANNEL_SYMMETRIC = "per_channel_symmetric"
    PER_CHANNEL_AFFINE_FLOAT_QPARAMS = "per_channel_affine_float_qparams"

    def __repr__(self) -> str:
        return f"zeropoint.{self.value}"

    __str__ = __repr__


per_tensor_affine = QScheme.PER_TENSOR_AFFINE
per_tensor_symmetric = QScheme.PER_TENSOR_SYMMETRIC
per_channel_affine = QScheme.PER_CHANNEL_AFFINE
per_channel_symmetric = QScheme.PER_CHANNEL_SYMMETRIC
per_channel_affine_float_qparams = QScheme.PER_CHANNEL_AFFINE_FLOAT_QPARAMS


def _token(value: object) -> str:
    return value if isinstance(value, str) else str(value).rpartition(".")[2]


def is_qdtype(dtype: object) -> bool:
    """Whether ``dtype`` is one of ours or torch's token of the same name."""
    return isinstance(dtype, QDtype) or (isinstance(dtype, (str, torch.dtype)) and _token(dtype) in QDtype.__members__)


def as_qdtype(dtype: object) -> QDtype:
    """Our dtype for ours, torch's token or a name.

    Raises:
        QuantizationError: for anything else.
    """
    if isinstance(dtype, QDtype):
        return dtype
    if is_qdtype(dtype):
        return QDtype[_token(dtype)]
    raise QuantizationError(f"dtype must be one of {', '.join(map(repr, QDtype))}, got {dtype!r}")


def as_qscheme(qscheme: object) -> QScheme:
    """Our scheme for ours, torch's token or a name. Raises QuantizationError for anything else."""
    if isinstance(qscheme, QScheme):
        return qscheme
    try:
        return QScheme(_token(qscheme))
    except ValueError:
        raise QuantizationError(f"qscheme must be one of {', '.join(map(repr, QScheme))}, got {qscheme!r}") from None


def is_per_tensor(qscheme: object) -> bool:
    return as_qscheme(qscheme) in (per_tensor_affine, per_tensor_symmetric)


def is_per_channel(qscheme: object) -> bool:
    return not is_per_tensor(qscheme)
