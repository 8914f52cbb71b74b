"""Modules: ``nn.intrinsic`` (fused float), ``nn.qat`` (training), ``nn.quantizable``, ``nn.quantized`` (int8), as in torch."""

from zeropoint.nn import intrinsic, qat, quantizable, quantized, sparse

__all__ = ["intrinsic", "qat", "quantizable", "quantized", "sparse"]
