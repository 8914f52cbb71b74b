// Implicit GEMM for sets whose multiply-add of bytes takes unsigned times signed ones and saturates its 16-bit sums
// (AVX2's vpmaddubsw). It is exact where sums fit, and they do when A is split into magnitudes and signs of a - 128:
//   (a - 128) w = u w          where a >= 128,
//               = u ~w + u     elsewhere,        with u = |a - 128| and ~w = -w - 1 a flip of all bits.
// A sum of two products lies between 128 * (-128 - 128) = -2^15 and 128 * (127 + 127) < 2^15. The lone u, summed,
// belong to rows; the 128, times the sum of w, to columns, where the zero point is as well (PackedHeader::a_offset).
// Weights are multiplied as they lie in memory, and flipped on the way.
//
// Rows of A are split once per chunk, eight bytes for a group of four terms: magnitudes, then signs. Two panels are
// multiplied at a time, few rows of them, with weights from memory: what a core has too little of is instructions, and
// broadcasts of A are an eighth of them that way. On Zen 3 such a tile makes 92 products a nanosecond, one of one panel
// and four rows 88; the saturating product, inexact, 98.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

constexpr int kSplitRows = 3;          // of a register tile: twelve sums, two registers of A, one of products, ones
constexpr int64_t kSliceGroups = 128;  // of two panels: 16 KB of L1
constexpr int64_t kMostSplitRows = 96, kSplitBytes = 196608;  // of a chunk; its split A stays in L2
constexpr int64_t kGroupBytes = 8;                            // of A, split

// Terms of a row as groups; what a row's last register has past them multiplies to 0. Adds the magnitudes of negative
// ones. Where a register holds more groups than are left they are the next row's place, which is written after.
template <class V>
__attribute__((always_inline)) inline void split_terms(const uint8_t* x, int64_t n, uint8_t* out,
                                                       typename V::I32& negative) {
  int64_t i = 0;
  for (; i + V::kBytes <= n; i += V::kBytes, out += 2 * V::kBytes) V::split(V::load_whole(x + i), out, negative);
  if (i < n) V::split(V::load_first(x + i, n - i, 128), out, negative);
}

// Taps of half a register side by side, to be split together.
template <class V>
__attribute__((always_inline)) inline void join_taps(const uint8_t* const* taps, int64_t count, uint8_t* out) {
  for (int64_t t = 0; t < count; ++t) __builtin_memcpy(out + t * V::kBytes / 2, taps[t * kMaxRows], V::kBytes / 2);
}

// What register tiles of a slice have in common.
struct Slice {
  int64_t stride, groups;         // bytes between rows of A
  const uint8_t *first, *second;  // panels
  const int32_t* init;            // what sums begin with by column; null: they go on
};

// A slice of a panel of First vectors and one of Second, or none, for tiles of MR rows of split A. Sums, of the slices
// before or beginning with the rows' first values, are in memory, panel by panel: in registers of a function that
// finishes them, too, compilers would keep none of them.
template <class V, int MR, int First, int Second>
[[gnu::noinline]] void split_rows(const Slice& slice, int64_t tiles, const uint8_t* rows, const int32_t* first,
                                  int32_t* sums, int32_t* others) {
  constexpr int kVectors = First + Second;
  const int64_t stride = slice.stride, apart = slice.second - slice.first;
  const int32_t* init = slice.init;
  const uint8_t* last = slice.first + slice.groups * First * V::kBytes;
  for (; tiles > 0; --tiles) {
    const auto sums_of = [&](int r, int v) __attribute__((always_inline)) {
      return v < First ? sums + (r * First + v) * V::kLanes : others + (r * Second + v - First) * V::kLanes;
    };
    typename V::I32 acc[MR][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] =
            init ? V::add_i32(V::load_i32(init + v * V::kLanes), V::set_i32(first[r])) : V::load_i32(sums_of(r, v));
    const uint8_t *a = rows, *b = slice.first, *c = slice.second;
    const auto group = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        const typename V::U8 magnitudes = V::broadcast_a(a + r * stride), signs = V::broadcast_a(a + r * stride + 4);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const uint8_t* other = First == Second ? b + apart : c;  // one pointer less to move
          const uint8_t* w = v < First ? b + v * V::kBytes : other + (v - First) * V::kBytes;
          acc[r][v] = V::add_pairs(acc[r][v], V::multiply_split(magnitudes, signs, w));
        }
      }
      a += kGroupBytes;
      b += First * V::kBytes;
      c += Second * V::kBytes;
    };
    if constexpr (MR == 1)  // which is bound by the number of instructions
      while (b + First * V::kBytes < last) {
        group();
        group();
      }
    while (b < last) group();
#pragma GCC unroll 4
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) V::store_i32(sums_of(r, v), acc[r][v]);
    rows += MR * stride;
    first += MR;
    sums += MR * First * V::kLanes;
    others += MR * Second * V::kLanes;
  }
}

// How a call's rows are cut into chunks, and where things are in the scratch.
struct SplitShape {
  int64_t tap_groups, groups, row_bytes;  // of one tap, of all; of a row of split A
  int64_t chunk;                          // rows
  explicit SplitShape(const IgemmParams& p)
      : tap_groups(ceil_div(p.kc, 4)), groups(p.unique_taps * tap_groups), row_bytes(groups * kGroupBytes) {
    const int64_t fit = kSplitBytes / row_bytes / kSplitRows * kSplitRows;
    chunk = fit > kMostSplitRows ? kMostSplitRows : fit > 4 * kSplitRows ? fit : 4 * kSplitRows;
  }
  int64_t pointer_bytes(const IgemmParams& p) const {
    return (tap_count(p) + kMaxRows * p.taps) * static_cast<int64_t>(sizeof(void*));
  }
  // Of a row whose taps are half a register each.
  template <class V>
  int64_t joined_bytes(const IgemmParams& p) const {
    return p.unique_taps > 1 && p.kc == V::kBytes / 2 ? ceil_div(p.unique_taps * p.kc, 64) * 64 : 0;
  }
  int64_t piece_bytes(const IgemmParams& p) const { return p.pieces ? chunk * gathered_stride(p) : 0; }
};

template <class V>
size_t split_scratch(const IgemmParams& p) {
  const SplitShape shape(p);
  const int64_t panel = V::kPanelVectors * V::kBytes;
  return static_cast<size_t>(shape.pointer_bytes(p) + shape.piece_bytes(p) + shape.template joined_bytes<V>(p) +
                             shape.chunk * shape.row_bytes + shape.chunk * (2 * panel + 4) + 5 * 64);
}

template <class V, int MR, int NV>
__attribute__((always_inline)) inline void load_sums(const int32_t* sums, typename V::I32 (&acc)[MR][NV]) {
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[r][v] = V::load_i32(sums + (r * NV + v) * V::kLanes);
}

// Sums of a panel to bytes.
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
    load_sums<V, kHeight, NV>(sums + r * NV * V::kLanes, acc);
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
    load_sums<V, 1, NV>(sums + r * NV * V::kLanes, acc);
    store_tile<V, 1, NV>(p, {1, m + r, nullptr, nullptr, 0}, acc, col);
  }
}

// A panel of First vectors and the one after it, of Second, or none, for a chunk of rows.
template <class V, int First, int Second>
void split_panels(const IgemmParams& p, const SplitShape& shape, int64_t m, int64_t rows, const uint8_t* a,
                  const int32_t* row_first, const uint8_t* panel, int64_t col, int32_t* sums) {
  using Multiply = void (*)(const Slice&, int64_t, const uint8_t*, const int32_t*, int32_t*, int32_t*);
  static constexpr Multiply kRows[kSplitRows] = {split_rows<V, 1, First, Second>, split_rows<V, 2, First, Second>,
                                                 split_rows<V, 3, First, Second>};
  const uint8_t* next = panel + p.taps * shape.tap_groups * First * V::kBytes;
  Slice slice = {shape.row_bytes, 0, nullptr, nullptr, p.epilogue.init + col};
  int32_t* others = sums + rows * First * V::kLanes;
  const int64_t most = rows <= kSplitRows ? shape.groups : kSliceGroups;  // one tile reads it once
  for (int64_t repeat = 0; repeat < p.taps / p.unique_taps; ++repeat)
    for (int64_t group = 0; group < shape.groups; group += most) {
      slice.groups = shape.groups - group < most ? shape.groups - group : most;
      slice.first = panel + (repeat * shape.groups + group) * First * V::kBytes;
      slice.second = next + (repeat * shape.groups + group) * Second * V::kBytes;
      const uint8_t* from = a + group * kGroupBytes;
      // Tiles of about the same height, taller ones first.
      const int64_t count = ceil_div(rows, kSplitRows), height = rows / count, taller = rows % count;
      const int64_t above = taller * (height + 1);
      if (taller > 0) kRows[height](slice, taller, from, row_first, sums, others);
      kRows[height - 1](slice, count - taller, from + above * shape.row_bytes, row_first + above,
                        sums + above * First * V::kLanes, others + above * Second * V::kLanes);
      slice.init = nullptr;
    }
  finish_panel<V, First>(p, m, rows, sums, col);
  if constexpr (Second > 0) finish_panel<V, Second>(p, m, rows, others, col + First * V::kLanes);
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
  int32_t* row_first = sums + shape.chunk * 2 * panel_cols;
  uint8_t* joined = aligned(reinterpret_cast<uint8_t*>(row_first + shape.chunk));
  uint8_t* split = joined + shape.template joined_bytes<V>(p);
  const bool joins = split > joined;
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  const Inside inside(p);
  const int64_t step = chunk_step(m1 - m0, shape.chunk, kSplitRows);
  for (int64_t chunk = m0; chunk < m1; chunk += step) {
    const int64_t rows = m1 - chunk < step ? m1 - chunk : step;
    // What a row's sums begin with. Each repetition of the taps has its negative terms again.
    const auto repeats = static_cast<uint32_t>(p.taps / p.unique_taps);
    const auto split_row = [&](int64_t r, const uint8_t* const* taps) {
      uint8_t* out = split + r * shape.row_bytes;
      typename V::I32 negative = V::set_i32(0);
      if (joins) {
        join_taps<V>(taps, p.unique_taps, joined);
        split_terms<V>(joined, p.unique_taps * p.kc, out, negative);
      } else {
        for (int64_t t = 0; t < p.unique_taps; ++t, out += shape.tap_groups * kGroupBytes)
          split_terms<V>(taps[t * kMaxRows], p.kc, out, negative);
      }
      const uint32_t start = p.epilogue.row_init ? static_cast<uint32_t>(p.epilogue.row_init[chunk + r]) : 0;
      row_first[r] = static_cast<int32_t>(start + static_cast<uint32_t>(V::sum(negative)) * repeats);
    };
    if (!p.conv && p.unique_taps == 1) {
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* row = p.a + (chunk + r) * p.a_stride;
        split_row(r, &row);
      }
    } else {
      each_row(p, inside, offsets, chunk, rows, cursor, pointers, gathered, split_row);
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols;
      const uint8_t* b = p.b + panel * panel_bytes;
      const auto multiply = [&](auto first, auto second) {
        split_panels<V, decltype(first)::value, decltype(second)::value>(p, shape, chunk, rows, split, row_first, b,
                                                                         col, sums);
      };
      using None = std::integral_constant<int, 0>;
      using One = std::integral_constant<int, 1>;
      using Two = std::integral_constant<int, 2>;
      static_assert(V::kPanelVectors == 2);
      const int64_t vectors = ceil_div(p.n - col, V::kLanes);
      if (vectors == 1) {
        multiply(One{}, None{});
      } else if (vectors == 2 || panel + 1 == panel1) {
        multiply(Two{}, None{});
      } else {
        if (vectors == 3)
          multiply(Two{}, One{});
        else
          multiply(Two{}, Two{});
        ++panel;
      }
    }
  }
}

}  // namespace
}  // namespace zeropoint
