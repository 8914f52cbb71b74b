// Implicit GEMM for sets whose multiply-add of bytes takes unsigned times signed ones and saturates its 16-bit sums
// (AVX2's vpmaddubsw). It is exact where sums fit, and they do when A is split into magnitudes and signs of a - 128:
//   (a - 128) w = u w          where a >= 128,
//               = u ~w + u     elsewhere,        with u = |a - 128| and ~w = -w - 1 a flip of all bits.
// A sum of two products lies between 128 * (-128 - 128) = -2^15 and 128 * (127 + 127) < 2^15. The lone u, summed,
// belong to rows; the 128, times the sum of w, to columns, where the zero point is as well (PackedHeader::a_offset).
// Weights are multiplied as they lie in memory, and flipped on the way.
//
// Quads: the sums of two groups of four terms are added before they become 32 bits, which leaves seven operations for
// eight terms of eight. The magnitudes of the four weights that meet in such a sum may come to 252 at most, as
// 128 * (252 + 4) = 2^15. In networks few do not; those groups are found first, and not added to others.
//
// Rows of A are split once per chunk, eight bytes for a group: magnitudes, then signs.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

constexpr int kQuadRows = 3;           // of a register tile with quads: sums, four vectors of weights, what is added
constexpr int64_t kFewRows = 12;       // up to which looking for quads does not pay
constexpr int64_t kSliceGroups = 256;  // of a panel: 16 KB of L1
constexpr int64_t kMostSplitRows = 96, kSplitBytes = 196608;  // of a chunk; its split A stays in L2
constexpr int64_t kGroupBytes = 8;                            // of A, split

template <class V, int MR, int NV>
__attribute__((always_inline)) inline void store_sums(const typename V::I32 (&acc)[MR][NV], int32_t* sums) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) V::store_i32(sums + (r * NV + v) * V::kLanes, acc[r][v]);
}

// How many of `count` rows or tiles a chunk of at most `most` takes, so that all take about as many: whole register
// tiles of `height`.
inline int64_t chunk_step(int64_t count, int64_t most, int64_t height) {
  return ceil_div(ceil_div(count, ceil_div(count, most)), height) * height;
}

// Terms of a row as groups; what a row's last register has past them multiplies to 0. Adds the magnitudes of negative
// ones. Where a register holds more groups than are left they are the next row's place, which is written after.
template <class V>
__attribute__((always_inline)) inline void split_terms(const uint8_t* x, int64_t n, uint8_t* out,
                                                       typename V::I32& negative) {
  int64_t i = 0;
  for (; i + V::kBytes <= n; i += V::kBytes, out += 2 * V::kBytes) V::split(V::load_whole(x + i), out, negative);
  if (i < n) V::split(V::load_first(x + i, n - i, 128), out, negative);
}

// The groups of a slice, in steps of two, that are no quads; returns how many.
template <class V, int NV>
int64_t find_crowded(const uint8_t* b, int64_t groups, int32_t* crowded) {
  constexpr int64_t kStep = NV * V::kBytes;
  int64_t count = 0;
  for (int64_t g = 0; g + 2 <= groups; g += 2, b += 2 * kStep) {
    bool any = V::crowded(V::load_whole(b), V::load_whole(b + kStep));
    if constexpr (NV == 2) any |= V::crowded(V::load_whole(b + V::kBytes), V::load_whole(b + kStep + V::kBytes));
    crowded[count] = static_cast<int32_t>(g);
    count += any;
  }
  return count;
}

// A slice of a panel for MR rows of split A, `stride` bytes apart. Sums, of the slices before (`first` null) or
// beginning with the rows' first values, are in memory: in registers of a function that finishes them, too, compilers
// would keep none of them. Quads: all groups but `crowded` are added by two.
template <class V, int MR, int NV, bool Quads>
[[gnu::noinline]] void split_rows(const uint8_t* a, int64_t stride, int64_t groups, const uint8_t* b,
                                  const int32_t* crowded, int64_t count, const int32_t* first, int32_t* sums) {
  constexpr int64_t kStep = NV * V::kBytes;
  typename V::I32 acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      acc[r][v] = first ? V::set_i32(first[r]) : V::load_i32(sums + (r * NV + v) * V::kLanes);
  const uint8_t* last = b + groups * kStep;
  const auto pair = [&]() __attribute__((always_inline)) {
    typename V::U8 w[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      w[v] = V::load_whole(b + v * V::kBytes);
      if constexpr (MR > 1) V::keep(w[v]);
    }
    if constexpr (!Quads) prefetch_weights<kStep>(b);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const typename V::U8 magnitudes = V::broadcast_a(a + r * stride), signs = V::broadcast_a(a + r * stride + 4);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[r][v] = V::add_pairs(acc[r][v], V::multiply_split(magnitudes, signs, w[v]));
    }
    a += kGroupBytes;
    b += kStep;
  };
  if constexpr (Quads) {
    const uint8_t* begin = b;
    for (int64_t i = 0; i <= count; ++i) {
      const uint8_t* end = i < count ? begin + crowded[i] * kStep : last - groups % 2 * kStep;
      for (; b < end; a += 2 * kGroupBytes, b += 2 * kStep) {
        typename V::U8 w[2][NV];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) {
            w[i][v] = V::load_whole(b + (i * NV + v) * V::kBytes);
            V::keep(w[i][v]);
          }
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const uint8_t* at = a + r * stride;
          typename V::I16 sum[NV];
          const typename V::U8 magnitudes = V::broadcast_a(at), signs = V::broadcast_a(at + 4);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) sum[v] = V::multiply_split(magnitudes, signs, w[0][v]);
          const typename V::U8 more = V::broadcast_a(at + 8), more_signs = V::broadcast_a(at + 12);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v)
            acc[r][v] = V::add_pairs(acc[r][v], V::add_16(sum[v], V::multiply_split(more, more_signs, w[1][v])));
        }
      }
      if (i < count) {
        pair();
        pair();
      }
    }
  }
  if constexpr (MR == 1)  // which is bound by the number of instructions
    while (b + kStep < last) {
      pair();
      pair();
    }
  while (b < last) pair();
  store_sums<V, MR, NV>(acc, sums);
}

// How a call's rows are cut into chunks, and where things are in the scratch.
struct SplitShape {
  int64_t tap_groups, groups, row_bytes;  // of one tap, of all; of a row of split A
  int64_t chunk;                          // rows
  explicit SplitShape(const IgemmParams& p)
      : tap_groups(ceil_div(p.kc, 4)), groups(p.unique_taps * tap_groups), row_bytes(groups * kGroupBytes) {
    const int64_t fit = kSplitBytes / row_bytes / kQuadRows * kQuadRows;
    chunk = fit > kMostSplitRows ? kMostSplitRows : fit > 8 * kQuadRows ? fit : 8 * kQuadRows;
  }
  int64_t pointer_bytes(const IgemmParams& p) const {
    return (tap_count(p) + kMaxRows * p.taps) * static_cast<int64_t>(sizeof(void*));
  }
  int64_t piece_bytes(const IgemmParams& p) const { return p.pieces ? chunk * gathered_stride(p) : 0; }
};

template <class V>
size_t split_scratch(const IgemmParams& p) {
  const SplitShape shape(p);
  const int64_t panel = V::kPanelVectors * V::kBytes;
  return static_cast<size_t>(shape.pointer_bytes(p) + shape.piece_bytes(p) + shape.chunk * shape.row_bytes +
                             shape.chunk * (panel + 4) + 5 * 64);
}

// MR rows of sums and what begins with columns.
template <class V, int MR, int NV>
__attribute__((always_inline)) inline void whole_sums(const int32_t* sums, const int32_t* init,
                                                      typename V::I32 (&acc)[MR][NV]) {
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      acc[r][v] = V::add_i32(V::load_i32(sums + (r * NV + v) * V::kLanes), V::load_i32(init + v * V::kLanes));
}

// Sums of a panel, from the rows' first values on, to bytes.
template <class V, int NV, bool Bounded, bool Plain>
void panel_bytes(const IgemmParams& p, int64_t m, int64_t rows, const int32_t* sums, int64_t col) {
  const Epilogue& e = p.epilogue;
  const int64_t left = p.n - col;
  const int cols = left < NV * V::kLanes ? static_cast<int>(left) : NV * V::kLanes;
  uint8_t* out = static_cast<uint8_t*>(p.out) + col;
  const uint8_t* residual = e.residual ? e.residual + col : nullptr;
  const auto store = [&](auto height, int64_t r) __attribute__((always_inline)) {
    constexpr int kHeight = decltype(height)::value;
    typename V::I32 acc[kHeight][NV];
    whole_sums<V, kHeight, NV>(sums + r * NV * V::kLanes, e.init + col, acc);
    int64_t places[kHeight];
#pragma GCC unroll 4
    for (int i = 0; i < kHeight; ++i) places[i] = m + r + i;
    store_rows<V, kHeight, NV, Bounded, Plain>(e, acc, col, out, p.out_stride, cols, residual, places);
  };
  constexpr int kTogether = 4;
  int64_t r = 0;
  for (; r + kTogether <= rows; r += kTogether) store(std::integral_constant<int, kTogether>{}, r);
  for (; r < rows; ++r) store(std::integral_constant<int, 1>{}, r);
}

template <class V, int NV>
void finish_panel(const IgemmParams& p, int64_t m, int64_t rows, const int32_t* sums, int64_t col) {
  if (p.epilogue.output == Epilogue::Output::kU8) {
    with_kind(p.epilogue, [&](auto bounded, auto plain) {
      panel_bytes<V, NV, decltype(bounded)::value, decltype(plain)::value>(p, m, rows, sums, col);
    });
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    typename V::I32 acc[1][NV];
    whole_sums<V, 1, NV>(sums + r * NV * V::kLanes, p.epilogue.init + col, acc);
    store_tile<V, 1, NV>(p, {1, m + r, nullptr, nullptr, 0}, acc, col);
  }
}

// A panel for a chunk of rows.
template <class V, int NV>
void split_panel(const IgemmParams& p, const SplitShape& shape, int64_t m, int64_t rows, const uint8_t* a,
                 const int32_t* row_first, const uint8_t* panel, int64_t col, int32_t* sums) {
  using Multiply =
      void (*)(const uint8_t*, int64_t, int64_t, const uint8_t*, const int32_t*, int64_t, const int32_t*, int32_t*);
  static constexpr Multiply kPairs[kMaxRows] = {split_rows<V, 1, NV, false>, split_rows<V, 2, NV, false>,
                                                split_rows<V, 3, NV, false>, split_rows<V, 4, NV, false>,
                                                split_rows<V, 5, NV, false>, split_rows<V, 6, NV, false>};
  static constexpr Multiply kQuads[kQuadRows] = {split_rows<V, 1, NV, true>, split_rows<V, 2, NV, true>,
                                                 split_rows<V, 3, NV, true>};
  const int64_t repeats = p.taps / p.unique_taps, of_repeat = ceil_div(shape.groups, kSliceGroups);
  const int64_t step = ceil_div(ceil_div(shape.groups, of_repeat), 2) * 2;
  int32_t crowded[kSliceGroups / 2 + 1];
  for (int64_t i = 0; i < repeats * of_repeat; ++i) {
    const int64_t group = i % of_repeat * step;
    const int64_t groups = shape.groups - group < step ? shape.groups - group : step;
    const uint8_t *b = panel + (i / of_repeat * shape.groups + group) * NV * V::kBytes, *from = a + group * kGroupBytes;
    int64_t count = 0;
    bool quads = rows > kFewRows;
    if (quads) {
      count = find_crowded<V, NV>(b, groups, crowded);
      quads = 8 * count < groups;
    }
    const Tiling tiling(rows, false, quads ? kQuadRows : kMaxRows);
    const int32_t* row = row_first;
    int32_t* to = sums;
    for (int64_t t = 0; t < tiling.count; ++t) {
      const int height = tiling.rows(t);
      (quads ? kQuads : kPairs)[height - 1](from, shape.row_bytes, groups, b, crowded, count, i == 0 ? row : nullptr,
                                            to);
      row += height;
      from += height * shape.row_bytes;
      to += height * NV * V::kLanes;
    }
  }
  finish_panel<V, NV>(p, m, rows, sums, col);
}

template <class V>
void split_igemm(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  const SplitShape shape(p);
  const int64_t panel_cols = V::kPanelVectors * V::kLanes;
  const int64_t panel_bytes = p.taps * shape.tap_groups * panel_cols * 4;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + tap_count(p) * static_cast<int64_t>(sizeof(int64_t)));
  uint8_t* gathered = scratch + shape.pointer_bytes(p);
  auto* sums = reinterpret_cast<int32_t*>(aligned(gathered + shape.piece_bytes(p)));
  int32_t* row_first = sums + shape.chunk * panel_cols;
  uint8_t* split = aligned(reinterpret_cast<uint8_t*>(row_first + shape.chunk));
  const int64_t stride = p.pieces ? gathered_stride(p) : 0;
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  const Inside inside(p);
  const int64_t step = chunk_step(m1 - m0, shape.chunk, kQuadRows);
  for (int64_t chunk = m0; chunk < m1; chunk += step) {
    const int64_t rows = m1 - chunk < step ? m1 - chunk : step;
    if (p.pieces) gather_pieces(p, offsets, rows, cursor, gathered);
    // What a row's sums begin with. Each repetition of the taps has its negative terms again.
    const auto repeats = static_cast<uint32_t>(p.taps / p.unique_taps);
    const auto first_of = [&](int64_t m, typename V::I32 negative) {
      const uint32_t start = p.epilogue.row_init ? static_cast<uint32_t>(p.epilogue.row_init[m]) : 0;
      return static_cast<int32_t>(start + static_cast<uint32_t>(V::sum(negative)) * repeats);
    };
    if (!p.conv && p.unique_taps == 1) {
      for (int64_t r = 0; r < rows; ++r) {
        typename V::I32 negative = V::set_i32(0);
        split_terms<V>(p.a + (chunk + r) * p.a_stride, p.kc, split + r * shape.row_bytes, negative);
        row_first[r] = first_of(chunk + r, negative);
      }
    } else {
      for (int64_t first = 0; first < rows; first += kMaxRows) {
        const int count = static_cast<int>(rows - first < kMaxRows ? rows - first : kMaxRows);
        if (p.pieces)
          gathered_pointers(p, gathered + first * stride, stride, count, pointers);
        else
          row_pointers(p, inside, offsets, chunk + first, count, cursor, pointers);
        for (int r = 0; r < count; ++r) {
          uint8_t* out = split + (first + r) * shape.row_bytes;
          typename V::I32 negative = V::set_i32(0);
          for (int64_t t = 0; t < p.unique_taps; ++t, out += shape.tap_groups * kGroupBytes)
            split_terms<V>(pointers[t * kMaxRows + r], p.kc, out, negative);
          row_first[first + r] = first_of(chunk + first + r, negative);
        }
      }
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols;
      const uint8_t* b = p.b + panel * panel_bytes;
      if (p.n - col > V::kLanes)
        split_panel<V, V::kPanelVectors>(p, shape, chunk, rows, split, row_first, b, col, sums);
      else
        split_panel<V, 1>(p, shape, chunk, rows, split, row_first, b, col, sums);
    }
  }
}

}  // namespace
}  // namespace zeropoint
