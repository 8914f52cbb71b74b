// The dot product alone (where A is split, that of split.h), on registers: what `benchmarks/kernels`
// divides by. Ten independent chains cover the latency of the instruction on every CPU we know of.
#pragma once
#include "../kernel_table.h"

namespace zeropoint {
namespace {

constexpr int kPeakChains = 10;

// Runs `iterations` rounds of kPeakChains dots; the sum keeps the compiler from dropping them.
template <class V>
int32_t dot_peak(int64_t iterations) {
  int32_t ones[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) ones[i] = 0x01010101;
  typename V::I32 a = V::load_i32(ones);
  const typename V::I32 b = V::load_i32(ones);
  [[maybe_unused]] const auto* weights = reinterpret_cast<const uint8_t*>(ones);
  typename V::I32 acc[kPeakChains];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakChains; ++i) acc[i] = a;
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kPeakChains; ++i) {
      V::keep(a);  // else a product of constants would be computed once
      if constexpr (V::kSplits)
        acc[i] = V::add_pairs(acc[i], V::multiply_split(a, b, weights));
      else
        acc[i] = V::dot(acc[i], a, b);
      V::keep(acc[i]);
    }
  }
  int32_t sum = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kPeakChains; ++i) {
    V::store_i32(ones, acc[i]);
    sum ^= ones[0];
  }
  return sum;
}

}  // namespace
}  // namespace zeropoint
