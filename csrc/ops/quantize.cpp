// zeropoint::quantize_*, dequantize_*, requantize.
#include <cmath>
#include <cstring>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "epilogue_params.h"
#include "threads.h"

namespace zeropoint {
namespace {

constexpr int64_t kBlock = 4096;  // elements a thread takes at a time

// Elements of a float32 tensor, or of a bfloat16 one copied to `copy`.
const float* as_float(const Tensor& x, int64_t first, int64_t count, float* copy) {
  if (x.scalar_type() == ScalarType::BFloat16) {
    const auto* source = static_cast<const uint16_t*>(x.data_ptr()) + first;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t word = static_cast<uint32_t>(source[i]) << 16;
      std::memcpy(copy + i, &word, 4);
    }
    return copy;
  }
  return static_cast<const float*>(x.data_ptr()) + first;
}

Tensor quantize_per_tensor(Tensor x, double scale, int64_t zero_point, ScalarType dtype) {
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16 ||
                 x.scalar_type() == ScalarType::Half,
             "quantize_per_tensor: x must be float32, bfloat16 or half");
  check_qparams("quantize_per_tensor", "y", scale, zero_point, dtype);
  if (x.scalar_type() == ScalarType::Half) x = torch::stable::to(x, ScalarType::Float);
  x = dense(x);
  Tensor out = empty_like_dense(x, dtype);
  const float inv_scale = 1.0f / static_cast<float>(scale);
  const int64_t n = x.numel();
  const KernelTable& kernel = kernels();
  const bool plain = x.scalar_type() == ScalarType::Float;
  const auto blocks = [&](const auto& quantize) {
    parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
      alignas(64) float copy[kBlock];
      for (int64_t block = begin; block < end; block = plain ? end : block + 1) {
        const int64_t first = block * kBlock, count = std::min(n, (plain ? end : block + 1) * kBlock) - first;
        quantize(as_float(x, first, count, copy), first, count);
      }
    });
  };
  if (dtype == ScalarType::Int) {
    auto* target = static_cast<int32_t*>(out.data_ptr());
    blocks([&](const float* source, int64_t first, int64_t count) {
      kernel.quantize_i32(source, count, inv_scale, static_cast<int32_t>(zero_point), target + first);
    });
  } else {
    ZP_REQUIRE(is_byte(out), "quantize_per_tensor: dtype must be uint8, int8 or int32");
    uint8_t* target = bytes(out);
    blocks([&](const float* source, int64_t first, int64_t count) {
      kernel.quantize_u8(source, count, inv_scale, to_u8_domain(zero_point, dtype), sign_flip(dtype), target + first);
    });
  }
  return out;
}

Tensor dequantize_per_tensor(Tensor q, double scale, int64_t zero_point) {
  const ScalarType dtype = q.scalar_type();
  ZP_REQUIRE(is_byte(q) || dtype == ScalarType::Int, "dequantize_per_tensor: q must be uint8, int8 or int32");
  check_qparams("dequantize_per_tensor", "q", scale, zero_point, dtype);
  q = dense(q);
  Tensor out = empty_like_dense(q, ScalarType::Float);
  auto* target = static_cast<float*>(out.data_ptr());
  const int64_t n = q.numel();
  const auto s = static_cast<float>(scale);
  const KernelTable& kernel = kernels();
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock, count = std::min(n, end * kBlock) - first;
    if (dtype == ScalarType::Int)
      kernel.dequantize_i32(static_cast<const int32_t*>(q.data_ptr()) + first, count, s,
                            static_cast<int32_t>(zero_point), target + first);
    else
      kernel.dequantize_u8(bytes(q) + first, count, s, to_u8_domain(zero_point, dtype), sign_flip(dtype),
                           target + first);
  });
  return out;
}

struct ChannelView {
  int64_t outer = 1, channels, inner = 1;
};

ChannelView channel_view(const char* what, const Tensor& x, const Tensor& scales, const Tensor& zero_points,
                         int64_t axis) {
  ZP_REQUIRE(axis >= 0 && axis < x.dim(), std::string(what) + ": axis " + std::to_string(axis) + " is outside the " +
                                              std::to_string(x.dim()) + " dimensions of the tensor");
  ChannelView v;
  v.channels = x.size(axis);
  for (int64_t i = 0; i < axis; ++i) v.outer *= x.size(i);
  for (int64_t i = axis + 1; i < x.dim(); ++i) v.inner *= x.size(i);
  ZP_REQUIRE(scales.scalar_type() == ScalarType::Float && scales.is_contiguous() && scales.numel() == v.channels,
             std::string(what) + ": scales must be contiguous float32 with one value per channel");
  ZP_REQUIRE(
      zero_points.scalar_type() == ScalarType::Int && zero_points.is_contiguous() && zero_points.numel() == v.channels,
      std::string(what) + ": zero_points must be contiguous int32 with one value per channel");
  return v;
}

Tensor quantize_per_channel(Tensor x, Tensor scales, Tensor zero_points, int64_t axis, int64_t quant_min,
                            int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float, "quantize_per_channel: x must be float32");
  const ChannelView v = channel_view("quantize_per_channel", x, scales, zero_points, axis);
  x = to_contiguous(x);
  Tensor wide = empty_contiguous(sizes_of(x), ScalarType::Int);
  std::vector<float> inverse(static_cast<size_t>(v.channels));
  const auto* s = static_cast<const float*>(scales.data_ptr());
  const auto* z = static_cast<const int32_t*>(zero_points.data_ptr());
  for (int64_t c = 0; c < v.channels; ++c) {
    ZP_REQUIRE(std::isfinite(s[c]) && s[c] > 0,
               "quantize_per_channel: scale of channel " + std::to_string(c) + " must be finite and > 0");
    inverse[static_cast<size_t>(c)] = 1.0f / s[c];
  }
  auto* target = static_cast<int32_t*>(wide.data_ptr());
  kernels().quantize_channel(static_cast<const float*>(x.data_ptr()), v.outer, v.channels, v.inner, inverse.data(), z,
                             static_cast<int32_t>(quant_min), static_cast<int32_t>(quant_max), target);
  if (dtype == ScalarType::Int) return wide;
  Tensor out = empty_contiguous(sizes_of(x), dtype);
  ZP_REQUIRE(is_byte(out), "quantize_per_channel: dtype must be uint8, int8 or int32");
  for (int64_t i = 0; i < x.numel(); ++i) bytes(out)[i] = static_cast<uint8_t>(target[i]);
  return out;
}

Tensor dequantize_per_channel(Tensor q, Tensor scales, Tensor zero_points, int64_t axis) {
  const ScalarType dtype = q.scalar_type();
  ZP_REQUIRE(is_byte(q) || dtype == ScalarType::Int, "dequantize_per_channel: q must be uint8, int8 or int32");
  const ChannelView v = channel_view("dequantize_per_channel", q, scales, zero_points, axis);
  q = to_contiguous(q);
  Tensor out = empty_contiguous(sizes_of(q), ScalarType::Float);
  auto* target = static_cast<float*>(out.data_ptr());
  const auto* s = static_cast<const float*>(scales.data_ptr());
  const auto* z = static_cast<const int32_t*>(zero_points.data_ptr());
  const KernelTable& kernel = kernels();
  int64_t at = 0;
  for (int64_t o = 0; o < v.outer; ++o)
    for (int64_t c = 0; c < v.channels; ++c, at += v.inner) {
      if (dtype == ScalarType::Int)
        kernel.dequantize_i32(static_cast<const int32_t*>(q.data_ptr()) + at, v.inner, s[c], z[c], target + at);
      else
        kernel.dequantize_u8(bytes(q) + at, v.inner, s[c], to_u8_domain(z[c], dtype), sign_flip(dtype), target + at);
    }
  return out;
}

Tensor requantize(Tensor acc, double multiplier, int64_t zero_point, ScalarType dtype) {
  ZP_REQUIRE(acc.scalar_type() == ScalarType::Int, "requantize: acc must be int32");
  check_qparams("requantize", "multiplier", multiplier, zero_point, dtype);
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "requantize: dtype must be uint8 or int8");
  acc = dense(acc);
  Tensor out = empty_like_dense(acc, dtype);
  const int64_t n = acc.numel();
  const KernelTable& kernel = kernels();
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock;
    kernel.requantize(static_cast<const int32_t*>(acc.data_ptr()) + first, std::min(n, end * kBlock) - first,
                      static_cast<float>(multiplier), to_u8_domain(zero_point, dtype), sign_flip(dtype),
                      bytes(out) + first);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "quantize_per_tensor", quantize_per_tensor);
  ZP_OPERATOR(m, "quantize_per_channel", quantize_per_channel);
  ZP_OPERATOR(m, "dequantize_per_tensor", dequantize_per_tensor);
  ZP_OPERATOR(m, "dequantize_per_channel", dequantize_per_channel);
  ZP_OPERATOR(m, "requantize", requantize);
}

}  // namespace zeropoint
