"""Block-sparse layers (``torch.ao.nn.sparse`` by name)."""

from zeropoint.nn.sparse import quantized

__all__ = ["quantized"]
