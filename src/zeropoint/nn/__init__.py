"""Modules: ``nn.intrinsic`` (fused float), ``nn.qat`` (training), ``nn.quantized`` (int8), as in torch."""

from zeropoint.nn import intrinsic, qat, quantized

__all__ = ["intrinsic", "qat", "quantized"]
