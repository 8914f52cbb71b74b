"""ATen operators that a program read from a file may call: pure functions of their arguments, nothing else."""

from __future__ import annotations

__all__ = ["ALLOWED"]

_NAMES = """
    _softmax _to_copy _unsafe_view abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add addmm all
    amax amin any arange argmax argmin asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm
    bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to cat ceil celu channel_shuffle chunk clamp clamp_max
    clamp_min clone col2im concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d copy cos cosh cumsum diagonal div einsum elu embedding embedding_bag eq erf exp expand expand_as expm1
    flatten flip floor fmod full full_like gather ge gelu glu grid_sampler grid_sampler_2d group_norm gru gt hardshrink
    hardsigmoid hardswish hardtanh im2col index index_put index_select instance_norm isinf isnan layer_norm le leaky_relu
    linear log log10 log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logical_xor logsumexp lstm lt
    masked_fill masked_scatter matmul max max_pool1d max_pool2d max_pool3d maximum mean min minimum mish mm mul narrow
    native_group_norm native_layer_norm ne neg new_ones new_zeros nonzero_static norm ones ones_like pad permute pixel_shuffle
    pixel_unshuffle pow prelu prod reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape rms_norm rnn_relu rnn_tanh roll round
    rsqrt rsub scaled_dot_product_attention scatter scatter_add scatter_reduce select select_scatter selu sigmoid sign silu
    sin sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square squeeze stack std sub sum
    t tan tanh threshold to topk transpose tril triu trunc type_as unbind unflatten unfold unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var
    view view_as where zeros zeros_like _native_batch_norm_legit_no_training
"""

ALLOWED = frozenset(_NAMES.split())
