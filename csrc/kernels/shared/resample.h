// Bilinear interpolation of NHWC bytes and rows of quantized embeddings: float32 operation for operation.
#pragma once
#include "elementwise.h"

namespace zeropoint {
namespace {

// The mix of two neighbouring pixels: q0 + (q1 - q0) * weight.
void mix_pixels(const uint8_t* __restrict q0, const uint8_t* __restrict q1, int64_t channels, float weight,
                uint8_t flip, float* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    const auto a = static_cast<float>(static_cast<uint8_t>(q0[c] ^ flip));
    const auto b = static_cast<float>(static_cast<uint8_t>(q1[c] ^ flip));
    out[c] = a + (b - a) * weight;
  }
}

// rhe(a + (b - a) * weight) of two mixed rows.
void mix_rows(const float* __restrict a, const float* __restrict b, int64_t n, float weight, uint8_t flip,
              uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<uint8_t>(round_clamp(a[i] + (b[i] - a[i]) * weight, 0, 255) ^ flip);
}

// (q - zero_point) * scale of a row of 8-bit values, or of 4-bit ones, low halves first.
void embedding_row(const uint8_t* __restrict q, int64_t n, bool four_bits, float scale, float zero_point,
                   float* __restrict out) {
  if (!four_bits) {
    for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<float>(q[i]) - zero_point) * scale;
    return;
  }
  for (int64_t i = 0; i < n / 2; ++i) {
    out[2 * i] = (static_cast<float>(q[i] & 15) - zero_point) * scale;
    out[2 * i + 1] = (static_cast<float>(q[i] >> 4) - zero_point) * scale;
  }
  if (n % 2) out[n - 1] = (static_cast<float>(q[n / 2] & 15) - zero_point) * scale;
}

}  // namespace
}  // namespace zeropoint
