// Sums and products of two 8-bit tensors (numerics.md, "Add, mul, pools"): floats in the order in which bytes widen
// (panel order, epilogue.h), and back by the narrowing of the epilogue.
#pragma once
#include "epilogue.h"

namespace zeropoint {
namespace {

// The bytes less their zero point, in panel order; `out` has room for whole blocks of 4 * V::kLanes.
template <class V>
void panel_floats(const uint8_t* q, int64_t n, uint8_t flip, int32_t zero_point, float* out) {
  constexpr int64_t kBlock = 4 * V::kLanes;
  for (int64_t i = 0; i < n; i += kBlock) {
    typename V::F32 f[4];
    const int count = static_cast<int>(n - i < kBlock ? n - i : kBlock);
    V::template byte_floats<4>(V::flip(V::template load_u8<4>(q + i, count), flip), static_cast<float>(zero_point), f);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) V::store_f32(out + i + v * V::kLanes, f[v]);
  }
}

// out = f(a - its zero point, b - its zero point), rounded half to even.
template <class V, bool Bounded, bool Floats, class F>
inline void binary_blocks(const BinaryParams& p, int64_t n, const F& f) {
  constexpr int64_t kBlock = 4 * V::kLanes;
  const float za = static_cast<float>(p.a_zero_point), zb = static_cast<float>(p.b_zero_point);
  for (int64_t i = 0; i < n; i += kBlock) {
    const int count = static_cast<int>(n - i < kBlock ? n - i : kBlock);
    typename V::F32 a[4], b[4];
    V::template byte_floats<4>(V::flip(V::template load_u8<4>(p.a + i, count), p.a_xor), za, a);
    if constexpr (Floats) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) b[v] = V::load_f32(p.b_floats + i + v * V::kLanes);
    } else {
      V::template byte_floats<4>(V::flip(V::template load_u8<4>(p.b + i, count), p.b_xor), zb, b);
    }
    typename V::I32 q[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) q[v] = rounded<V, Bounded>(f(a[v], b[v]));
    V::template store_u8<4>(p.out + i,
                            V::flip(V::template narrow<4, false>(q, p.out_zero_point, p.lo, p.hi), p.out_xor), count);
  }
}

template <class V, class F>
inline void binary(const BinaryParams& p, int64_t n, const F& f) {
  if (p.bounded && p.b_floats)
    binary_blocks<V, true, true>(p, n, f);
  else if (p.b_floats)
    binary_blocks<V, false, true>(p, n, f);
  else if (p.bounded)
    binary_blocks<V, true, false>(p, n, f);
  else
    binary_blocks<V, false, false>(p, n, f);
}

template <class V>
void add(const BinaryParams& p, int64_t n) {
  const typename V::F32 ma = V::set_f32(p.a_mult), mb = V::set_f32(p.b_mult);
  binary<V>(p, n, [&](typename V::F32 a, typename V::F32 b) { return V::add(V::mul(a, ma), V::mul(b, mb)); });
}

template <class V>
void mul(const BinaryParams& p, int64_t n) {
  const typename V::F32 m = V::set_f32(p.a_mult);
  // |a * b| <= 255 * 255: exact in float32.
  binary<V>(p, n, [&](typename V::F32 a, typename V::F32 b) { return V::mul(V::mul(a, b), m); });
}

}  // namespace
}  // namespace zeropoint
