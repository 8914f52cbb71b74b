"""int8 weights, float activations quantized as they come (``torch.nn.quantized.dynamic`` by name)."""

from zeropoint.nn.quantized.dynamic.linear import Linear

__all__ = ["Linear"]
