// Layer norm and RMS norm of rows of float32 (numerics.md, "Norms and softmax"). Sums are taken in kNormLanes parts, so
// that the order of additions is the same on every instruction set.
#pragma once
#include "dynamic.h"
#include "elementwise.h"

namespace zeropoint {
namespace {

constexpr int64_t kNormLanes = 64;

// The sum of value(i, n) for i in steps of lanes, of which the first n are real and the others 0: part j has the
// elements j, j + 64, j + 128, ... in this order; then the upper half of the parts is added to the lower one until one
// is left.
template <class V, class F>
float sum_in_parts(int64_t n, const F& value) {
  constexpr int kVectors = static_cast<int>(kNormLanes) / V::kLanes;
  typename V::F32 parts[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) parts[v] = V::set_f32(0.0f);
  int64_t i = 0;
  for (; i + kNormLanes <= n; i += kNormLanes)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) parts[v] = V::add(parts[v], value(i + v * V::kLanes, V::kLanes));
  for (int v = 0; v < kVectors && i < n; ++v, i += V::kLanes) parts[v] = V::add(parts[v], value(i, n - i));
#pragma GCC unroll 16
  for (int half = kVectors / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int v = 0; v < half; ++v) parts[v] = V::add(parts[v], parts[v + half]);
  alignas(64) float lanes[V::kLanes];
  V::store_f32(lanes, parts[0]);
#pragma GCC unroll 8
  for (int half = V::kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// ((s - mean) * rstd) * weight + bias, in 8 bits without being stored before where only that is wanted.
template <bool kWeight, bool kBias>
void finish_norm(const NormParams& p, const float* __restrict s, float mean, float rstd, float* __restrict norm,
                 uint8_t* __restrict q) {
  const float* __restrict weight = p.weight, * __restrict bias = p.bias;
  const auto value = [&](int64_t i) {
    float y = (s[i] - mean) * rstd;
    if (kWeight) y *= weight[i];
    if (kBias) y += bias[i];
    return y;
  };
  if (!norm) {
    const ToU8 quantize(p.inv_scale, p.zero_point, p.out_xor);
    for (int64_t i = 0; i < p.n; ++i) q[i] = quantize(value(i));
    return;
  }
  for (int64_t i = 0; i < p.n; ++i) norm[i] = value(i);
  if (q) quantize_u8(norm, p.n, p.inv_scale, p.zero_point, p.out_xor, q);
}

// s = x + residual, put in `sum`, or x where residual is null; its norm, in `norm` and, quantized, in `q`, of which one
// may be null.
template <class V>
void norm_row(const NormParams& p, const float* x, const float* residual, float* sum, float* norm, uint8_t* q) {
  const float* s = residual ? sum : x;
  const auto summand = [&](int64_t i, int64_t left) {
    const typename V::F32 v = load_lanes<V>(x + i, left);
    if (!residual) return v;
    const typename V::F32 total = V::add(v, load_lanes<V>(residual + i, left));
    store_lanes<V>(sum + i, total, left);
    return total;
  };
  const auto count = static_cast<float>(p.n);
  float mean = 0.0f;
  if (p.centered) mean = sum_in_parts<V>(p.n, summand) / count;
  const typename V::F32 middle = V::set_f32(mean);
  const float squares = sum_in_parts<V>(p.n, [&](int64_t i, int64_t left) {
    const typename V::F32 d = V::sub(p.centered ? load_lanes<V>(s + i, left) : summand(i, left), middle);
    const typename V::F32 square = V::mul(d, d);
    if (left >= V::kLanes) return square;
    alignas(64) float lanes[V::kLanes] = {};
    store_lanes<V>(lanes, square, left);
    return V::load_f32(lanes);
  });
  const float rstd = 1.0f / __builtin_sqrtf(squares / count + p.eps);
  const auto finish = p.weight ? (p.bias ? finish_norm<true, true> : finish_norm<true, false>)
                               : (p.bias ? finish_norm<false, true> : finish_norm<false, false>);
  finish(p, s, mean, rstd, norm, q);
}

}  // namespace
}  // namespace zeropoint
