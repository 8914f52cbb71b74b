// Bilinear interpolation of NHWC bytes: float32 operation for operation.
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

}  // namespace
}  // namespace zeropoint
