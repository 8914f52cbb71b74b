// Layer norm and RMS norm of rows of float32 (numerics.md, "Norms and softmax"). Sums are taken in kNormLanes parts, so
// that the order of additions is the same on every instruction set.
#pragma once
#include "dynamic.h"

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

// s = x + residual, put in `sum`, or x where residual is null; norm = ((s - mean) * rstd) * weight + bias; weight and
// bias may be null.
template <class V>
void norm_row(const float* x, const float* residual, int64_t n, const float* weight, const float* bias, float eps,
              bool centered, float* sum, float* norm) {
  const float* s = x;
  if (residual) {
    for (int64_t i = 0; i < n; ++i) sum[i] = x[i] + residual[i];
    s = sum;
  }
  const auto count = static_cast<float>(n);
  float mean = 0.0f;
  if (centered) mean = sum_in_parts<V>(n, [&](int64_t i, int64_t left) { return load_lanes<V>(s + i, left); }) / count;
  const typename V::F32 middle = V::set_f32(mean);
  const float squares = sum_in_parts<V>(n, [&](int64_t i, int64_t left) {
    const typename V::F32 d = V::sub(load_lanes<V>(s + i, left), middle), square = V::mul(d, d);
    if (left >= V::kLanes) return square;
    alignas(64) float lanes[V::kLanes] = {};
    store_lanes<V>(lanes, square, left);
    return V::load_f32(lanes);
  });
  const float rstd = 1.0f / __builtin_sqrtf(squares / count + eps);
  if (weight && bias)
    for (int64_t i = 0; i < n; ++i) norm[i] = ((s[i] - mean) * rstd) * weight[i] + bias[i];
  else if (weight)
    for (int64_t i = 0; i < n; ++i) norm[i] = ((s[i] - mean) * rstd) * weight[i];
  else if (bias)
    for (int64_t i = 0; i < n; ++i) norm[i] = (s[i] - mean) * rstd + bias[i];
  else
    for (int64_t i = 0; i < n; ++i) norm[i] = (s[i] - mean) * rstd;
}

}  // namespace
}  // namespace zeropoint
