"""Multi-head attention of observable parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.nn.quantizable.rnn import _prepared
from zeropoint.nn.quantized.modules.functional_modules import FloatFunctional

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` with a Linear each for query, key, value and output, and observed products.

    Scores and their product with the values are int8 matrix products; a mask is added before the softmax.
    Replaces ``torch.ao.nn.quantizable.MultiheadAttention``, which computed attention in float.

    Shape: query [L, N, E], key and value [S, N, E], or batch first.
    """

    _FLOAT_MODULE: type = nn.MultiheadAttention
    _qkv_same_embed_dim = False  # tells torch's encoder layer that its fused path is not for this module
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if add_bias_kv or add_zero_attn:
            raise QuantizationError("quantizable MultiheadAttention: add_bias_kv and add_zero_attn are not supported")
        if embed_dim % num_heads:
            raise QuantizationError(f"embed_dim {embed_dim} must be divisible by num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim, self.head_dim = kdim or embed_dim, vdim or embed_dim, embed_dim // num_heads
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.linear_Q = nn.Linear(embed_dim, embed_dim, **options)
        self.linear_K = nn.Linear(self.kdim, embed_dim, **options)
        self.linear_V = nn.Linear(self.vdim, embed_dim, **options)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **options)
        self.scores, self.mixed = FloatFunctional(), FloatFunctional()
        self.softmax = nn.Softmax(-1)

    def _heads(self, x: Any) -> Any:
        """[N, T, E] to [N, heads, T, E / heads]."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    @staticmethod
    def _additive(mask: torch.Tensor) -> torch.Tensor:
        """A boolean mask (True: leave out) as numbers to add. A large finite number: it has to have a scale."""
        return torch.where(mask, -1e4, 0.0) if mask.dtype == torch.bool else torch.clamp(mask.float(), min=-1e4)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._heads(self.linear_Q(query)), self._heads(self.linear_K(key)), self._heads(self.linear_V(value))
        scores = self.scores.mul_scalar(self.scores.matmul(q, k.transpose(-2, -1)), 1.0 / math.sqrt(self.head_dim))
        mask = self._mask(attn_mask, key_padding_mask, scores)
        if mask is None:
            weights = self.softmax(scores)
        else:
            # In float: a mask's range would leave the scores no resolution.
            reals = scores.dequantize() if hasattr(scores, "int_repr") and scores.is_quantized else scores
            weights = self.softmax(reals + mask)
        if self.dropout and self.training:
            weights = nn.functional.dropout(weights, self.dropout)
        mixed = self.mixed.matmul(weights, v).transpose(1, 2)
        out = self.out_proj(mixed.reshape(mixed.shape[0], mixed.shape[1], self.embed_dim))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        reals = weights.dequantize() if weights.is_quantized else weights
        reals = reals.mean(1) if average_attn_weights else reals
        return out, reals if batched else reals.squeeze(0)

    def _mask(self, attn_mask: Any, key_padding_mask: Any, scores: Any) -> torch.Tensor | None:
        total: torch.Tensor | None = None
        if attn_mask is not None:
            total = self._additive(attn_mask)
            if total.dim() == 3:
                total = total.reshape(-1, self.num_heads, *total.shape[1:])
        if key_padding_mask is not None:
            padding = self._additive(key_padding_mask)
            padding = padding.reshape(1, -1) if padding.dim() == 1 else padding
            padding = padding[:, None, None, :]
            total = padding if total is None else total + padding
        return total

    @classmethod
    def from_float(cls, other: Any) -> Any:
        """From ``torch.nn.MultiheadAttention``; prepared if it has a qconfig.

        Raises:
            QuantizationError: another type, ``add_bias_kv`` or ``add_zero_attn``.
        """
        if type(other) is not nn.MultiheadAttention:
            raise QuantizationError(
                f"quantizable MultiheadAttention.from_float works for MultiheadAttention, got {type(other).__name__}"
            )
        observed = cls(
            other.embed_dim, other.num_heads, other.dropout, other.in_proj_bias is not None, other.bias_k is not None,
            other.add_zero_attn, other.kdim, other.vdim, other.batch_first,
        )  # fmt: skip
        if other._qkv_same_embed_dim:
            weights = other.in_proj_weight.chunk(3)
        else:
            weights = (other.q_proj_weight, other.k_proj_weight, other.v_proj_weight)
        biases = (None,) * 3 if other.in_proj_bias is None else other.in_proj_bias.chunk(3)
        parts = ((observed.linear_Q, 0), (observed.linear_K, 1), (observed.linear_V, 2))
        for linear, i in parts:
            linear.weight = nn.Parameter(weights[i].detach())
            if biases[i] is not None:
                linear.bias = nn.Parameter(biases[i].detach())
        observed.out_proj.weight = nn.Parameter(other.out_proj.weight.detach())
        if other.out_proj.bias is not None:
            observed.out_proj.bias = nn.Parameter(other.out_proj.bias.detach())
        return _prepared(observed, getattr(other, "qconfig", None), other.training)

    @classmethod
    def from_observed(cls, other: Any) -> Any:
        raise NotImplementedError("use zeropoint.nn.quantized.MultiheadAttention.from_observed")

    def dequantize(self) -> nn.MultiheadAttention:
        """A float ``torch.nn.MultiheadAttention`` with the (dequantized) weights of this one."""
        real = lambda w: w() if callable(w) else w
        weight = lambda m: (
            real(m.weight).dequantize()
            if hasattr(real(m.weight), "int_repr") and real(m.weight).is_quantized
            else real(m.weight)
        )
        parts = [self.linear_Q, self.linear_K, self.linear_V]
        has_bias = real(self.out_proj.bias) is not None
        result = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            has_bias,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
        )
        with torch.no_grad():
            if result._qkv_same_embed_dim:
                result.in_proj_weight.copy_(torch.cat([weight(m) for m in parts]))
            else:
                for target, m in zip(
                    (result.q_proj_weight, result.k_proj_weight, result.v_proj_weight), parts, strict=True
                ):
                    target.copy_(weight(m))
            result.out_proj.weight.copy_(weight(self.out_proj))
            if has_bias:
                result.in_proj_bias.copy_(torch.cat([real(m.bias) for m in parts]))
                result.out_proj.bias.copy_(real(self.out_proj.bias))
        return result
