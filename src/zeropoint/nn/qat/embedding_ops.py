"""Embeddings with fake-quantized weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn.qat.linear import check_float_module, require_qconfig
from zeropoint.tensor import per_channel_affine_float_qparams

__all__ = ["Embedding", "EmbeddingBag"]


def _weight_fake_quant(module: str, qconfig: Any) -> nn.Module:
    fake_quant: Any = require_qconfig(module, qconfig).weight()
    if fake_quant.qscheme is not per_channel_affine_float_qparams:
        raise QuantizationError(
            f"{module} weights require a qscheme of torch.per_channel_affine_float_qparams, got {fake_quant.qscheme!r}; use "
            "default_embedding_qat_qconfig"
        )
    return fake_quant


class Embedding(nn.Embedding):
    """``torch.nn.Embedding`` whose weight goes through ``qconfig.weight()``."""

    _FLOAT_MODULE: type = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: torch.Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
        qconfig: Any = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.weight_fake_quant = _weight_fake_quant("Embedding", qconfig)
        self.qconfig = qconfig

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.embedding(
            input, self.weight_fake_quant(self.weight), self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Embedding:
        """From a float Embedding with a qconfig; shares its weight."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        result = cls(
            mod.num_embeddings, mod.embedding_dim, mod.padding_idx, mod.max_norm, mod.norm_type, mod.scale_grad_by_freq,
            mod.sparse, mod.weight, qconfig=mod.qconfig,
        )  # fmt: skip
        result.weight = mod.weight
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float Embedding with this weight."""
        result = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip
        result.weight = nn.Parameter(self.weight.detach())
        return result.train(self.training)


class EmbeddingBag(nn.EmbeddingBag):
    """``torch.nn.EmbeddingBag`` whose weight goes through ``qconfig.weight()``."""

    _FLOAT_MODULE: type = nn.EmbeddingBag

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: torch.Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, _weight,
            include_last_offset, padding_idx, device=device, dtype=dtype,
        )  # fmt: skip
        self.weight_fake_quant = _weight_fake_quant("EmbeddingBag", qconfig)
        self.qconfig = qconfig

    def forward(
        self, input: torch.Tensor, offsets: torch.Tensor | None = None, per_sample_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.embedding_bag(
            input, self.weight_fake_quant(self.weight), offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq,
            self.mode, self.sparse, per_sample_weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> EmbeddingBag:
        """From a float EmbeddingBag with a qconfig; shares its weight."""
        check_float_module(cls, mod, cls._FLOAT_MODULE)
        result = cls(
            mod.num_embeddings, mod.embedding_dim, mod.max_norm, mod.norm_type, mod.scale_grad_by_freq, mod.mode, mod.sparse,
            mod.weight, mod.include_last_offset, mod.padding_idx, mod.qconfig,
        )  # fmt: skip
        result.weight = mod.weight
        return result.train(mod.training)

    def to_float(self) -> nn.Module:
        """A float EmbeddingBag with this weight."""
        result = nn.EmbeddingBag(
            self.num_embeddings, self.embedding_dim, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.mode,
            self.sparse, None, self.include_last_offset, self.padding_idx,
        )  # fmt: skip
        result.weight = nn.Parameter(self.weight.detach())
        return result.train(self.training)
