"""Every operator of the ``zeropoint`` namespace, defined here once, with or without the native library."""

from __future__ import annotations

import torch

__all__ = ["SCHEMAS", "library"]

# The common tail of linear and convolutions: output qparams, then residual addition, then table.
_OUTPUT = (
    "float x_scale, int x_zero_point, float scale, int zero_point, int quant_min, int quant_max, ScalarType dtype, "
    "Tensor? residual=None, float residual_scale=1.0, int residual_zero_point=0, float sum_scale=1.0, "
    "int sum_zero_point=0, int sum_min=0, int sum_max=255, Tensor? table=None"
)
_WEIGHT = "Tensor weight, Tensor packed, Tensor w_scale, Tensor? w_zero_point, Tensor? bias"
_CONVOLUTION = f"{_WEIGHT}, int[] stride, int[] padding, int[] dilation, int groups"
_BINARY = (
    "(Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point, float scale, "
    "int zero_point, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
)

SCHEMAS = {
    "quantize_per_tensor": "(Tensor x, float scale, int zero_point, ScalarType dtype) -> Tensor",
    "quantize_per_channel": (
        "(Tensor x, Tensor scales, Tensor zero_points, int axis, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
    ),
    "dequantize_per_tensor": "(Tensor q, float scale, int zero_point) -> Tensor",
    "dequantize_per_channel": "(Tensor q, Tensor scales, Tensor zero_points, int axis) -> Tensor",
    "requantize": "(Tensor acc, float multiplier, int zero_point, ScalarType dtype) -> Tensor",
    "linear_pack": "(Tensor weight, Tensor? w_zero_point) -> Tensor",
    "linear": f"(Tensor x, {_WEIGHT}, {_OUTPUT}) -> Tensor",
    "linear_dynamic": f"(Tensor x, {_WEIGHT}, bool per_row, bool reduce_range, bool relu) -> Tensor",
    "linear_grouped_pack": (
        "(Tensor weight, Tensor w_scale, Tensor? w_zero_point, int group_size, int w_bits) -> Tensor"
    ),
    "linear_grouped": f"(Tensor x, {_WEIGHT}, int group_size, int w_bits, int x_bits, bool relu) -> Tensor",
    "linear_grouped_split": (
        f"(Tensor x, {_WEIGHT}, int group_size, int w_bits, int x_bits, bool relu, int[] parts) -> Tensor[]"
    ),
    "rnn_dynamic": (
        "(Tensor x, int[] batch_sizes, Tensor h, Tensor c, Tensor ih, Tensor ih_packed, Tensor ih_scale, Tensor? ih_zero_point, "
        "Tensor? ih_bias, Tensor hh, Tensor hh_packed, Tensor hh_scale, Tensor? hh_zero_point, Tensor? hh_bias, int kind, "
        "bool per_row, bool reverse) -> (Tensor, Tensor, Tensor)"
    ),
    "rnn_static": (
        "(Tensor x, Tensor h, Tensor c, Tensor ih, Tensor ih_packed, Tensor ih_scale, Tensor? ih_zero_point, Tensor? ih_bias, "
        "Tensor hh, Tensor hh_packed, Tensor hh_scale, Tensor? hh_zero_point, Tensor? hh_bias, Tensor tables, Tensor grids, "
        "int kind, bool reverse) -> (Tensor, Tensor, Tensor)"
    ),
    "conv2d_pack": "(Tensor weight, Tensor? w_zero_point, int[] dilation, int groups, int[] stride=[]) -> Tensor",
    "conv2d": f"(Tensor x, {_CONVOLUTION}, {_OUTPUT}) -> Tensor",
    "conv3d_pack": "(Tensor weight, Tensor? w_zero_point, int[] dilation, int groups, int[] stride=[]) -> Tensor",
    "conv3d": f"(Tensor x, {_CONVOLUTION}, {_OUTPUT}) -> Tensor",
    "add": _BINARY,
    "mul": _BINARY,
    "add_float": "(Tensor a, Tensor b, bool subtract) -> Tensor",
    "matmul": _BINARY,
    "attention": (
        "(Tensor q, float q_scale, int q_zero_point, Tensor k, float k_scale, int k_zero_point, Tensor v, float v_scale, "
        "int v_zero_point, float factor, float scale, int zero_point, ScalarType dtype, Tensor? mask=None, bool causal=False) "
        "-> Tensor"
    ),
    "cached_attention": (
        "(Tensor q, Tensor past_k, Tensor past_v, Tensor k, Tensor v, float factor, Tensor? mask=None, bool keep_cache=False) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "rotary": "(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    "silu_mul": "(Tensor gate, Tensor up) -> Tensor",
    "add_integers": "(Tensor a, Tensor b, bool subtract) -> Tensor",
    "arange": "(SymInt start, SymInt end, SymInt step) -> Tensor",
    "lookup": "(Tensor x, Tensor table) -> Tensor",
    "normalize": (
        "(Tensor x, int rows, Tensor? weight, Tensor? bias, int inner, float x_scale, int x_zero_point, float eps, "
        "bool centered, float scale, int zero_point, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
    ),
    "add_norm": (
        "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, bool centered, bool keep_sum, bool keep_norm, "
        "float scale=1.0, int zero_point=0, ScalarType? dtype=None) -> (Tensor, Tensor, Tensor)"
    ),
    "softmax": (
        "(Tensor x, int dim, float x_scale, float scale, int zero_point, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
    ),
    "max_pool2d": (
        "(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor"
    ),
    "avg_pool2d": (
        "(Tensor x, int zero_point, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
        "bool count_include_pad, int? divisor_override) -> Tensor"
    ),
    "global_avg_pool2d": (
        "(Tensor x, float x_scale, int x_zero_point, float scale, int zero_point, int quant_min, int quant_max, "
        "ScalarType dtype) -> Tensor"
    ),
    "adaptive_avg_pool2d": "(Tensor x, int zero_point, int[] output_size) -> Tensor",
    "interpolate_bilinear2d": (
        "(Tensor x, int[] output_size, bool align_corners, float scale_h, float scale_w) -> Tensor"
    ),
    "embedding": ("(Tensor indices, Tensor weight, Tensor scale, Tensor zero_point, int bits, int features) -> Tensor"),
    "embedding_bag": (
        "(Tensor indices, Tensor? offsets, Tensor weight, Tensor scale, Tensor zero_point, int bits, int features, int mode, "
        "bool include_last_offset, Tensor? per_sample_weights=None, int? padding_idx=None) -> Tensor"
    ),
    "program_create": "(Tensor code, str names, Tensor[] constants) -> int",
    "program_run": "(int program, Tensor[] inputs) -> Tensor[]",
    "program_profile": "(int program, Tensor[] inputs) -> Tensor",
    "program_bytes": "(int program) -> int",
    "isa_current": "() -> int",
    "isa_count": "() -> int",
    "isa_name": "(int index) -> str",
    "isa_available": "(int index) -> bool",
    "isa_dot_peak": "(int iterations) -> int",
    "isa_select": "(int index) -> ()",
}

library = torch.library.Library("zeropoint", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)
