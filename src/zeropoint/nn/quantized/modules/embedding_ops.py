"""Embeddings with 8- or 4-bit weights: each row has a scale and a float zero point; results are float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint import ops
from zeropoint.errors import QuantizationError
from zeropoint.tensor import (
    QDtype,
    QTensor,
    as_qdtype,
    choose_qparams,
    per_channel_affine_float_qparams,
    quint4x2,
    quint8,
)

__all__ = ["Embedding", "EmbeddingBag", "quantize_rows"]


def _row_qparams(mod: Any, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, QDtype]:
    """From the module's fake quantize or its qconfig if they are for embeddings, else 8 bits over each row's range."""
    observer: Any = getattr(mod, "weight_fake_quant", None)
    qconfig = getattr(mod, "qconfig", None)
    if observer is None and qconfig is not None and qconfig.weight is not None:
        observer = qconfig.weight()
    if getattr(observer, "qscheme", None) is not per_channel_affine_float_qparams:
        low, high = torch.aminmax(weight, dim=1)
        return (*choose_qparams(low, high, quint8, per_channel_affine_float_qparams), quint8)
    observer(weight)
    return (*observer.calculate_qparams(), observer.dtype)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 scales and zero points of the rows' ranges, and the rows in 8 bits: what ``ops.embedding`` takes."""
    low, high = torch.aminmax(weight, dim=1)
    scale, zero_point = choose_qparams(low, high, quint8, per_channel_affine_float_qparams)
    return scale.float(), zero_point.float(), _integers(weight, scale.float(), zero_point.float(), quint8)


def _integers(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, dtype: QDtype) -> torch.Tensor:
    q = torch.round(weight / scale.unsqueeze(1) + zero_point.unsqueeze(1))
    return q.clamp(dtype.quant_min, dtype.quant_max).to(torch.uint8)


class _EmbeddingBase(nn.Module):
    """Rows of ``weight`` as uint8, or two 4-bit values a byte, with ``weight_scale`` and ``weight_zero_point`` per row."""

    num_embeddings: int
    embedding_dim: int
    weight_data: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor

    def _set_up(self, dtype: Any, weight: Any) -> None:
        self.dtype: QDtype = as_qdtype(dtype)
        if self.dtype not in (quint8, quint4x2):
            raise QuantizationError(f"{type(self).__name__}: dtype must be quint8 or quint4x2, got {dtype!r}")
        rows = self.num_embeddings
        width = self.embedding_dim if self.dtype is quint8 else -(-self.embedding_dim // 2)
        self.register_buffer("weight_data", torch.zeros(rows, width, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(rows))
        self.register_buffer("weight_zero_point", torch.zeros(rows))
        if weight is not None:
            self.set_weight(weight)

    def set_weight(self, w: QTensor) -> None:
        """Sets the weight: quint8 or quint4x2, per channel of axis 0.

        Raises:
            QuantizationError: another dtype, axis or shape.
        """
        name = type(self).__name__
        if not isinstance(w, QTensor) or w._axis != 0 or w._qdtype is not self.dtype:
            raise QuantizationError(f"{name}.set_weight: a {self.dtype!r} weight per channel of axis 0 is needed")
        if tuple(w.shape) != (self.num_embeddings, self.embedding_dim):
            raise QuantizationError(
                f"{name}.set_weight: the weight must have shape {(self.num_embeddings, self.embedding_dim)}, got {tuple(w.shape)}"
            )
        data = w._data
        if self.dtype is quint4x2:
            data = F.pad(data, (0, data.shape[1] % 2))
            data = data[:, ::2] | (data[:, 1::2] << 4)
        self.weight_data = data.contiguous().clone()
        self.weight_scale, self.weight_zero_point = w._scale.clone(), w._zero_point.float().clone()

    def _integers(self, packed: torch.Tensor) -> torch.Tensor:
        if self.dtype is quint8:
            return packed
        return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., : self.embedding_dim]

    def weight(self) -> QTensor:
        return QTensor(self._integers(self.weight_data), self.weight_scale, self.weight_zero_point, self.dtype, 0)

    def _looked_up(self, operator: Any, indices: tuple[torch.Tensor | None, ...], *options: Any) -> torch.Tensor:
        """What ``operator`` makes of the rows asked for, and of no others."""
        for t in indices:
            if t is not None and (t.is_floating_point() or t.dtype == torch.bool):
                raise QuantizationError(f"{type(self).__name__}: indices must be integers, got {t.dtype}")
        known = [t if t is None or t.dtype in (torch.int32, torch.int64) else t.long() for t in indices]
        bits = 8 if self.dtype is quint8 else 4
        rows = (self.weight_data, self.weight_scale, self.weight_zero_point)
        try:
            result: torch.Tensor = operator(*known, *rows, bits, self.embedding_dim, *options)
            return result
        except ValueError as error:
            if "outside the" not in str(error):
                raise
            raise IndexError(
                f"{type(self).__name__}: index out of range in self, there are {self.num_embeddings} rows"
            ) from None

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def extra_repr(self) -> str:
        return (
            f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, dtype={self.dtype}, "
            f"qscheme={per_channel_affine_float_qparams!r}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, QTensor):
            self.set_weight(weight)
            state_dict = {k: v for k, v in state_dict.items() if k != prefix + "weight"}
            own = {f"{prefix}{name}": value for name, value in self._buffers.items()}
            state_dict = {**state_dict, **own}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class Embedding(_EmbeddingBase):
    """``torch.nn.Embedding`` with quantized rows, float32 out. Replaces ``torch.ao.nn.quantized.Embedding``."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Any = None,
        dtype: Any = quint8,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self._set_up(dtype, _weight)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self._looked_up(ops.embedding, (indices,))

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Embedding:
        """From a float or QAT Embedding; no calibration needed."""
        if mod.max_norm is not None:
            raise QuantizationError("Embedding.from_float: max_norm changes weights at run time and is not supported")
        weight = _quantized_rows(mod)
        return cls(mod.num_embeddings, mod.embedding_dim, mod.padding_idx, _weight=weight, dtype=weight._qdtype)

    @classmethod
    def from_reference(cls, ref_embedding: Any) -> Embedding:
        weight = ref_embedding.get_quantized_weight()
        return cls(
            ref_embedding.num_embeddings, ref_embedding.embedding_dim, ref_embedding.padding_idx, _weight=weight,
            dtype=weight._qdtype,
        )  # fmt: skip


def _quantized_rows(mod: Any) -> QTensor:
    weight = mod.weight.detach().float()
    scale, zero_point, dtype = _row_qparams(mod, weight)
    scale, zero_point = scale.float(), zero_point.float()
    return QTensor(_integers(weight, scale, zero_point, dtype), scale, zero_point, dtype, 0)


class EmbeddingBag(_EmbeddingBase):
    """``torch.nn.EmbeddingBag`` with quantized rows: sums, means or maxima in float32.

    Replaces ``torch.ao.nn.quantized.EmbeddingBag``, which had sums only.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "sum",
        sparse: bool = False,
        _weight: Any = None,
        include_last_offset: bool = False,
        dtype: Any = quint8,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("sum", "mean", "max"):
            raise QuantizationError(f"EmbeddingBag: mode must be sum, mean or max, got {mode!r}")
        self.num_embeddings, self.embedding_dim, self.mode = num_embeddings, embedding_dim, mode
        self.include_last_offset, self.padding_idx = include_last_offset, padding_idx
        self._set_up(dtype, _weight)

    def forward(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
        compressed_indices_mapping: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if compressed_indices_mapping is not None:
            raise QuantizationError("EmbeddingBag: compressed_indices_mapping is not supported")
        if (indices.dim(), None if offsets is None else offsets.dim()) not in ((2, None), (1, 1)):
            raise ValueError(
                "EmbeddingBag: give indices [bags, n] without offsets, or indices [n] with offsets [bags], got "
                f"{list(indices.shape)} and {None if offsets is None else list(offsets.shape)}"
            )
        if per_sample_weights is not None:
            if per_sample_weights.shape != indices.shape or self.mode != "sum":
                raise ValueError("EmbeddingBag: per_sample_weights need the shape of the indices, and mode='sum'")
            per_sample_weights = per_sample_weights.float().contiguous()
        return self._looked_up(
            ops.embedding_bag, (indices, offsets), ("sum", "mean", "max").index(self.mode),
            self.include_last_offset, per_sample_weights, self.padding_idx,
        )  # fmt: skip

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> EmbeddingBag:
        """From a float or QAT EmbeddingBag; no calibration needed."""
        if mod.max_norm is not None:
            raise QuantizationError(
                "EmbeddingBag.from_float: max_norm changes weights at run time and is not supported"
            )
        weight = _quantized_rows(mod)
        return cls(
            mod.num_embeddings, mod.embedding_dim, mode=mod.mode, _weight=weight, include_last_offset=mod.include_last_offset,
            dtype=weight._qdtype, padding_idx=mod.padding_idx,
        )  # fmt: skip
