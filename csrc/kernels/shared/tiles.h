// Implicit GEMM on tile registers of 16 rows by 64 bytes (AMX): `T` is the tile unit, `V` the vectors that finish what
// it accumulates. Weights are packed as for `V`, whose vectors of a panel are the unit's right-hand tiles.
//
// Rows are gathered to blocks of 16 by 64 bytes, filled up with zeros, so that taps and channels that are no multiple
// of 64 need nothing of their own: a zero takes away whatever weight it meets.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64, kTileChunk = 2 * kTileRows;

// Shape of a product in steps of the tile unit.
struct TileSteps {
  int64_t of_tap, count;  // of one tap, of all
  explicit TileSteps(const IgemmParams& p) : of_tap(ceil_div(p.kc, kTileBytes)), count(of_tap * p.taps) {}
};

// A panel of weights as right-hand tiles. A step takes 16 groups of four rows from its first one on, be they the next
// tap's; those that would read past the panel's end read a copy of the end with zeros behind it.
struct TilePanel {
  const uint8_t *panel, *end;
  int64_t stride, groups, total, end_group;  // bytes of a group; groups of a tap, of all; where the copy begins

  TilePanel(const uint8_t* b, int64_t stride, int64_t groups, int64_t taps, uint8_t* copy)
      : panel(b), end(copy), stride(stride), groups(groups), total(taps * groups) {
    const int64_t kept = total < kTileRows ? total : kTileRows;
    end_group = total - kept;
    __builtin_memcpy(copy, b + end_group * stride, static_cast<size_t>(kept * stride));
    __builtin_memset(copy + kept * stride, 0, static_cast<size_t>(kTileRows * stride));
  }
  const uint8_t* at(int64_t tap, int64_t step) const {
    const int64_t group = tap * groups + step * kTileRows;
    return group + kTileRows > total ? end + (group - end_group) * stride : panel + group * stride;
  }
};

// Bytes of offsets and of a register tile's pointers; of rows that were put together.
inline int64_t tile_pointers(const IgemmParams& p) {
  return (tap_count(p) + kMaxRows * p.taps) * static_cast<int64_t>(sizeof(void*));
}
inline int64_t tile_pieces(const IgemmParams& p) { return p.pieces ? kTileChunk * gathered_stride(p) : 0; }

template <class V>
size_t tiles_scratch(const IgemmParams& p) {
  const int64_t panel_bytes = V::kPanelVectors * kTileBytes;
  const int64_t bytes = tile_pointers(p) + tile_pieces(p) + kTileChunk * TileSteps(p).count * kTileBytes +
                        2 * kTileRows * panel_bytes + kTileChunk * panel_bytes + 4 * kTileBytes;
  const size_t ordered = igemm_scratch(p);
  return static_cast<size_t>(bytes) > ordered ? static_cast<size_t>(bytes) : ordered;
}

// Rows [m, m + rows) as [block of 16][step][row][64].
inline void gather_rows(const IgemmParams& p, const TileSteps& steps, const int64_t* offsets, int64_t m, int64_t rows,
                        RowCursor& cursor, const uint8_t** pointers, uint8_t* pieces, uint8_t* out) {
  __builtin_memset(out, 0, static_cast<size_t>(kTileChunk * steps.count * kTileBytes));
  const Inside inside(p);
  each_row(p, inside, offsets, m, rows, cursor, pointers, pieces, [&](int64_t row, const uint8_t* const* taps) {
    uint8_t* block = out + (row / kTileRows * steps.count * kTileRows + row % kTileRows) * kTileBytes;
    for (int64_t t = 0; t < p.taps; ++t)
      for (int64_t s = 0; s < steps.of_tap; ++s) {
        const int64_t left = p.kc - s * kTileBytes;
        __builtin_memcpy(block + (t * steps.of_tap + s) * kTileRows * kTileBytes, taps[t * kMaxRows] + s * kTileBytes,
                         static_cast<size_t>(left < kTileBytes ? left : kTileBytes));
      }
  });
}

// The sums of 32 rows and one or two vectors of columns, to `out` with `stride` bytes between rows.
template <class T, bool Pair>
void tile_products(const IgemmParams& p, const TileSteps& steps, const uint8_t* a, const TilePanel& panel,
                   int64_t vector, uint8_t* out) {
  const int64_t b_stride = panel.stride;
  T::template zero<0>();
  T::template zero<1>();
  if constexpr (Pair) {
    T::template zero<2>();
    T::template zero<3>();
  }
  const uint8_t* lower = a + steps.count * kTileRows * kTileBytes;
  for (int64_t t = 0; t < p.taps; ++t)
    for (int64_t s = 0; s < steps.of_tap; ++s) {
      const uint8_t* b = panel.at(t, s) + vector * kTileBytes;
      const int64_t step = (t * steps.of_tap + s) * kTileRows * kTileBytes;
      T::template load<4>(a + step, kTileBytes);
      T::template load<5>(lower + step, kTileBytes);
      T::template load<6>(b, b_stride);
      T::template dot<0, 4, 6>();
      T::template dot<1, 5, 6>();
      if constexpr (Pair) {
        T::template load<7>(b + kTileBytes, b_stride);
        T::template dot<2, 4, 7>();
        T::template dot<3, 5, 7>();
      }
    }
  uint8_t* below = out + kTileRows * b_stride;
  T::template store<0>(out + vector * kTileBytes, b_stride);
  T::template store<1>(below + vector * kTileBytes, b_stride);
  if constexpr (Pair) {
    T::template store<2>(out + (vector + 1) * kTileBytes, b_stride);
    T::template store<3>(below + (vector + 1) * kTileBytes, b_stride);
  }
}

// MR rows of sums, from memory to the output.
template <class V, int MR, int NV>
void finish_rows(const IgemmParams& p, const Tile& work, const uint8_t* sums, int64_t col) {
  typename V::I32 acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) {
      const auto* at = reinterpret_cast<const int32_t*>(sums + (r * NV + v) * kTileBytes);
      acc[r][v] = V::add_i32(V::load_i32(at), V::load_i32(p.epilogue.init + col + v * V::kLanes));
      if (p.epilogue.row_init) acc[r][v] = V::add_i32(acc[r][v], V::set_i32(p.epilogue.row_init[work.m + r]));
    }
  store_tile<V, MR, NV>(p, work, acc, col);
}

template <class V, int NV>
void finish(const IgemmParams& p, int64_t m, int64_t rows, const uint8_t* sums, int64_t col) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    finish_rows<V, 4, NV>(p, {4, m + r, nullptr, nullptr, 0}, sums + r * NV * kTileBytes, col);
  for (; r < rows; ++r) finish_rows<V, 1, NV>(p, {1, m + r, nullptr, nullptr, 0}, sums + r * NV * kTileBytes, col);
}

template <class V, class T>
void igemm_tiles(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  static_assert(V::kLanes * 4 == kTileBytes && V::kPanelVectors == 4 && !V::kSplits, "panels are rows of tiles");
  if (p.order) return igemm_ordered<V>(p, m0, m1, panel0, panel1, scratch);
  const TileSteps steps(p);
  const int64_t groups = ceil_div(p.kc, 4), panel_cols = V::kPanelVectors * V::kLanes;
  const int64_t panel_bytes = p.taps * groups * panel_cols * 4;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + tap_count(p) * static_cast<int64_t>(sizeof(int64_t)));
  uint8_t* pieces = scratch + tile_pointers(p);
  uint8_t* rows_in = aligned(pieces + tile_pieces(p));
  uint8_t* end = rows_in + kTileChunk * steps.count * kTileBytes;
  uint8_t* sums = end + 2 * kTileRows * V::kPanelVectors * kTileBytes;
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  T::configure();
  for (int64_t m = m0; m < m1; m += kTileChunk) {
    const int64_t rows = m1 - m < kTileChunk ? m1 - m : kTileChunk;
    gather_rows(p, steps, offsets, m, rows, cursor, pointers, pieces, rows_in);
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols, left = p.n - col;
      const int64_t vectors = left >= panel_cols ? V::kPanelVectors : ceil_div(left, V::kLanes);
      const TilePanel weights(p.b + panel * panel_bytes, vectors * kTileBytes, groups, p.taps, end);
      int64_t vector = 0;
      for (; vector + 2 <= vectors; vector += 2) tile_products<T, true>(p, steps, rows_in, weights, vector, sums);
      if (vector < vectors) tile_products<T, false>(p, steps, rows_in, weights, vector, sums);
      switch (vectors) {
        case 1:
          finish<V, 1>(p, m, rows, sums, col);
          break;
        case 2:
          finish<V, 2>(p, m, rows, sums, col);
          break;
        case 3:
          finish<V, 3>(p, m, rows, sums, col);
          break;
        default:
          finish<V, 4>(p, m, rows, sums, col);
      }
    }
  }
  T::release();
}

}  // namespace
}  // namespace zeropoint
