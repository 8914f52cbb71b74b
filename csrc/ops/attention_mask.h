// Masks of attention and cached_attention.
#pragma once
#include <algorithm>

#include "../kernels/kernel_table.h"
#include "../torch_stable.h"

namespace zeropoint {

// What is added to the scores: float32, or bool where false takes a key away. [B, H, M, T], each or 1.
struct AttentionMask {
  Tensor tensor;
  bool of_bools;
  int64_t strides[4];

  AttentionMask(const std::string& what, const Tensor& t, int64_t batch, int64_t heads, int64_t m, int64_t keys)
      : tensor(t) {
    of_bools = t.scalar_type() == ScalarType::Bool;
    ZP_REQUIRE((of_bools || t.scalar_type() == ScalarType::Float) && t.dim() == 4,
               what + ": mask must be bool or float32 [batch, heads, queries, keys], each or 1");
    const int64_t want[4] = {batch, heads, m, keys};
    for (int i = 0; i < 4; ++i) {
      ZP_REQUIRE(t.size(i) == want[i] || t.size(i) == 1, what + ": mask has " + std::to_string(t.size(i)) +
                                                             " in dimension " + std::to_string(i) + ", expected " +
                                                             std::to_string(want[i]) + " or 1");
      strides[i] = t.size(i) == 1 ? 0 : t.stride(i);
    }
  }

  // Where the row of a query begins; queries may share one.
  int64_t start(int64_t b, int64_t h, int64_t query) const {
    return b * strides[0] + h * strides[1] + query * strides[2];
  }
  // The row that begins there, within bounds and padded to `padded` values. NaN takes its key away.
  void row(int64_t start, int64_t keys, int64_t padded, float* out) const {
    const int64_t step = strides[3];
    if (of_bools) {
      const uint8_t* source = bytes(tensor) + start;
      for (int64_t i = 0; i < keys; ++i) out[i] = source[i * step] ? 0.0f : kMasked;
    } else {
      const float* source = static_cast<const float*>(tensor.data_ptr()) + start;
      for (int64_t i = 0; i < keys; ++i) {
        const float value = source[i * step] > kLeastMask ? source[i * step] : kMasked;
        out[i] = value < kLargestMask ? value : kLargestMask;
      }
    }
    std::fill(out + keys, out + padded, kMasked);
  }
};

}  // namespace zeropoint
