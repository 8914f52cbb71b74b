// zeropoint::linear and its packing.
#include "../engine/operators.h"
#include "gemm.h"
#include "threads.h"

namespace zeropoint {
namespace {

WeightView linear_view(const Tensor& weight, const OptionalTensor& zero_point) {
  ZP_REQUIRE(weight.dim() == 2 && weight.scalar_type() == ScalarType::Char,
             "linear_pack: weight must be int8 [out_features, in_features]");
  ZP_REQUIRE(weight.size(1) > 0, "linear_pack: in_features must be at least 1");
  WeightView v = {};
  v.data = static_cast<const int8_t*>(weight.data_ptr());
  v.groups = 1;
  v.n = weight.size(0);
  v.kernel_h = v.kernel_w = 1;
  v.channels = weight.size(1);
  v.stride_n = weight.stride(0);
  v.stride_c = weight.stride(1);
  if (zero_point) {
    ZP_REQUIRE(zero_point->scalar_type() == ScalarType::Long && zero_point->is_contiguous() &&
                   (zero_point->numel() == 1 || zero_point->numel() == v.n),
               "linear_pack: weight_zero_point must be contiguous int64 with 1 or out_features values");
    v.zero_point = static_cast<const int64_t*>(zero_point->data_ptr());
    v.zero_point_step = zero_point->numel() == 1 ? 0 : 1;
  }
  return v;
}

Tensor linear_pack(Tensor weight, OptionalTensor zero_point) {
  const WeightView view = linear_view(weight, zero_point);
  const PackedHeader header = plan_pack(view, PackKind::kDirect, kernels());
  Tensor blob = empty_packed(header.total_bytes);
  start_pack(header, bytes(blob));
  parallel(view.groups * view.n, view.channels * view.kernel_h * view.kernel_w,
           [&](int64_t begin, int64_t end) { pack_weights(view, header, bytes(blob), begin, end); });
  return blob;
}

Tensor linear(Tensor x, Tensor weight, Tensor packed, Tensor w_scale, OptionalTensor, OptionalTensor bias,
              double x_scale, int64_t x_zero_point, double scale, int64_t zero_point, int64_t quant_min,
              int64_t quant_max, ScalarType dtype, OptionalTensor residual, double residual_scale,
              int64_t residual_zero_point, double sum_scale, int64_t sum_zero_point, int64_t sum_min, int64_t sum_max,
              OptionalTensor table) {
  constexpr const char* what = "linear";
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(is_byte(x) && x.dim() >= 1, "linear: x must be uint8 or int8 [..., in_features]");
  const PackedHeader& h = linear_header(what, kernel, weight, packed);
  ZP_REQUIRE(x.size(-1) == h.kc, "linear: x has " + std::to_string(x.size(-1)) +
                                     " features in its last dimension, the weight expects " + std::to_string(h.kc));
  x = to_contiguous(x);
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = h.n;
  const int64_t m = x.numel() / h.kc;
  Tensor out = empty_contiguous(sizes, dtype);
  TailSpec tail{.residual = {},
                .residual_scale = residual_scale,
                .residual_zero_point = residual_zero_point,
                .sum_scale = sum_scale,
                .sum_zero_point = sum_zero_point,
                .sum_min = sum_min,
                .sum_max = sum_max,
                .table = table};
  if (residual) {
    ZP_REQUIRE(is_byte(*residual) && sizes_of(*residual) == sizes,
               "linear: residual must be 8 bit with the output's shape");
    tail.residual = to_contiguous(*residual);
  }
  if (m == 0 || h.n == 0) return out;

  IgemmParams p = {};
  p.a = bytes(x);
  p.a_stride = h.kc;
  const uint8_t flip = sign_flip(x.scalar_type());
  if (flip || h.kc % 4) {
    // Copy with the sign bit flipped and room to read to a multiple of 4.
    uint8_t* copy = scratch(Scratch::kInput, static_cast<size_t>(x.numel()) + 4);
    for (int64_t i = 0; i < x.numel(); ++i) copy[i] = p.a[i] ^ flip;
    p.a = copy;
  }
  p.unique_taps = 1;
  p.taps = h.repeats;
  p.kc = h.kc;
  p.b = bytes(packed) + h.data_offset;
  p.n = h.n;
  p.out = out.data_ptr();
  p.out_stride = h.n;
  const OutputSpec spec{x_scale, x_zero_point, x.scalar_type(), scale, zero_point, quant_min, quant_max, dtype};
  p.epilogue = make_epilogue(what, bytes(packed), h, w_scale, bias, spec, tail);
  p.epilogue.residual_stride = h.n;
  run_igemm(kernel, p, m);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "linear_pack", linear_pack);
  ZP_OPERATOR_OVER(m, "linear", linear, 13);
}

}  // namespace zeropoint
