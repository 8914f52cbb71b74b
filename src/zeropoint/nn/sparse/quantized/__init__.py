"""Linear layers with block-sparse weights. The blocks are a description: the kernels compute all of them."""

from zeropoint.nn.sparse.quantized import dynamic
from zeropoint.nn.sparse.quantized.linear import Linear, LinearPackedParams

__all__ = ["Linear", "LinearPackedParams", "dynamic"]
