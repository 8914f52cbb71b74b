"""Dynamically quantized block-sparse layers (``torch.ao.nn.sparse.quantized.dynamic`` by name)."""

from zeropoint.nn.sparse.quantized.dynamic.linear import Linear

__all__ = ["Linear"]
