"""The registered operators, bound by name.

``ops.linear`` and its siblings take plain integer tensors and numbers and return plain tensors;
modules call them directly. Each has a schema, a fake kernel, a reference in PyTorch (any device) and,
on CPU with the native library, a kernel per instruction set that equals the reference bit for bit.
"""

from __future__ import annotations

import torch

from zeropoint import _native, _reference
from zeropoint.ops import _schemas

_REFERENCES = {
    name: getattr(_reference, name) for name in _schemas.SCHEMAS if not name.startswith(("isa_", "program_"))
}
for _name, _function in _REFERENCES.items():
    _schemas.library.impl(_name, _function, "CompositeExplicitAutograd")

from zeropoint.ops import _fake  # noqa: F401

_native.load()

quantize_per_tensor = torch.ops.zeropoint.quantize_per_tensor.default
quantize_per_channel = torch.ops.zeropoint.quantize_per_channel.default
dequantize_per_tensor = torch.ops.zeropoint.dequantize_per_tensor.default
dequantize_per_channel = torch.ops.zeropoint.dequantize_per_channel.default
requantize = torch.ops.zeropoint.requantize.default
linear_pack = torch.ops.zeropoint.linear_pack.default
linear = torch.ops.zeropoint.linear.default
linear_dynamic = torch.ops.zeropoint.linear_dynamic.default
linear_grouped_pack = torch.ops.zeropoint.linear_grouped_pack.default
linear_grouped = torch.ops.zeropoint.linear_grouped.default
linear_grouped_split = torch.ops.zeropoint.linear_grouped_split.default
rnn_dynamic = torch.ops.zeropoint.rnn_dynamic.default
rnn_static = torch.ops.zeropoint.rnn_static.default
conv2d_pack = torch.ops.zeropoint.conv2d_pack.default
conv2d = torch.ops.zeropoint.conv2d.default
conv3d_pack = torch.ops.zeropoint.conv3d_pack.default
conv3d = torch.ops.zeropoint.conv3d.default
add = torch.ops.zeropoint.add.default
mul = torch.ops.zeropoint.mul.default
add_float = torch.ops.zeropoint.add_float.default
attention = torch.ops.zeropoint.attention.default
cached_attention = torch.ops.zeropoint.cached_attention.default
rotary = torch.ops.zeropoint.rotary.default
silu_mul = torch.ops.zeropoint.silu_mul.default
add_integers = torch.ops.zeropoint.add_integers.default
arange = torch.ops.zeropoint.arange.default
matmul = torch.ops.zeropoint.matmul.default
lookup = torch.ops.zeropoint.lookup.default
normalize = torch.ops.zeropoint.normalize.default
add_norm = torch.ops.zeropoint.add_norm.default
softmax = torch.ops.zeropoint.softmax.default
max_pool2d = torch.ops.zeropoint.max_pool2d.default
avg_pool2d = torch.ops.zeropoint.avg_pool2d.default
global_avg_pool2d = torch.ops.zeropoint.global_avg_pool2d.default
interpolate_bilinear2d = torch.ops.zeropoint.interpolate_bilinear2d.default
embedding = torch.ops.zeropoint.embedding.default
embedding_bag = torch.ops.zeropoint.embedding_bag.default
adaptive_avg_pool2d = torch.ops.zeropoint.adaptive_avg_pool2d.default

__all__ = sorted(_REFERENCES)
