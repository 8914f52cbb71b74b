"""Where torch keeps the learnable fake quantize, under its private name there."""

from __future__ import annotations

from zeropoint.quantization.learnable_fake_quantize import LearnableFakeQuantize

__all__: list[str] = []

_LearnableFakeQuantize = LearnableFakeQuantize
