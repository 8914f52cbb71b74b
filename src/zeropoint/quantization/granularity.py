"""Granularities and the other descriptive types of torch's affine observers (``torch.ao.quantization.observer``)."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.quantization.observer import _with_args

__all__ = [
    "AffineQuantizedObserverBase",
    "Granularity",
    "MappingType",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "TorchAODType",
    "ZeroPointDomain",
    "get_block_size",
]


class MappingType(enum.Enum):
    """How reals map to integers."""

    SYMMETRIC = enum.auto()
    SYMMETRIC_NO_CLIPPING_ERR = enum.auto()
    ASYMMETRIC = enum.auto()


class ZeroPointDomain(enum.Enum):
    """Whether the zero point is an integer, a float, or absent."""

    INT = enum.auto()
    FLOAT = enum.auto()
    NONE = enum.auto()


class TorchAODType(enum.Enum):
    """Names of narrow integers."""

    INT1 = enum.auto()
    INT2 = enum.auto()
    INT3 = enum.auto()
    INT4 = enum.auto()
    INT5 = enum.auto()
    INT6 = enum.auto()
    INT7 = enum.auto()


@dataclass(frozen=True)
class Granularity:
    """Which elements share qparams."""


@dataclass(frozen=True)
class PerTensor(Granularity):
    """All of them."""


@dataclass(frozen=True)
class PerAxis(Granularity):
    """Those of one index of ``axis``."""

    axis: int


@dataclass(frozen=True)
class PerBlock(Granularity):
    """Those of a block of ``block_size``."""

    block_size: tuple[int, ...]


@dataclass(frozen=True)
class PerGroup(Granularity):
    """``group_size`` neighbours of the last dimension."""

    group_size: int


class PerRow(Granularity):
    """Those of one row of the last dimension."""


class PerToken(Granularity):
    """Those of one row of the last dimension, of an activation."""


def get_block_size(input_shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The shape of the blocks that share qparams.

    Raises:
        QuantizationError: an unknown granularity, or a shape that its blocks do not divide.
    """
    shape = tuple(input_shape)
    if isinstance(granularity, PerTensor):
        return shape
    if isinstance(granularity, PerAxis):
        return tuple(1 if i == granularity.axis % len(shape) else n for i, n in enumerate(shape))
    if isinstance(granularity, (PerRow, PerToken)):
        return (1,) * (len(shape) - 1) + (shape[-1],)
    if isinstance(granularity, PerGroup):
        if shape[-1] % granularity.group_size:
            raise QuantizationError(
                f"group_size {granularity.group_size} does not divide the last dimension of {shape}"
            )
        return (1,) * (len(shape) - 1) + (granularity.group_size,)
    if isinstance(granularity, PerBlock):
        block = granularity.block_size
        if len(block) != len(shape) or any(n % b for n, b in zip(shape, block, strict=True)):
            raise QuantizationError(f"block_size {block} does not divide {shape}")
        return block
    raise QuantizationError(f"Unsupported Granularity: {granularity!r}")


class AffineQuantizedObserverBase(ABC, nn.Module):
    """Base for observers by granularity; subclasses define ``forward`` and ``calculate_qparams``."""

    with_args = classmethod(_with_args)  # type: ignore[arg-type]

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: Any,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if granularity is None:
            raise QuantizationError("granularity is None")
        if zero_point_domain is None:
            raise QuantizationError("Please use ZeroPointDomain.NONE instead of None")
        self.mapping_type, self.target_dtype, self.granularity = mapping_type, target_dtype, granularity
        self.quant_min, self.quant_max, self.eps = quant_min, quant_max, eps
        self.scale_dtype, self.zero_point_dtype = scale_dtype, zero_point_dtype
        self.preserve_zero, self.zero_point_domain = preserve_zero, zero_point_domain

    @abstractmethod
    def forward(self, input: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]: ...
