"""The specification of every operator, in plain PyTorch, for any device.

Slow on purpose: integer sums are taken in float64, which is exact below 2^53, and every rounding of
docs/numerics.md is written out. Native kernels are tested to equal these bit for bit.
"""

from zeropoint._reference.attention import attention, cached_attention
from zeropoint._reference.conv import conv2d, conv2d_pack, conv3d, conv3d_pack
from zeropoint._reference.dynamic import linear_dynamic, rnn_dynamic
from zeropoint._reference.elementwise import add, add_float, add_integers, arange, lookup, mul, rotary, silu_mul
from zeropoint._reference.embedding import embedding, embedding_bag
from zeropoint._reference.grouped import linear_grouped, linear_grouped_pack, linear_grouped_split
from zeropoint._reference.linear import linear, linear_pack
from zeropoint._reference.matmul import matmul
from zeropoint._reference.normalization import add_norm, normalize, softmax
from zeropoint._reference.pool import adaptive_avg_pool2d, avg_pool2d, global_avg_pool2d, max_pool2d
from zeropoint._reference.quantize import (
    dequantize_per_channel,
    dequantize_per_tensor,
    quantize_per_channel,
    quantize_per_tensor,
    requantize,
)
from zeropoint._reference.recurrent import rnn_static
from zeropoint._reference.resample import interpolate_bilinear2d

__all__ = [
    "adaptive_avg_pool2d",
    "add",
    "add_float",
    "add_integers",
    "add_norm",
    "arange",
    "attention",
    "avg_pool2d",
    "cached_attention",
    "conv2d",
    "conv2d_pack",
    "conv3d",
    "conv3d_pack",
    "dequantize_per_channel",
    "dequantize_per_tensor",
    "embedding",
    "embedding_bag",
    "global_avg_pool2d",
    "interpolate_bilinear2d",
    "linear",
    "linear_dynamic",
    "linear_grouped",
    "linear_grouped_pack",
    "linear_grouped_split",
    "linear_pack",
    "lookup",
    "matmul",
    "max_pool2d",
    "mul",
    "normalize",
    "quantize_per_channel",
    "quantize_per_tensor",
    "requantize",
    "rnn_dynamic",
    "rnn_static",
    "rotary",
    "silu_mul",
    "softmax",
]
