// Implicit GEMM for sets without an exact dot product of bytes: AVX2's multiply-add of bytes saturates its 16-bit sums.
// Both sides are widened to 16 bits, whose multiply-add is exact, and two terms are multiplied at once (Winograd: A new
// algorithm for inner product, 1968):
//   a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1.
// What is subtracted is a sum per row and one per column. Half of the multiplications become additions of 16 bits,
// which more units of a core can do: on Zen 3 a tile makes 87 instead of 80 products a nanosecond. |a + b| <= 255 +
// 128, so two products are below 2^19; sums wrap, and only the last one counts.
//
// Four terms are a group: of A the 16-bit pairs (a0, a2), (a1, a3), of B the vectors of pairs (b1, b3), (b0, b2). Rows
// of A are widened once per chunk. Panels of B stay bytes in memory; a slice of a panel is widened into L1 for all rows
// of a chunk. For few rows the pairs of B are made in registers and multiplied as they are.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

constexpr int kWideRows = 4;           // of a register tile: sums, four vectors of B and two of A are in 16 registers
constexpr int64_t kFewRows = 4;        // up to which B is not widened
constexpr int64_t kSliceGroups = 128;  // of B, widened: 16 KB of L1
constexpr int64_t kMostWideRows = 96, kWideBytes = 196608;  // of a chunk; its widened A stays in L2
constexpr int64_t kGroupBytes = 8;                          // of A, widened

// MR rows of widened A, `stride` bytes apart, times a widened slice. `Far`: it comes from memory.
template <class V, int MR, int NV, bool Far>
__attribute__((always_inline)) inline void multiply_pairs(const uint8_t* a, int64_t stride, int64_t groups,
                                                          const uint8_t* b, typename V::I32 (&acc)[MR][NV]) {
  for (int64_t g = 0; g < groups; ++g, a += kGroupBytes, b += 2 * NV * V::kBytes) {
    typename V::I16 odd[NV], even[NV];
    if constexpr (Far) prefetch_weights<2 * NV * V::kBytes>(b);
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      odd[v] = V::load_whole(b + 2 * v * V::kBytes);
      even[v] = V::load_whole(b + (2 * v + 1) * V::kBytes);
      V::keep(odd[v]);
      V::keep(even[v]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r) {
      const typename V::I16 first = V::broadcast_a(a + r * stride), second = V::broadcast_a(a + r * stride + 4);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        acc[r][v] = V::accumulate(acc[r][v], V::add_16(first, odd[v]), V::add_16(second, even[v]));
    }
  }
}

template <class V, int MR, int NV>
__attribute__((always_inline)) inline void store_sums(const typename V::I32 (&acc)[MR][NV], int32_t* sums) {
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) V::store_i32(sums + (r * NV + v) * V::kLanes, acc[r][v]);
}

// How many of `count` rows or tiles a chunk of at most `most` takes, so that all take about as many.
inline int64_t chunk_step(int64_t count, int64_t most) {
  return ceil_div(ceil_div(count, ceil_div(count, most)), kWideRows) * kWideRows;
}

// Terms of a row as groups, zeros up to a whole register's; adds what pairs of them multiply to. Where those zeros are
// more than a group needs they are the next row's place, which is written after.
template <class V>
__attribute__((always_inline)) inline void widen_terms(const uint8_t* x, int64_t n, uint8_t* out,
                                                       typename V::I32& squares) {
  constexpr int64_t kTerms = V::kBytes;
  const auto widen = [&](typename V::U8 bytes, uint8_t* to) {
    const typename V::I16 even = V::even_unsigned(bytes), odd = V::odd_unsigned(bytes);
    squares = V::add_i32(squares, V::multiply_add(even, odd));
    V::store_pairs(to, even, odd);
  };
  int64_t i = 0;
  for (; i + kTerms <= n; i += kTerms, out += 2 * kTerms) widen(V::load_whole(x + i), out);
  if (i < n) widen(V::load_first(x + i, n - i), out);
}

// A slice of a panel; adds what pairs of its terms multiply to, by column.
template <class V, int NV>
void widen_panel(const uint8_t* b, int64_t groups, uint8_t* out, typename V::I32 (&squares)[NV]) {
  for (int64_t g = 0; g < groups; ++g)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v, b += V::kBytes, out += 2 * V::kBytes) {
      const typename V::U8 bytes = V::load_whole(b);
      const typename V::I16 even = V::even_signed(bytes), odd = V::odd_signed(bytes);
      squares[v] = V::add_i32(squares[v], V::multiply_add(even, odd));
      V::store_16(out, odd);
      V::store_16(out + V::kBytes, even);
    }
}

// How a call's rows are cut into chunks, and where things are in the scratch.
struct WideShape {
  int64_t tap_groups, groups, row_bytes;  // of one tap, of all; of a row of widened A
  int64_t chunk;                          // rows
  explicit WideShape(const IgemmParams& p)
      : tap_groups(ceil_div(p.kc, 4)), groups(p.unique_taps * tap_groups), row_bytes(groups * kGroupBytes) {
    const int64_t fit = kWideBytes / row_bytes / kWideRows * kWideRows;
    chunk = fit > kMostWideRows ? kMostWideRows : fit > 6 * kWideRows ? fit : 6 * kWideRows;
  }
  int64_t pointer_bytes(const IgemmParams& p) const {
    return (tap_count(p) + kMaxRows * p.taps) * static_cast<int64_t>(sizeof(void*));
  }
  int64_t piece_bytes(const IgemmParams& p) const { return p.pieces ? chunk * gathered_stride(p) : 0; }
};

template <class V>
size_t widened_scratch(const IgemmParams& p) {
  const WideShape shape(p);
  const int64_t panel = V::kPanelVectors * V::kBytes;
  return static_cast<size_t>(shape.pointer_bytes(p) + shape.piece_bytes(p) + shape.chunk * shape.row_bytes +
                             2 * kSliceGroups * panel + shape.chunk * (panel + 4) + 5 * 64);
}

// MR rows of sums and what begins with columns.
template <class V, int MR, int NV>
__attribute__((always_inline)) inline void whole_sums(const int32_t* sums, const typename V::I32 (&start)[NV],
                                                      typename V::I32 (&acc)[MR][NV]) {
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[r][v] = V::add_i32(V::load_i32(sums + (r * NV + v) * V::kLanes), start[v]);
}

// Sums of a panel, from the rows' first values on, to bytes.
template <class V, int NV, bool Bounded, bool Plain>
void panel_bytes(const IgemmParams& p, int64_t m, int64_t rows, const typename V::I32 (&start)[NV], const int32_t* sums,
                 int64_t col) {
  const Epilogue& e = p.epilogue;
  const int64_t left = p.n - col;
  const int cols = left < NV * V::kLanes ? static_cast<int>(left) : NV * V::kLanes;
  uint8_t* out = static_cast<uint8_t*>(p.out) + col;
  const uint8_t* residual = e.residual ? e.residual + col : nullptr;
  const auto store = [&](auto height, int64_t r) __attribute__((always_inline)) {
    constexpr int kHeight = decltype(height)::value;
    typename V::I32 acc[kHeight][NV];
    whole_sums<V, kHeight, NV>(sums + r * NV * V::kLanes, start, acc);
    int64_t places[kHeight];
#pragma GCC unroll 4
    for (int i = 0; i < kHeight; ++i) places[i] = m + r + i;
    store_rows<V, kHeight, NV, Bounded, Plain>(e, acc, col, out, p.out_stride, cols, residual, places);
  };
  int64_t r = 0;
  for (; r + kWideRows <= rows; r += kWideRows) store(std::integral_constant<int, kWideRows>{}, r);
  for (; r < rows; ++r) store(std::integral_constant<int, 1>{}, r);
}

template <class V, int NV>
void finish_panel(const IgemmParams& p, int64_t m, int64_t rows, const typename V::I32 (&squares)[NV],
                  const int32_t* sums, int64_t col) {
  typename V::I32 start[NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) start[v] = V::sub_i32(V::load_i32(p.epilogue.init + col + v * V::kLanes), squares[v]);
  if (p.epilogue.output == Epilogue::Output::kU8) {
    with_kind(p.epilogue, [&](auto bounded, auto plain) {
      panel_bytes<V, NV, decltype(bounded)::value, decltype(plain)::value>(p, m, rows, start, sums, col);
    });
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    typename V::I32 acc[1][NV];
    whole_sums<V, 1, NV>(sums + r * NV * V::kLanes, start, acc);
    store_tile<V, 1, NV>(p, {1, m + r, nullptr, nullptr, 0}, acc, col);
  }
}

// One slice for MR rows. Sums, of the slices before (`first` null) or beginning with the rows' first values, are in
// memory: in registers of a function that finishes them, too, compilers would keep none of them.
template <class V, int MR, int NV>
[[gnu::noinline]] void slice_rows(const uint8_t* a, int64_t stride, int64_t groups, const uint8_t* b,
                                  const int32_t* first, int32_t* sums) {
  typename V::I32 acc[MR][NV];
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      acc[r][v] = first ? V::set_i32(first[r]) : V::load_i32(sums + (r * NV + v) * V::kLanes);
  multiply_pairs<V, MR, NV, false>(a, stride, groups, b, acc);
  store_sums<V, MR, NV>(acc, sums);
}

// A panel for a chunk of rows.
template <class V, int NV>
void sliced_panel(const IgemmParams& p, const WideShape& shape, int64_t m, int64_t rows, const uint8_t* a,
                  const int32_t* row_first, const uint8_t* panel, int64_t col, uint8_t* slice, int32_t* sums) {
  const int64_t repeats = p.taps / p.unique_taps, of_repeat = ceil_div(shape.groups, kSliceGroups);
  const int64_t step = ceil_div(shape.groups, of_repeat);
  const Tiling tiling(rows, false, kWideRows);
  typename V::I32 squares[NV];
  for (int v = 0; v < NV; ++v) squares[v] = V::set_i32(0);
  for (int64_t i = 0; i < repeats * of_repeat; ++i) {
    const int64_t group = i % of_repeat * step;
    const int64_t groups = shape.groups - group < step ? shape.groups - group : step;
    widen_panel<V, NV>(panel + (i / of_repeat * shape.groups + group) * NV * V::kBytes, groups, slice, squares);
    const uint8_t* from = a + group * kGroupBytes;
    const int32_t* row = row_first;
    int32_t* to = sums;
    for (int64_t t = 0; t < tiling.count; ++t) {
      const int height = tiling.rows(t);
      const auto multiply = height == 4   ? slice_rows<V, 4, NV>
                            : height == 3 ? slice_rows<V, 3, NV>
                            : height == 2 ? slice_rows<V, 2, NV>
                                          : slice_rows<V, 1, NV>;
      multiply(from, shape.row_bytes, groups, slice, i == 0 ? row : nullptr, to);
      row += height;
      from += height * shape.row_bytes;
      to += height * NV * V::kLanes;
    }
  }
  finish_panel<V, NV>(p, m, rows, squares, sums, col);
}

// A panel for up to four rows, which is bound by reading it.
template <class V, int MR, int NV>
void direct_panel(const IgemmParams& p, const WideShape& shape, int64_t m, const uint8_t* a, const uint8_t* panel,
                  int64_t col) {
  typename V::I32 acc[MR][NV];
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[r][v] = V::set_i32(p.epilogue.row_init ? p.epilogue.row_init[m + r] : 0);
  for (int64_t repeat = 0; repeat < p.taps / p.unique_taps; ++repeat)
    for (int64_t g = 0; g < shape.groups; ++g, panel += NV * V::kBytes) {
      typename V::I16 odd[NV], even[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const typename V::U8 bytes = V::load_whole(panel + v * V::kBytes);
        odd[v] = V::odd_signed(bytes);
        even[v] = V::even_signed(bytes);
      }
      prefetch_weights<NV * V::kBytes>(panel);
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        const uint8_t* at = a + r * shape.row_bytes + g * kGroupBytes;
        const typename V::I16 first = V::broadcast_a(at), second = V::broadcast_a(at + 4);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v)
          acc[r][v] =
              V::add_i32(acc[r][v], V::add_i32(V::multiply_add(first, even[v]), V::multiply_add(second, odd[v])));
      }
    }
  alignas(64) int32_t sums[MR * NV * V::kLanes];
  store_sums<V, MR, NV>(acc, sums);
  const typename V::I32 no_squares[NV] = {};
  finish_panel<V, NV>(p, m, MR, no_squares, sums, col);
}

template <class V, int NV>
void wide_panel(const IgemmParams& p, const WideShape& shape, int64_t m, int64_t rows, const uint8_t* a,
                const int32_t* row_first, const uint8_t* panel, int64_t col, uint8_t* slice, int32_t* sums) {
  static_assert(kFewRows == 4);
  if (rows == 1) return direct_panel<V, 1, NV>(p, shape, m, a, panel, col);
  if (rows == 2) return direct_panel<V, 2, NV>(p, shape, m, a, panel, col);
  if (rows == 3) return direct_panel<V, 3, NV>(p, shape, m, a, panel, col);
  if (rows == 4) return direct_panel<V, 4, NV>(p, shape, m, a, panel, col);
  sliced_panel<V, NV>(p, shape, m, rows, a, row_first, panel, col, slice, sums);
}

template <class V>
void widened_igemm(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  const WideShape shape(p);
  const int64_t panel_cols = V::kPanelVectors * V::kLanes;
  const int64_t panel_bytes = p.taps * shape.tap_groups * panel_cols * 4;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + tap_count(p) * static_cast<int64_t>(sizeof(int64_t)));
  uint8_t* gathered = scratch + shape.pointer_bytes(p);
  uint8_t* slice = aligned(gathered + shape.piece_bytes(p));
  auto* sums = reinterpret_cast<int32_t*>(slice + 2 * kSliceGroups * panel_cols * 4);
  int32_t* row_first = sums + shape.chunk * panel_cols;
  uint8_t* wide = aligned(reinterpret_cast<uint8_t*>(row_first + shape.chunk));
  const int64_t stride = p.pieces ? gathered_stride(p) : 0;
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  const Inside inside(p);
  const int64_t step = chunk_step(m1 - m0, shape.chunk);
  for (int64_t chunk = m0; chunk < m1; chunk += step) {
    const int64_t rows = m1 - chunk < step ? m1 - chunk : step;
    if (p.pieces) gather_pieces(p, offsets, rows, cursor, gathered);
    // What a row's sums begin with. Each repetition of the taps has its squares again.
    const auto repeats = static_cast<uint32_t>(p.taps / p.unique_taps);
    const auto first_of = [&](int64_t m, typename V::I32 squares) {
      const uint32_t start = p.epilogue.row_init ? static_cast<uint32_t>(p.epilogue.row_init[m]) : 0;
      return static_cast<int32_t>(start - static_cast<uint32_t>(V::sum(squares)) * repeats);
    };
    if (!p.conv && p.unique_taps == 1) {
      for (int64_t r = 0; r < rows; ++r) {
        typename V::I32 squares = V::set_i32(0);
        widen_terms<V>(p.a + (chunk + r) * p.a_stride, p.kc, wide + r * shape.row_bytes, squares);
        row_first[r] = first_of(chunk + r, squares);
      }
    } else {
      for (int64_t first = 0; first < rows; first += kMaxRows) {
        const int count = static_cast<int>(rows - first < kMaxRows ? rows - first : kMaxRows);
        if (p.pieces)
          gathered_pointers(p, gathered + first * stride, stride, count, pointers);
        else
          row_pointers(p, inside, offsets, chunk + first, count, cursor, pointers);
        for (int r = 0; r < count; ++r) {
          uint8_t* out = wide + (first + r) * shape.row_bytes;
          typename V::I32 squares = V::set_i32(0);
          for (int64_t t = 0; t < p.unique_taps; ++t, out += shape.tap_groups * kGroupBytes)
            widen_terms<V>(pointers[t * kMaxRows + r], p.kc, out, squares);
          row_first[first + r] = first_of(chunk + first + r, squares);
        }
      }
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols;
      const uint8_t* b = p.b + panel * panel_bytes;
      if (p.n - col > V::kLanes)
        wide_panel<V, V::kPanelVectors>(p, shape, chunk, rows, wide, row_first, b, col, slice, sums);
      else
        wide_panel<V, 1>(p, shape, chunk, rows, wide, row_first, b, col, slice, sums);
    }
  }
}

}  // namespace
}  // namespace zeropoint
