// The probabilities of attention from exact scores, and attention of float32 over a cache (numerics.md, "Attention").
#pragma once
#include <type_traits>

#include "norm.h"

namespace zeropoint {
namespace {

// rhe(255 * 2^y) for y <= 0: of degree 3 on half a power of two to either side (7.5e-5, a fiftieth of a step at most),
// whose factor of 255 is in the coefficients. From 2^-24 on nothing is left.
template <class V>
inline typename V::I32 probability(typename V::F32 y) {
  const auto f = [](float value) { return V::set_f32(value); };
  y = V::max(f(-24.0f), y);
  const typename V::F32 shifted = V::add(y, f(12582912.0f)), r = V::sub(y, V::sub(shifted, f(12582912.0f)));
  typename V::F32 p = V::fma(r, f(14.0687761f), f(61.8658371f));
  p = V::fma(p, r, f(176.781555f));
  p = V::fma(p, r, f(254.981659f));
  return V::round_i32(V::times_power_of_2(p, shifted));
}

// From scores to what follows the masked sum: z[i] = float(s[i]) * scale + mask[i], p[i] = rhe(255 * 2^((z[i] -
// largest) * log2 e)). All of a row that has nothing to look at is 0. `mask` is padded with kMasked to a multiple of
// the lanes.
template <class V>
void masked_row(int32_t* s, int64_t n, float scale, const float* mask) {
  auto* z = reinterpret_cast<float*>(s);
  const typename V::F32 factor = V::set_f32(scale), rate = V::set_f32(1.44269504f);
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store_f32(z + i, V::add(V::mul(V::to_f32(V::load_i32(s + i)), factor), V::load_f32(mask + i)));
  float largest = kMasked;
  for (int64_t i = 0; i < n; ++i) largest = mask[i] > kMasked && z[i] > largest ? z[i] : largest;
  const typename V::F32 top = V::set_f32(largest > kMasked ? largest : kLargestMask);
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store_i32(s + i, probability<V>(V::mul(V::sub(V::load_f32(z + i), top), rate)));
}

// rhe(255 * 2^((s[i] - largest) * scale)).
template <class V>
void plain_row(int32_t* s, int64_t n, float scale) {
  int32_t largest = s[0];
  for (int64_t i = 1; i < n; ++i) largest = s[i] > largest ? s[i] : largest;
  const typename V::I32 top = V::set_i32(largest);
  const typename V::F32 factor = V::set_f32(scale);
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store_i32(s + i, probability<V>(V::mul(V::to_f32(V::sub_i32(V::load_i32(s + i), top)), factor)));
}

// The probabilities p of a row of scores, and their sum. `s` is read and overwritten up to the next multiple of the
// lanes; |s[i] - largest| < 2^31.
template <class V>
int32_t attention_row(int32_t* s, int64_t n, float scale, const float* mask, uint8_t* p) {
  if (mask)
    masked_row<V>(s, n, scale, mask);
  else
    plain_row<V>(s, n, scale);
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    p[i] = static_cast<uint8_t>(s[i]);
    sum += s[i];
  }
  return sum;
}

// z = (query . key) * factor + mask, w = exp(z - the largest z), out = (sum of w * value) / (sum of w). Products of
// features and the w are summed in parts (norm.h), values one key after the other. Keys whose mask is kMasked are not
// looked at; without any other the result is 0.
template <class V>
void attend_row(const AttendParams& p) {
  float* z = p.scores;
  int64_t keys = 0;
  float largest = kMasked;
  for (const AttendParams::Piece& piece : p.pieces)
    for (int64_t i = 0; i < piece.n; ++i, ++keys) {
      const float* key = piece.keys + i * piece.key_stride;
      const float dot = sum_in_parts<V>(p.d, [&](int64_t j, int64_t left) {
        return V::mul(load_lanes<V>(p.query + j, left), load_lanes<V>(key + j, left));
      });
      z[keys] = dot * p.factor;
      if (p.mask) z[keys] = z[keys] + p.mask[keys];
      if (p.mask && !(p.mask[keys] > kMasked)) continue;
      largest = z[keys] > largest ? z[keys] : largest;
    }
  const typename V::F32 top = V::set_f32(largest);
  for (int64_t i = 0; i < keys; i += V::kLanes)
    store_lanes<V>(z + i, gate_exp<V>(V::sub(load_lanes<V>(z + i, keys - i), top)), keys - i);
  if (p.mask)
    for (int64_t i = 0; i < keys; ++i) z[i] = p.mask[i] > kMasked ? z[i] : 0.0f;
  const float sum = sum_in_parts<V>(keys, [&](int64_t i, int64_t left) { return load_lanes<V>(z + i, left); });
  const float rate = sum > 0.0f || sum != sum ? 1.0f / sum : 0.0f;
  constexpr int kVectors = 4;
  for (int64_t j = 0; j < p.e; j += kVectors * V::kLanes) {
    const int64_t left = p.e - j;
    const float* w = z;
    const auto weigh = [&](auto whole) {
      typename V::F32 acc[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[v] = V::set_f32(0.0f);
      for (const AttendParams::Piece& piece : p.pieces)
        for (int64_t i = 0; i < piece.n; ++i, ++w) {
          const typename V::F32 weight = V::set_f32(*w);
          const float* value = piece.values + i * piece.value_stride + j;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            if (!whole && v * V::kLanes >= left) break;
            const typename V::F32 x =
                whole ? V::load_f32(value + v * V::kLanes) : load_lanes<V>(value + v * V::kLanes, left - v * V::kLanes);
            acc[v] = V::add(acc[v], V::mul(weight, x));
          }
        }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        if (whole || v * V::kLanes < left)
          store_lanes<V>(p.out + j + v * V::kLanes, V::mul(acc[v], V::set_f32(rate)), left - v * V::kLanes);
    };
    if (left >= kVectors * V::kLanes)
      weigh(std::true_type{});
    else
      weigh(std::false_type{});
  }
}

}  // namespace
}  // namespace zeropoint
