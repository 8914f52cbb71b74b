"""Modules: ``nn.intrinsic`` (fused float), ``nn.quantized`` (int8), as in torch."""

from zeropoint.nn import intrinsic, quantized

__all__ = ["intrinsic", "quantized"]
