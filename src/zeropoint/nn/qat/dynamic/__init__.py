"""Training for dynamic quantization (``torch.nn.qat.dynamic`` by name)."""

from zeropoint.nn.qat.dynamic.linear import Linear

__all__ = ["Linear"]
