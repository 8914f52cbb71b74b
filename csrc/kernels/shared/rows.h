// Normalization and softmax of rows of bytes: sums are exact integers, the rest is elementwise (numerics.md, "Norms and
// softmax"). Plain loops that each instruction set's flags vectorise.
#pragma once
#include "elementwise.h"

namespace zeropoint {
namespace {

// Sums of the bytes, in the uint8 domain, and of their squares.
void row_sums(const uint8_t* x, int64_t n, uint8_t x_xor, int64_t* sum, int64_t* squares) {
  *sum = *squares = 0;
  for (int64_t first = 0; first < n; first += 16384) {  // 16384 * 255^2 < 2^31
    const int64_t end = first + 16384 < n ? first + 16384 : n;
    int32_t s = 0, q = 0;
    for (int64_t i = first; i < end; ++i) {
      const auto v = static_cast<int16_t>(x[i] ^ x_xor);  // two products at a time
      s += v;
      q += static_cast<int32_t>(v) * static_cast<int32_t>(v);
    }
    *sum += s;
    *squares += q;
  }
}

// out = clamp(rhe(((q - z - mean) * rstd) * weight + bias) + zero point); weight and bias per element, or one for all.
void normalize_row(const NormalizeParams& p, const uint8_t* x, int64_t n, float mean, float rstd, const float* weight,
                   const float* bias, bool single, uint8_t* out) {
  const uint8_t flip = p.x_xor, back = p.out_xor, lo = p.lo, hi = p.hi;
  const int32_t z = p.x_zero_point, zy = p.out_zero_point;
  if (single) {
    const float w = *weight, b = *bias;
    for (int64_t i = 0; i < n; ++i) {
      const float value = ((static_cast<float>((x[i] ^ flip) - z) - mean) * rstd) * w + b;
      out[i] = round_to_u8(value, zy, lo, hi) ^ back;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const float value = ((static_cast<float>((x[i] ^ flip) - z) - mean) * rstd) * weight[i] + bias[i];
      out[i] = round_to_u8(value, zy, lo, hi) ^ back;
    }
  }
}

// table[q] = clamp(rhe(f32(powers[max - q]) * factor) + zero point), factor = f32(1 / (sum of powers * scale)), for
// lookup in the uint8 domain.
void softmax_table(const SoftmaxParams& p, const uint8_t* x, int64_t n, uint8_t* table) {
  uint8_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t q = x[i] ^ p.x_xor;
    top = q > top ? q : top;
  }
  const int32_t* powers = p.powers + 255 - top;  // by q
  int64_t sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += powers[x[i + j] ^ p.x_xor];
  for (; i < n; ++i) sums[0] += powers[x[i] ^ p.x_xor];
  const auto factor = static_cast<float>(1.0 / (static_cast<double>(sums[0] + sums[1] + sums[2] + sums[3]) * p.scale));
  const int32_t zero_point = p.out_zero_point;
  const uint8_t lo = p.lo, hi = p.hi, back = p.out_xor;
  for (int q = 0; q < 256; ++q) {
    const float value = static_cast<float>(powers[q]) * factor;  // powers are below 2^24: exact
    table[q] = round_to_u8(value, zero_point, lo, hi) ^ back;
  }
}

}  // namespace
}  // namespace zeropoint
