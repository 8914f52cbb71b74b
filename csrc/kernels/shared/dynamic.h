// What dynamic quantization does around the integer product: ranges, float outputs, recurrent gates.
// Plain loops that each instruction set's flags vectorise; the same bits everywhere (docs/numerics.md).
#pragma once
#include "../kernel_table.h"

namespace zeropoint {
namespace {

// Range of x together with 0; NaN counts as 0, infinities come out. Sixteen chains, so that it vectorises
// without reordering a reduction (minimum and maximum do not depend on the order).
void row_range(const float* x, int64_t n, float* lo, float* hi) {
  float low[16] = {}, high[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) {
      const float v = x[i + j];
      low[j] = v < low[j] ? v : low[j];
      high[j] = v > high[j] ? v : high[j];
    }
  for (; i < n; ++i) {
    low[0] = x[i] < low[0] ? x[i] : low[0];
    high[0] = x[i] > high[0] ? x[i] : high[0];
  }
  *lo = low[0];
  *hi = high[0];
  for (int j = 1; j < 16; ++j) {
    *lo = low[j] < *lo ? low[j] : *lo;
    *hi = high[j] > *hi ? high[j] : *hi;
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

// exp in float32 by 2^n * p(r), r within half a ln 2; x is clamped to +-87 so that 2^n is a normal number.
// NaN stays NaN through the polynomial.
inline float gate_exp(float x) {
  x = x > 87.0f ? 87.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r;
  p = p + 1.0f;
  const int32_t power = (bits - 0x4B400000 + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &power, 4);
  return p * scale;
}
inline float gate_sigmoid(float x) { return 1.0f / (1.0f + gate_exp(-x)); }
inline float gate_tanh(float x) { return 1.0f - 2.0f / (gate_exp(2.0f * x) + 1.0f); }

// a, b: gates from the input and from the state, [4 * hidden] in the order i, f, g, o.
void lstm_gates(const float* __restrict a, const float* __restrict b, int64_t hidden, float* __restrict h,
                float* __restrict c) {
  for (int64_t i = 0; i < hidden; ++i) {
    const float in = gate_sigmoid(a[i] + b[i]);
    const float forget = gate_sigmoid(a[hidden + i] + b[hidden + i]);
    const float cell = gate_tanh(a[2 * hidden + i] + b[2 * hidden + i]);
    const float out = gate_sigmoid(a[3 * hidden + i] + b[3 * hidden + i]);
    const float kept = forget * c[i], added = in * cell;
    c[i] = kept + added;
    h[i] = out * gate_tanh(c[i]);
  }
}

// Gates in the order r, z, n.
void gru_gates(const float* __restrict a, const float* __restrict b, int64_t hidden, float* __restrict h) {
  for (int64_t i = 0; i < hidden; ++i) {
    const float reset = gate_sigmoid(a[i] + b[i]);
    const float update = gate_sigmoid(a[hidden + i] + b[hidden + i]);
    const float from_state = reset * b[2 * hidden + i];
    const float fresh = gate_tanh(a[2 * hidden + i] + from_state);
    const float kept = update * (h[i] - fresh);
    h[i] = fresh + kept;
  }
}

void rnn_gates(const float* __restrict a, const float* __restrict b, int64_t hidden, bool relu, float* __restrict h) {
  if (relu) {
    for (int64_t i = 0; i < hidden; ++i) {
      const float v = a[i] + b[i];
      h[i] = v > 0.0f ? v : 0.0f;
    }
  } else {
    for (int64_t i = 0; i < hidden; ++i) h[i] = gate_tanh(a[i] + b[i]);
  }
}

}  // namespace
}  // namespace zeropoint
