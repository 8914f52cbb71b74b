// The probabilities of attention from exact scores, and attention of float32 over a cache (numerics.md, "Attention").
#pragma once
#include <type_traits>

#include "norm.h"

namespace zeropoint {
namespace {

// rhe(255 * 2^y) for y <= 0: of degree 3 on half a power of two to either side (7.5e-5, a fiftieth of a step at most),
// whose factor of 255 is in the coefficients. From 2^-24 on nothing is left. Several vectors step by step: one by one,
// the operations that wait for each other would fill the core's schedulers.
template <class V, int N>
__attribute__((always_inline)) inline void probabilities(const typename V::F32 (&y)[N], typename V::I32 (&q)[N]) {
  const auto f = [](float value) { return V::set_f32(value); };
  typename V::F32 r[N], shifted[N], p[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) r[v] = V::max(f(-24.0f), y[v]);
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) shifted[v] = V::add(r[v], f(12582912.0f));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) p[v] = V::sub(shifted[v], f(12582912.0f));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) r[v] = V::sub(r[v], p[v]);
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) p[v] = V::fma(r[v], f(14.0687761f), f(61.8658371f));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) p[v] = V::fma(p[v], r[v], f(176.781555f));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) p[v] = V::fma(p[v], r[v], f(254.981659f));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) q[v] = V::round_i32(V::times_power_of_2(p[v], shifted[v]));
}

// Stores `slots` probabilities, of which f gives kLanes at a time; their sum.
template <class V, class F>
int32_t store_probabilities(int64_t slots, uint8_t* out, const F& f) {
  typename V::I32 sum = V::set_i32(0);
  const auto store = [&](auto vectors, int64_t i) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::value;
    typename V::F32 y[kVectors];
    typename V::I32 q[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) y[v] = f(i + v * V::kLanes);
    probabilities<V, kVectors>(y, q);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V::store_bytes(out + i + v * V::kLanes, q[v]);
      sum = V::add_i32(sum, q[v]);
    }
  };
  int64_t i = 0;
  for (; i + 4 * V::kLanes <= slots; i += 4 * V::kLanes) store(std::integral_constant<int, 4>{}, i);
  for (; i < slots; i += V::kLanes) store(std::integral_constant<int, 1>{}, i);
  return V::sum(sum);
}

// z[i] = float(s[i]) * scale + mask[i], p[i] = rhe(255 * 2^((z[i] - largest) * log2 e)). All of a row that has nothing
// to look at is 0, and so is the mask's padding with kMasked.
template <class V>
int32_t masked_row(int32_t* s, int64_t slots, float scale, const float* mask, uint8_t* p) {
  auto* z = reinterpret_cast<float*>(s);
  const typename V::F32 factor = V::set_f32(scale), rate = V::set_f32(1.44269504f), masked = V::set_f32(kMasked);
  typename V::F32 all = masked;
  for (int64_t i = 0; i < slots; i += V::kLanes) {
    const typename V::F32 added = V::load_f32(mask + i);
    const typename V::F32 sum = V::add(V::mul(V::to_f32(V::load_i32(s + i)), factor), added);
    V::store_f32(z + i, sum);
    all = V::max(V::where_above(added, masked, sum, masked), all);
  }
  const float largest = V::largest(all);
  const typename V::F32 top = V::set_f32(largest > kMasked ? largest : kLargestMask);
  return store_probabilities<V>(slots, p, [&](int64_t i) { return V::mul(V::sub(V::load_f32(z + i), top), rate); });
}

// p[i] = rhe(255 * 2^((s[i] - largest) * scale)).
template <class V>
int32_t plain_row(const int32_t* s, int64_t n, int64_t slots, float scale, uint8_t* p) {
  typename V::I32 all = V::load_i32(s), others = all;
  int64_t i = V::kLanes;
  for (; i + 2 * V::kLanes <= slots; i += 2 * V::kLanes) {
    all = V::max_i32(all, V::load_i32(s + i));
    others = V::max_i32(others, V::load_i32(s + i + V::kLanes));
  }
  if (i < slots) all = V::max_i32(all, V::load_i32(s + i));
  all = V::max_i32(all, others);
  const typename V::I32 top = V::set_i32(V::largest(all));
  const typename V::F32 factor = V::set_f32(scale);
  const int32_t sum = store_probabilities<V>(
      slots, p, [&](int64_t j) { return V::mul(V::to_f32(V::sub_i32(V::load_i32(s + j), top)), factor); });
  return slots > n ? sum - static_cast<int32_t>(slots - n) * p[n] : sum;
}

// The probabilities p of a row of n scores, and their sum; |s[i] - largest| < 2^31. Up to the next multiple of the
// lanes `s` goes on with kNoScore, or with what the mask hides, and `p` is written.
template <class V>
int32_t attention_row(int32_t* s, int64_t n, float scale, const float* mask, uint8_t* p) {
  const int64_t slots = (n + V::kLanes - 1) / V::kLanes * V::kLanes;
  return mask ? masked_row<V>(s, slots, scale, mask, p) : plain_row<V>(s, n, slots, scale, p);
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
