// What dynamic quantization does around the integer product: ranges, float outputs, recurrent gates.
// Plain loops that each instruction set's flags vectorise; the same bits everywhere (docs/numerics.md).
#pragma once
#include "../kernel_table.h"

namespace zeropoint {
namespace {

// Range of x together with 0; NaN counts as 0, infinities come out. Minimum and maximum do not depend on the order.
template <class V>
void row_range(const float* x, int64_t n, float* lo, float* hi) {
  constexpr int kChains = 4;
  typename V::F32 low[kChains], high[kChains];
#pragma GCC unroll 4
  for (int j = 0; j < kChains; ++j) low[j] = high[j] = V::set_f32(0.0f);
  int64_t i = 0;
  for (; i + kChains * V::kLanes <= n; i += kChains * V::kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      const typename V::F32 v = V::load_f32(x + i + j * V::kLanes);
      low[j] = V::min(v, low[j]);  // the second operand where v is NaN
      high[j] = V::max(v, high[j]);
    }
#pragma GCC unroll 4
  for (int j = 1; j < kChains; ++j) {
    low[0] = V::min(low[j], low[0]);
    high[0] = V::max(high[j], high[0]);
  }
  alignas(64) float lows[V::kLanes], highs[V::kLanes];
  V::store_f32(lows, low[0]);
  V::store_f32(highs, high[0]);
  for (; i < n; ++i) {
    lows[0] = x[i] < lows[0] ? x[i] : lows[0];
    highs[0] = x[i] > highs[0] ? x[i] : highs[0];
  }
  *lo = lows[0];
  *hi = highs[0];
  for (int j = 1; j < V::kLanes; ++j) {
    *lo = lows[j] < *lo ? lows[j] : *lo;
    *hi = highs[j] > *hi ? highs[j] : *hi;
  }
}

// out = (float(acc - zero_point * sum) * scale) * w_scale + bias: each operation rounded by itself.
inline void dequantize_row(const int32_t* __restrict acc, const int32_t* __restrict sums, int64_t n, int32_t zero_point,
                           float scale, const float* __restrict w_scale, const float* __restrict bias, bool relu,
                           float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t shifted =
        static_cast<uint32_t>(acc[i]) - static_cast<uint32_t>(zero_point) * static_cast<uint32_t>(sums[i]);
    float value = (static_cast<float>(static_cast<int32_t>(shifted)) * scale) * w_scale[i];
    if (bias) value = value + bias[i];
    if (relu) value = value > 0.0f ? value : 0.0f;
    out[i] = value;
  }
}

// exp in float32 by 2^n * p(r), r within half a ln 2, p of degree 5 (minimax, 1.1e-7); x is clamped to +-43, so that
// products of two stay finite. NaN stays NaN: it is the second operand of both comparisons. Fused multiply-adds are
// part of the formula.
template <class V>
inline typename V::F32 gate_exp(typename V::F32 x) {
  const auto f = [](float value) { return V::set_f32(value); };
  x = V::max(f(-43.0f), V::min(f(43.0f), x));
  const typename V::F32 shifted = V::fma(x, f(1.44269504f), f(12582912.0f));
  const typename V::F32 n = V::sub(shifted, f(12582912.0f));
  const typename V::F32 r = V::fma(n, f(-0.693147182f), x);
  typename V::F32 p = V::fma(r, f(8.31243000e-3f), f(4.18910900e-2f));
  p = V::fma(p, r, f(1.66671180e-1f));
  p = V::fma(p, r, f(4.99992260e-1f));
  p = V::add(V::fma(V::mul(p, r), r, r), f(1.0f));
  return V::mul(p, V::power_of_2(shifted));
}

// 1 + exp(-x): sigmoid(x) is 1 over it.
template <class V>
inline typename V::F32 sigmoid_divisor(typename V::F32 x) {
  return V::add(V::set_f32(1.0f), gate_exp<V>(V::sub(V::set_f32(0.0f), x)));
}
// tanh(x) is `above` / `below`.
template <class V>
inline void tanh_ratio(typename V::F32 x, typename V::F32& above, typename V::F32& below) {
  const typename V::F32 e = gate_exp<V>(V::add(x, x)), one = V::set_f32(1.0f);
  above = V::sub(e, one);
  below = V::add(e, one);
}

// The first `n` lanes of memory; the others 0.
template <class V>
inline typename V::F32 load_lanes(const float* p, int64_t n) {
  if (n >= V::kLanes) return V::load_f32(p);
  alignas(64) float lanes[V::kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return V::load_f32(lanes);
}
template <class V>
inline void store_lanes(float* p, typename V::F32 x, int64_t n) {
  if (n >= V::kLanes) return V::store_f32(p, x);
  alignas(64) float lanes[V::kLanes];
  V::store_f32(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// gate * sigmoid(gate) * up.
template <class V>
void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const typename V::F32 g = load_lanes<V>(gate + i, n - i);
    store_lanes<V>(out + i, V::mul(V::div(g, sigmoid_divisor<V>(g)), load_lanes<V>(up + i, n - i)), n - i);
  }
}

// Sigmoids and tanhs that are multiplied share a division. The first `count` of `hidden` units; a, b: gates from the
// input and from the state, [4 * hidden] in the order i, f, g, o.
template <class V>
void lstm_gates(const float* a, const float* b, int64_t hidden, int64_t count, float* h, float* c) {
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t n = count - i;
    const auto gate = [&](int64_t g) {
      return V::add(load_lanes<V>(a + g * hidden + i, n), load_lanes<V>(b + g * hidden + i, n));
    };
    typename V::F32 above, below;
    tanh_ratio<V>(gate(2), above, below);
    const typename V::F32 added = V::div(above, V::mul(sigmoid_divisor<V>(gate(0)), below));
    const typename V::F32 kept = V::div(load_lanes<V>(c + i, n), sigmoid_divisor<V>(gate(1)));
    const typename V::F32 now = V::add(kept, added);
    tanh_ratio<V>(now, above, below);
    store_lanes<V>(c + i, now, n);
    store_lanes<V>(h + i, V::div(above, V::mul(sigmoid_divisor<V>(gate(3)), below)), n);
  }
}

// Gates in the order r, z, n.
template <class V>
void gru_gates(const float* a, const float* b, int64_t hidden, int64_t count, float* h) {
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t n = count - i;
    const auto gate = [&](int64_t g) {
      return V::add(load_lanes<V>(a + g * hidden + i, n), load_lanes<V>(b + g * hidden + i, n));
    };
    const typename V::F32 from_state = V::div(load_lanes<V>(b + 2 * hidden + i, n), sigmoid_divisor<V>(gate(0)));
    typename V::F32 above, below;
    tanh_ratio<V>(V::add(load_lanes<V>(a + 2 * hidden + i, n), from_state), above, below);
    const typename V::F32 fresh = V::div(above, below);
    const typename V::F32 kept = V::div(V::sub(load_lanes<V>(h + i, n), fresh), sigmoid_divisor<V>(gate(1)));
    store_lanes<V>(h + i, V::add(fresh, kept), n);
  }
}

template <class V>
void rnn_gates(const float* a, const float* b, int64_t count, bool relu, float* h) {
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t n = count - i;
    const typename V::F32 x = V::add(load_lanes<V>(a + i, n), load_lanes<V>(b + i, n));
    if (relu) {
      store_lanes<V>(h + i, V::max_0(x), n);
    } else {
      typename V::F32 above, below;
      tanh_ratio<V>(x, above, below);
      store_lanes<V>(h + i, V::div(above, below), n);
    }
  }
}

}  // namespace
}  // namespace zeropoint
