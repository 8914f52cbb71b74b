"""ATen operators that a program read from a file may call: pure functions of their arguments, nothing else."""

from __future__ import annotations

__all__ = ["ALLOWED"]

_NAMES = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv adjoint affine_grid_generator all amax
    amin aminmax any arange argmax argmin argsort asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm
    broadcast_tensors broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip
    clone col2im column_stack complex concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d copy cos cosh cosine_similarity count_nonzero cross cummax cummin cumprod cumsum
    deg2rad diag_embed diagonal diff dist div divide dot dstack einsum elu embedding embedding_bag eq erf erfc erfinv exp
    exp2 expand expand_as expand_copy expm1 eye fft_fft fft_fft2 fft_ifft fft_ifft2 fft_irfft fft_irfft2 fft_rfft
    fft_rfft2 flatten flip fliplr flipud floor floor_divide fmax fmin fmod frac full full_like gather ge gelu glu greater
    greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gru_cell gt hardshrink hardsigmoid hardswish
    hardtanh heaviside hsplit hstack hypot im2col imag index index_add index_copy index_fill index_put index_select inner
    instance_norm isfinite isin isinf isnan isneginf isposinf istft kthvalue layer_norm le leaky_relu lerp less less_equal
    linalg_norm linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logcumsumexp
    logical_and logical_not logical_or logical_xor logit logsumexp lstm lstm_cell lt masked_fill masked_scatter matmul
    matrix_H max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mish mm mode moveaxis movedim
    mT mul multiply mv nan_to_num nanmean nansum narrow native_group_norm native_layer_norm ne neg negative new_full
    new_ones new_zeros nonzero_static norm not_equal numpy_T one_hot ones ones_like outer pad pairwise_distance permute
    pixel_shuffle pixel_unshuffle polar positive pow prelu prod rad2deg real reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rsqrt rsub
    scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid
    sign signbit silu sin sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square
    squeeze stack std std_mean stft sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split tensordot
    threshold to topk trace transpose tril tril_indices triu triu_indices true_divide trunc type_as unbind unflatten
    unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as view_as_complex view_as_real
    vsplit vstack where xlogy zeros zeros_like __and__ __lshift__ __or__ __rshift__ __xor__ _log_softmax
    _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
"""

ALLOWED = frozenset(_NAMES.split())
