"""``torch.backends.quantized`` by name: there is one engine here, and it chooses its kernels by itself."""

from zeropoint.backends import quantized

__all__ = ["quantized"]
