// The probabilities of attention from exact scores (numerics.md, "Attention").
#pragma once
#include "dynamic.h"

namespace zeropoint {
namespace {

// p[i] = rhe(255 * exp((s[i] - largest) * scale)) and their sum. `s` is read and overwritten up to the next multiple of
// the lanes; |s[i] - largest| < 2^31.
template <class V>
int32_t attention_row(int32_t* s, int64_t n, float scale, uint8_t* p) {
  int32_t largest = s[0];
  for (int64_t i = 1; i < n; ++i) largest = s[i] > largest ? s[i] : largest;
  const typename V::I32 top = V::set_i32(largest);
  const typename V::F32 factor = V::set_f32(scale), steps = V::set_f32(255.0f);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const typename V::F32 x = V::mul(V::to_f32(V::sub_i32(V::load_i32(s + i), top)), factor);
    V::store_i32(s + i, V::round_i32(V::mul(gate_exp<V>(x), steps)));
  }
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    p[i] = static_cast<uint8_t>(s[i]);
    sum += s[i];
  }
  return sum;
}

}  // namespace
}  // namespace zeropoint
