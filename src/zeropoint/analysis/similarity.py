"""How close a quantized model's outputs are to the float model's."""

from __future__ import annotations

import math

import torch

from zeropoint.errors import QuantizationError

__all__ = ["agreement", "sqnr"]


def _same_shape(operation: str, reference: torch.Tensor, result: torch.Tensor) -> None:
    if reference.shape != result.shape:
        raise QuantizationError(
            f"{operation}: the tensors must have the same shape, got {tuple(reference.shape)} and {tuple(result.shape)}"
        )


def sqnr(reference: torch.Tensor, result: torch.Tensor) -> float:
    """Signal to quantization noise ratio in dB: ``10 log10(mean(ref^2) / mean((ref - result)^2))``.

    inf for equal tensors, NaN if either holds NaN or if the reference is all 0 and the result is not.
    """
    _same_shape("sqnr", reference, result)
    reference, result = reference.detach().double(), result.detach().double()
    signal, noise = float(reference.pow(2).sum()), float((reference - result).pow(2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(signal / noise) else math.nan


def agreement(reference: torch.Tensor, result: torch.Tensor) -> float:
    """Share of rows whose largest entry along the last dimension is the same."""
    _same_shape("agreement", reference, result)
    return float((reference.argmax(-1) == result.argmax(-1)).float().mean())
