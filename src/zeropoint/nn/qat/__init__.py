"""Modules that train with fake-quantized weights (``torch.nn.qat`` by name)."""

from zeropoint.nn.qat.conv import Conv2d
from zeropoint.nn.qat.linear import Linear

__all__ = ["Conv2d", "Linear"]
