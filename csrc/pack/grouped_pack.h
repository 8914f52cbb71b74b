// Packed weights of grouped products: GroupedHeader | padding to kGroupedDataOffset | panels, laid out as
// kernels/shared/grouped.h reads them.
#pragma once
#include <cstdint>

#include "../kernels/kernel_table.h"

namespace zeropoint {

struct GroupedHeader {
  uint32_t magic, version;
  int32_t lanes, panel_vectors;
  int32_t bits;  // 8 or 4
  int32_t group_scales, zero_points;
  int64_t n, k, group_size;
  int64_t total_bytes;

  int64_t groups() const { return (k + group_size - 1) / group_size; }
  int64_t k_padded() const { return (k + 7) / 8 * 8; }
  int32_t offset() const { return bits == 8 ? 128 : 8; }
};

constexpr int64_t kGroupedDataOffset = 128;

// Throws std::invalid_argument: bits, group size, or (4 bits) weights outside [-8, 7].
GroupedHeader plan_grouped(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool group_scales, bool zero_points,
                           const KernelTable&);
// weight int8 [n, k] with strides, or `paired`: uint8 [n, k / 2], two weights of 4 bits plus 8 in a byte, the first in
// the low bits; scale and zero_point [n, groups], read where the header says there are any.
void pack_grouped(const GroupedHeader&, const uint8_t* weight, bool paired, int64_t stride_n, int64_t stride_k,
                  const float* scale, const float* zero_point, uint8_t* blob);
const GroupedHeader& read_grouped(const uint8_t* blob, int64_t bytes, const KernelTable&, const char* what);

}  // namespace zeropoint
