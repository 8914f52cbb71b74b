// Multipliers of sums and products of two 8-bit tensors (numerics.md, "Add, mul, pools").
#pragma once
#include "../kernels/kernel_table.h"
#include "epilogue_params.h"

namespace zeropoint {

inline void set_add_multipliers(BinaryParams& p, double a_scale, double b_scale, double scale) {
  const double inverse = 1.0 / as_f32(scale);
  p.a_mult = static_cast<float>(as_f32(a_scale) * inverse);
  p.b_mult = static_cast<float>(as_f32(b_scale) * inverse);
  p.bounded = 255.0 * (static_cast<double>(p.a_mult) + static_cast<double>(p.b_mult)) < kLargestRounded;
}

inline void set_mul_multiplier(BinaryParams& p, double a_scale, double b_scale, double scale) {
  p.a_mult = static_cast<float>(as_f32(a_scale) * as_f32(b_scale) * (1.0 / as_f32(scale)));
  p.bounded = 255.0 * 255.0 * static_cast<double>(p.a_mult) < kLargestRounded;
}

}  // namespace zeropoint
