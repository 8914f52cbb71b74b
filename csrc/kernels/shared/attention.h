// The probabilities of attention from exact scores (numerics.md, "Attention").
#pragma once
#include "dynamic.h"

namespace zeropoint {
namespace {

// From scores to what follows the masked sum: z[i] = float(s[i]) * scale + mask[i], p[i] = rhe(255 * exp(z[i] -
// largest)). All of a row that has nothing to look at is 0. `mask` is padded with kMasked to a multiple of the lanes.
template <class V>
void masked_row(int32_t* s, int64_t n, float scale, const float* mask) {
  auto* z = reinterpret_cast<float*>(s);
  const typename V::F32 factor = V::set_f32(scale), steps = V::set_f32(255.0f);
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store_f32(z + i, V::add(V::mul(V::to_f32(V::load_i32(s + i)), factor), V::load_f32(mask + i)));
  float largest = kMasked;
  for (int64_t i = 0; i < n; ++i) largest = mask[i] > kMasked && z[i] > largest ? z[i] : largest;
  const typename V::F32 top = V::set_f32(largest > kMasked ? largest : kLargestMask);
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store_i32(s + i, V::round_i32(V::mul(gate_exp<V>(V::sub(V::load_f32(z + i), top)), steps)));
}

// rhe(255 * exp((s[i] - largest) * scale)).
template <class V>
void plain_row(int32_t* s, int64_t n, float scale) {
  int32_t largest = s[0];
  for (int64_t i = 1; i < n; ++i) largest = s[i] > largest ? s[i] : largest;
  const typename V::I32 top = V::set_i32(largest);
  const typename V::F32 factor = V::set_f32(scale), steps = V::set_f32(255.0f);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const typename V::F32 x = V::mul(V::to_f32(V::sub_i32(V::load_i32(s + i), top)), factor);
    V::store_i32(s + i, V::round_i32(V::mul(gate_exp<V>(x), steps)));
  }
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

}  // namespace
}  // namespace zeropoint
