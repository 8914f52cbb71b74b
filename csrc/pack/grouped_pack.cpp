#include "grouped_pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "pack.h"

namespace zeropoint {
namespace {

constexpr uint32_t kMagic = 0x5247505AU;  // "ZPGR"
constexpr uint32_t kVersion = 1;
static_assert(sizeof(GroupedHeader) <= kGroupedDataOffset);

}  // namespace

GroupedHeader plan_grouped(int64_t n, int64_t k, int64_t bits, int64_t group_size, bool group_scales, bool zero_points,
                           const KernelTable& table) {
  if (bits != 8 && bits != 4)
    throw std::invalid_argument("linear_grouped_pack: weights have 8 or 4 bits, got " + std::to_string(bits));
  // Above 256 a product of 15-bit activations with bytes could leave int32: 256 * 256 * 16383 < 2^31.
  if (group_size < 32 || group_size > 256 || group_size % 32 != 0)
    throw std::invalid_argument("linear_grouped_pack: group_size must be a multiple of 32 from 32 to 256, got " +
                                std::to_string(group_size));
  GroupedHeader h = {};
  h.magic = kMagic;
  h.version = kVersion;
  h.lanes = table.lanes;
  h.panel_vectors = table.panel_vectors;
  h.bits = static_cast<int32_t>(bits);
  h.group_scales = group_scales;
  h.zero_points = zero_points;
  h.n = n;
  h.k = k;
  h.group_size = group_size;
  const int64_t columns = ceil_div(n, h.lanes) * h.lanes;
  h.total_bytes =
      kGroupedDataOffset + columns * (h.groups() * (4 * h.group_scales + 4 * h.zero_points) + h.k_padded() * bits / 8);
  return h;
}

void pack_grouped(const GroupedHeader& h, const uint8_t* weight, bool paired, int64_t stride_n, int64_t stride_k,
                  const float* scale, const float* zero_point, uint8_t* blob) {
  std::memset(blob, 0, static_cast<size_t>(h.total_bytes));
  std::memcpy(blob, &h, sizeof h);
  uint8_t* at = blob + kGroupedDataOffset;
  const int64_t panel = static_cast<int64_t>(h.lanes) * h.panel_vectors, groups = h.groups(), step = 32 / h.bits;
  for (int64_t first = 0; first < h.n; first += panel) {
    const int64_t vectors = vectors_of_panel(h.n - first, h.lanes, h.panel_vectors);
    const int64_t columns = vectors * h.lanes, real = std::min(columns, h.n - first);
    for (int64_t g = 0; g < groups; ++g) {
      if (h.group_scales) {
        for (int64_t c = 0; c < real; ++c) std::memcpy(at + 4 * c, scale + (first + c) * groups + g, 4);
        at += 4 * columns;
      }
      if (h.zero_points) {
        for (int64_t c = 0; c < real; ++c) std::memcpy(at + 4 * c, zero_point + (first + c) * groups + g, 4);
        at += 4 * columns;
      }
      const int64_t end = std::min(h.k_padded(), (g + 1) * h.group_size);
      for (int64_t k = g * h.group_size; k < end; k += step, at += columns * 4)
        for (int64_t c = 0; c < real; ++c) {
          const uint8_t* row = weight + (first + c) * stride_n;
          for (int64_t i = 0; i < step && k + i < h.k; ++i) {
            const int32_t w = paired ? (row[(k + i) / 2 * stride_k] >> (k + i) % 2 * 4 & 15) - 8
                                     : static_cast<int8_t>(row[(k + i) * stride_k]);
            if (h.bits == 4 && (w < -8 || w > 7))
              throw std::invalid_argument("linear_grouped_pack: weights of 4 bits lie in [-8, 7], got " +
                                          std::to_string(w));
            at[4 * c + i % 4] =
                static_cast<uint8_t>(at[4 * c + i % 4] | (w + h.offset()) << (h.bits == 4 && i >= 4 ? 4 : 0));
          }
        }
    }
  }
}

const GroupedHeader& read_grouped(const uint8_t* blob, int64_t bytes, const KernelTable& table, const char* what) {
  const auto& h = *reinterpret_cast<const GroupedHeader*>(blob);
  if (bytes < kGroupedDataOffset || h.magic != kMagic || h.version != kVersion || h.total_bytes != bytes)
    throw std::invalid_argument(std::string(what) +
                                ": `packed` is not a packed weight of this version; make it with linear_grouped_pack");
  if (h.lanes != table.lanes || h.panel_vectors != table.panel_vectors)
    throw std::invalid_argument(std::string(what) + ": `packed` was laid out for another instruction set than " +
                                table.name + "; pack the weight again");
  return h;
}

}  // namespace zeropoint
