// Passes over memory, as plain loops that each instruction set's flags vectorise. The formulas are
// those of docs/numerics.md; -ffp-contract=off keeps every multiplication and addition apart, and the
// one fused multiply-add of the contract (per-tensor quantize) is asked for by name.
#pragma once
#include "../kernel_table.h"

namespace zeropoint {
namespace {

// clamp(rhe(x), low, high) for |low|, |high| <= 2^21: adding 1.5 * 2^23 leaves the rounded integer in the low mantissa
// bits. The clamp is on these bits, because floats order like their bits where they are positive, and compilers turn it
// into two instructions: too large a value (and NaN) is above every bound, a negative sum is below.
inline int32_t round_clamp(float x, int32_t low, int32_t high) {
  constexpr int32_t kShift = 0x4B400000;
  const float shifted = x + 12582912.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  bits = bits > kShift + low ? bits : kShift + low;
  bits = bits < kShift + high ? bits : kShift + high;
  return bits - kShift;
}

// clamp(rhe(x) + zero_point, lo, hi)
inline uint8_t round_to_u8(float x, int32_t zero_point, uint8_t lo, uint8_t hi) {
  return static_cast<uint8_t>(round_clamp(x, lo - zero_point, hi - zero_point) + zero_point);
}

// Quantizes one value at a time.
struct ToU8 {
  float inv_scale, zero_point;
  int32_t lo, hi;

  ToU8(float inv_scale, int32_t zero_point, uint8_t out_xor)
      : inv_scale(inv_scale),
        zero_point(static_cast<float>(zero_point - (out_xor ? 128 : 0))),
        lo(out_xor ? -128 : 0),
        hi(out_xor ? 127 : 255) {}
  uint8_t operator()(float x) const {
    const float v = __builtin_fmaf(x, inv_scale, zero_point);
    return static_cast<uint8_t>(round_clamp(v == v ? v : zero_point, lo, hi));  // NaN, also of 0 * inf -> zero_point
  }
};

void quantize_u8(const float* x, int64_t n, float inv_scale, int32_t zero_point, uint8_t out_xor, uint8_t* out) {
  const ToU8 quantize(inv_scale, zero_point, out_xor);
  for (int64_t i = 0; i < n; ++i) out[i] = quantize(x[i]);
}

// Saturates to the int32 range. 2147483520 is the largest float below 2^31.
inline int32_t round_to_i32(float v) {
  if (v >= 2147483648.0f) return INT32_MAX;
  if (v < -2147483648.0f) return INT32_MIN;
  const float a = __builtin_fabsf(v);
  // Floats from 2^23 on are integers already; below, the shift rounds half to even.
  const float r = a < 8388608.0f ? __builtin_copysignf((a + 8388608.0f) - 8388608.0f, v) : v;
  return static_cast<int32_t>(r);
}

// Product and sum rounded apart here too, as torch does for qint32.
void quantize_i32(const float* x, int64_t n, float inv_scale, int32_t zero_point, int32_t* out) {
  const float zp = static_cast<float>(zero_point);
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i] * inv_scale + zp;
    out[i] = v == v ? round_to_i32(v) : zero_point;
  }
}

// x is [outer, channels, inner]; product and sum rounded apart, as torch does per channel.
void quantize_channel(const float* x, int64_t outer, int64_t channels, int64_t inner, const float* inv_scale,
                      const int32_t* zero_point, int32_t lo, int32_t hi, int32_t* out) {
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t c = 0; c < channels; ++c) {
      const float inv = inv_scale[c], zp = static_cast<float>(zero_point[c]);
      for (int64_t i = 0; i < inner; ++i, ++x, ++out) {
        const float v = *x * inv + zp;
        const int32_t q = v == v ? round_to_i32(v) : zero_point[c];
        *out = q < lo ? lo : q > hi ? hi : q;
      }
    }
}

void dequantize_u8(const uint8_t* x, int64_t n, float scale, int32_t zero_point, uint8_t x_xor, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>((x[i] ^ x_xor) - zero_point) * scale;
}

void dequantize_i32(const int32_t* x, int64_t n, float scale, int32_t zero_point, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int64_t>(x[i]) - zero_point) * scale;
}

void requantize(const int32_t* acc, int64_t n, float mult, int32_t zero_point, uint8_t out_xor, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = round_to_u8(static_cast<float>(acc[i]) * mult, zero_point, 0, 255) ^ out_xor;
}

void add_f32(const float* __restrict a, const float* __restrict b, int64_t n, bool subtract, float* __restrict out) {
  if (subtract)
    for (int64_t i = 0; i < n; ++i) out[i] = a[i] - b[i];
  else
    for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

// x * cos + rotated * sin, where rotated is minus the upper half of x, then its lower half; n is even.
void rotate_row(const float* __restrict x, const float* __restrict cos, const float* __restrict sin, int64_t n,
                float* __restrict out) {
  const int64_t half = n / 2;
  for (int64_t i = 0; i < half; ++i) out[i] = x[i] * cos[i] - x[i + half] * sin[i];
  for (int64_t i = half; i < n; ++i) out[i] = x[i] * cos[i] + x[i - half] * sin[i];
}

// x may be `out`.
template <class V>
void lookup(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out) {
  int64_t i = 0;
  if constexpr (V::kLookupBytes > 0) {
    i = n / V::kLookupBytes * V::kLookupBytes;
    if (i > 0) V::lookup_blocks(x, i, table, out);
  }
  for (; i < n; ++i) out[i] = table[x[i]];
}

// A line of `n` pixels, `step` bytes apart, of each of the channels, `plane` bytes apart, to channels side by side.
// Three planes are those of photographs, and vectorise where that is known.
void interleave_planes(const uint8_t* x, int64_t plane, int64_t step, int64_t channels, int64_t n,
                       uint8_t* __restrict out) {
  if (channels == 3 && step == 1) {
    const uint8_t* __restrict a = x, * __restrict b = x + plane, * __restrict c = x + 2 * plane;
    for (int64_t i = 0; i < n; ++i) {
      out[3 * i] = a[i];
      out[3 * i + 1] = b[i];
      out[3 * i + 2] = c[i];
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c) out[i * channels + c] = x[c * plane + i * step];
}

}  // namespace
}  // namespace zeropoint
