#include "epilogue_params.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace zeropoint {
namespace {

int32_t magnitude_bits(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7FFFFFFF;
}

double of_bits(int32_t magnitude) {
  float x;
  std::memcpy(&x, &magnitude, 4);
  return x;
}

}  // namespace

void check_qparams(const char* what, const char* name, double scale, int64_t zero_point, ScalarType dtype) {
  const float s = static_cast<float>(scale);
  ZP_REQUIRE(std::isfinite(s) && s > 0, std::string(what) + ": " + name +
                                            "_scale must be finite and > 0 in float32, got " + std::to_string(scale));
  const int64_t lo = dtype == ScalarType::Char ? -128 : 0;
  if (dtype == ScalarType::Byte || dtype == ScalarType::Char)
    ZP_REQUIRE(zero_point >= lo && zero_point <= lo + 255,
               std::string(what) + ": " + name + "_zero_point " + std::to_string(zero_point) + " is outside [" +
                   std::to_string(lo) + ", " + std::to_string(lo + 255) + "]");
}

int64_t slots_per_group(const PackedHeader& h) {
  if (h.kind == PackKind::kDepthwise) return full_block_channels(h) + 4 * h.tail_lanes;
  return (h.n + h.lanes - 1) / h.lanes * h.lanes;
}

Epilogue make_epilogue(const char* what, const uint8_t* blob, const PackedHeader& h, const Tensor& w_scale,
                       const OptionalTensor& bias, const OutputSpec& spec, const TailSpec& tail) {
  const int64_t columns = h.groups * h.n;
  ZP_REQUIRE(
      w_scale.scalar_type() == ScalarType::Float && w_scale.is_contiguous() &&
          (w_scale.numel() == 1 || w_scale.numel() == columns),
      std::string(what) + ": w_scale must be contiguous float32 with 1 or " + std::to_string(columns) + " values");
  if (bias)
    ZP_REQUIRE(bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == columns,
               std::string(what) + ": bias must be contiguous float32 with " + std::to_string(columns) + " values");
  check_qparams(what, "x", spec.x_scale, spec.x_zero_point, spec.x_dtype);

  EpilogueCache* cache = EpilogueCache::current();
  if (cache && cache->filled) {
    Epilogue known = cache->epilogue;
    if (tail.residual) known.residual = bytes(*tail.residual);
    return known;
  }
  Epilogue e;
  const int64_t per_group = slots_per_group(h), slots = h.groups * per_group;
  const auto array_bytes = static_cast<size_t>(slots) * 12;
  auto* init =
      reinterpret_cast<int32_t*>(cache ? cache->resize(array_bytes) : scratch(Scratch::kEpilogue, array_bytes));
  auto* mult = reinterpret_cast<float*>(init + slots);
  auto* offset = mult + slots;
  e.init = init;
  e.mult = mult;
  e.bias = offset;

  const bool quantized = spec.dtype == ScalarType::Byte || spec.dtype == ScalarType::Char;
  double x_scale = as_f32(spec.x_scale), inverse = 1.0;
  if (quantized) {
    check_qparams(what, "y", spec.scale, spec.zero_point, spec.dtype);
    e.zero_point = to_u8_domain(spec.zero_point, spec.dtype);
    e.lo = static_cast<uint8_t>(to_u8_domain(spec.quant_min, spec.dtype));
    e.hi = static_cast<uint8_t>(to_u8_domain(spec.quant_max, spec.dtype));
    e.out_xor = sign_flip(spec.dtype);
    inverse = 1.0 / as_f32(spec.scale);
  } else {
    e.output = spec.dtype == ScalarType::Float ? Epilogue::Output::kF32 : Epilogue::Output::kI32;
  }
  const double ratio = x_scale * inverse;
  const int32_t x_zero_point = to_u8_domain(spec.x_zero_point, spec.x_dtype);
  const int32_t* sums = column_sums(blob);
  const auto* scales = static_cast<const float*>(w_scale.data_ptr());
  const int64_t scale_step = w_scale.numel() == 1 ? 0 : 1;
  const float* biases = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
  // First by column, in loops that vectorise; the columns past n of the last panel stay 0.
  auto* by_column = reinterpret_cast<int32_t*>(scratch(Scratch::kColumns, static_cast<size_t>(per_group) * 12));
  auto* column_mult = reinterpret_cast<float*>(by_column + per_group);
  auto* column_bias = column_mult + per_group;
  // Of the floats' magnitude bits, which order like the floats: inf and NaN are on top.
  int32_t largest_mult = 0, largest_bias = 0;
  for (int64_t group = 0; group < h.groups; ++group) {
    std::memset(by_column, 0, static_cast<size_t>(per_group) * 12);
    const int64_t c = group * h.n;
    for (int64_t i = 0; i < h.n; ++i) {
      // Wraps with the accumulator; their sum is the exact product (numerics.md).
      by_column[i] =
          static_cast<int32_t>(static_cast<uint32_t>(h.a_offset - x_zero_point) * static_cast<uint32_t>(sums[c + i]));
      column_mult[i] = static_cast<float>(ratio * static_cast<double>(scales[(c + i) * scale_step]));
      largest_mult = std::max(largest_mult, magnitude_bits(column_mult[i]));
    }
    if (biases)
      for (int64_t i = 0; i < h.n; ++i) {
        column_bias[i] = static_cast<float>(static_cast<double>(biases[c + i]) * inverse);
        largest_bias = std::max(largest_bias, magnitude_bits(column_bias[i]));
      }
    // Then to panel order: a vector's lanes are runs of four columns.
    int64_t slot = group * per_group;
    for (int64_t first = 0; first < h.n;) {
      const bool depthwise = h.kind == PackKind::kDepthwise;
      const int64_t lanes = depthwise && h.tail_lanes && first >= full_block_channels(h) ? h.tail_lanes : h.lanes;
      const int64_t vectors = depthwise ? 4 : vectors_of_panel(h.n - first, h.lanes, h.panel_vectors);
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t lane = 0; lane < lanes; lane += 4, slot += 4) {
          const int64_t column = first + panel_column(v, lane, vectors);
          std::memcpy(init + slot, by_column + column, 16);
          std::memcpy(mult + slot, column_mult + column, 16);
          std::memcpy(offset + slot, column_bias + column, 16);
        }
      first += vectors * lanes;
    }
  }
  ZP_REQUIRE(std::max(largest_mult, largest_bias) < 0x7F800000,
             std::string(what) +
                 ": x_scale * w_scale / y_scale or bias / y_scale is not finite in float32 for some output channel");

  if (tail.residual) {
    ZP_REQUIRE(quantized, std::string(what) + ": a residual needs an 8-bit output");
    const ScalarType dtype = tail.residual->scalar_type();
    check_qparams(what, "residual", tail.residual_scale, tail.residual_zero_point, dtype);
    check_qparams(what, "sum", tail.sum_scale, tail.sum_zero_point, spec.dtype);
    const double sum_inverse = 1.0 / as_f32(tail.sum_scale);
    e.residual = bytes(*tail.residual);
    e.residual_xor = sign_flip(dtype);
    e.residual_zero_point = static_cast<float>(to_u8_domain(tail.residual_zero_point, dtype));
    e.least = static_cast<float>(e.lo - e.zero_point);
    e.most = static_cast<float>(e.hi - e.zero_point);
    e.sum_mult = static_cast<float>(as_f32(spec.scale) * sum_inverse);
    e.residual_mult = static_cast<float>(as_f32(tail.residual_scale) * sum_inverse);
    e.sum_zero_point = to_u8_domain(tail.sum_zero_point, spec.dtype);
    e.sum_lo = static_cast<uint8_t>(to_u8_domain(tail.sum_min, spec.dtype));
    e.sum_hi = static_cast<uint8_t>(to_u8_domain(tail.sum_max, spec.dtype));
  }
  // |q - z| and |w - z| are at most 255; float32's own roundings stay far below the factor of 2.
  const double most =
      static_cast<double>(h.unique_taps * std::max<int64_t>(h.kc, 1)) * 255 * 255 * of_bits(largest_mult) +
      of_bits(largest_bias) + 255.0 * (e.sum_mult + e.residual_mult);
  e.bounded = 2 * most < kLargestRounded;
  const int32_t last_zero_point = tail.residual ? e.sum_zero_point : e.zero_point;
  const uint8_t last_lo = tail.residual ? e.sum_lo : e.lo, last_hi = tail.residual ? e.sum_hi : e.hi;
  e.plain = e.bounded && last_zero_point == 0 && last_lo == 0 && last_hi == 255 && e.out_xor == 0;
  if (tail.table) {
    // Tables map bytes as stored; the kernel looks up in the uint8 domain and flips after.
    ZP_REQUIRE(quantized && tail.table->numel() == 256 && is_byte(*tail.table) && tail.table->is_contiguous(),
               std::string(what) + ": table must be 256 contiguous 8-bit values and the output 8 bit");
    e.table = bytes(*tail.table);
    if (e.out_xor) {
      static thread_local uint8_t own[256];
      uint8_t* flipped = cache ? cache->table : own;
      for (int i = 0; i < 256; ++i) flipped[i ^ 0x80] = e.table[i] ^ 0x80;
      e.table = flipped;
    }
  }
  if (cache) {
    cache->epilogue = e;
    cache->filled = true;
  }
  return e;
}

}  // namespace zeropoint
