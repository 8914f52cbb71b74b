// Packed weights: one uint8 blob with a header, laid out for one instruction set's vectors.
//
//   PackedHeader | column sums int32[groups * n] | padding to 64 | data
//
// GEMM data, per group: panels of `panel_vectors` vectors of columns (the last may be narrower), each
//   [tap][k / 4][vector][lane][k % 4], int8; column order within a panel as in epilogue.h.
// Winograd's: panels of [point], each the start of its sums, int32 [vector][lane], and the transformed weights, int16
//   [k / 4][vector][k % 4 / 2, the second half first][lane][k % 2].
// Depthwise data: blocks of 4 vectors of channels (of half-width vectors for a short last block), each
//   [repeat][kernel column][group of 4 kernel rows][vector][lane][row], int8.
// Small groups (kernels/shared/small_groups.h): panels of 4 vectors of output channels (the last may be narrower), each
//   [repeat][kernel column][word][vector][lane][byte], int8, then for each panel
//   [word of a kernel row][vector][piece][where its bytes are, int32 [lane / 4]][which of them, [lane][byte]].
//
// Weights enter as w - w_zero_point, which needs 9 bits when the zero point is not 0. Such weights are
// split into `repeats` int8 terms that see the same taps: exact, at the price of repeating the work.
#pragma once
#include <cstdint>

#include "../kernels/kernel_table.h"

namespace zeropoint {

enum class PackKind : int32_t {
  kDirect,       // one tap per kernel position, kc = channels per group
  kRows,         // few channels: a row of the kernel is one tap, kc = kernel_w * channels
  kGathered,     // so few that rows would be half empty: the kernel is one tap, kc = kernel_h * kernel_w * channels
  kDepthwise,    // one channel per group, one filter each
  kSmallGroups,  // few channels or filters per group
  kWinograd,     // 3x3, stride 1: the 16 points of F(2x2, 3x3) are the taps (kernels/shared/winograd.h)
};

struct PackedHeader {
  uint32_t magic, version;
  PackKind kind;
  int32_t lanes, panel_vectors;
  int32_t tail_lanes;  // depthwise: lanes of the last block's vectors where it is a half-width one, else 0
  int32_t a_offset;    // what the kernel takes off the input's bytes (KernelTable::a_offset)
  int64_t groups, n, unique_taps, repeats, kc;
  int64_t kernel_w;       // depthwise, small groups: kernel columns; unique_taps = kernel_h * kernel_w
  int64_t filters;        // small groups: output channels of a group; `groups` is 1 and n has those of all
  int64_t pieces;         // small groups: of a word
  int64_t data_offset;    // bytes
  int64_t group_bytes;    // bytes of data per group
  int64_t spread_offset;  // bytes; small groups
  int64_t total_bytes;
};

constexpr uint32_t kPackMagic = 0x4B50505AU;  // "ZPPK"
constexpr uint32_t kPackVersion = 3;

// Integer weights as [groups * n][unique_taps][kc], addressed through strides in elements.
struct WeightView {
  const int8_t* data;
  int64_t groups, n, kernel_h, kernel_w, channels;  // channels per group
  int64_t stride_n, stride_c, stride_h, stride_w;
  const int64_t* zero_point;  // null: all 0
  int64_t zero_point_step;    // 0: one for all, 1: one per output channel
};

// Throws std::invalid_argument if an int32 accumulator could overflow: sum |w| * 255 > 2^31 - 1. Winograd's holds four
// times that: where it could, the header's kind is kDirect instead.
PackedHeader plan_pack(const WeightView&, PackKind, const KernelTable&);
// Writes the header and zeros; then the output channels [n0, n1), any parts of them at the same time.
void start_pack(const PackedHeader&, uint8_t* blob);
void pack_weights(const WeightView&, const PackedHeader&, uint8_t* blob, int64_t n0, int64_t n1);
// Checks magic, version, size and layout; `what` names the operation in the error.
const PackedHeader& read_header(const uint8_t* blob, int64_t bytes, const KernelTable&, const char* what);

inline const int32_t* column_sums(const uint8_t* blob) {
  return reinterpret_cast<const int32_t*>(blob + sizeof(PackedHeader));
}

// Column of slot (vector, lane) in a panel of `vectors` vectors.
inline int64_t panel_column(int64_t vector, int64_t lane, int64_t vectors) {
  return lane / 4 * 4 * vectors + 4 * vector + lane % 4;
}

// Its inverse: vector * lanes + lane of a column of the panel.
inline int64_t panel_slot(int64_t column, int64_t lanes, int64_t vectors) {
  return column % (4 * vectors) / 4 * lanes + column / (4 * vectors) * 4 + column % 4;
}

// Small groups of `channels`: rows of the kernel whose bytes a word has, and words that a row of it has.
inline int64_t word_rows(int64_t channels) { return channels == 1 ? 4 : channels == 2 ? 2 : 1; }
inline int64_t row_words(int64_t channels) { return (channels + 3) / 4; }

// Depthwise: channels in full-width blocks; the others are in one half-width block.
inline int64_t full_block_channels(const PackedHeader& h) {
  const int64_t block = 4 * static_cast<int64_t>(h.lanes);
  return h.tail_lanes ? h.n / block * block : (h.n + block - 1) / block * block;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors in the panel that starts `left` columns before the end.
inline int64_t vectors_of_panel(int64_t left, int64_t lanes, int64_t panel_vectors) {
  return left >= lanes * panel_vectors ? panel_vectors : ceil_div(left, lanes);
}

}  // namespace zeropoint
