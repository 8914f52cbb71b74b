// Implicit GEMM, written once. `V` is an instruction set's vocabulary (simd.h in its folder): the
// vector type, the dot product and the conversions. This file is the register tile (MR x NV vectors,
// unrolled) and the loop nest; the arithmetic after the accumulator is epilogue.h.
//
// Loop order: a chunk of rows, then panels of B, then register tiles. The pointers of a chunk are
// computed once and reused by all panels; a panel of B streams from L1 or L2 for each register tile.
#pragma once
#include <type_traits>
#include <utility>

#include "epilogue.h"

namespace zeropoint {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline uint8_t* aligned(uint8_t* p) { return p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64; }

// Address of the first byte of A for an output row and tap, or the padding row.
struct RowCursor {
  int64_t n, od, oh, ow;
};

inline RowCursor cursor_at(const ConvGeometry& g, int64_t m) {
  const int64_t area = g.out_h * g.out_w, rest = m % area, plane = m / area;
  return {plane / g.out_d, plane % g.out_d, rest / g.out_w, rest % g.out_w};
}

inline void advance(const ConvGeometry& g, RowCursor& c) {
  if (++c.ow == g.out_w) {
    c.ow = 0;
    if (++c.oh == g.out_h) {
      c.oh = 0;
      if (++c.od == g.out_d) {
        c.od = 0;
        ++c.n;
      }
    }
  }
}

// Taps of the geometry, those that B repeats counted again.
inline int64_t tap_count(const IgemmParams& p) { return p.pieces ? p.pieces : p.taps; }

// Byte offset of each tap from an output pixel's first tap.
inline void tap_offsets(const IgemmParams& p, int64_t* offsets) {
  for (int64_t t = 0; t < tap_count(p); ++t) {
    offsets[t] = 0;
    if (!p.conv) continue;
    const ConvGeometry& g = *p.conv;
    const int64_t tap = p.pieces ? t : t % p.unique_taps, row = tap / g.kernel_w;
    offsets[t] = row / g.kernel_h * g.dilation_d * g.plane_stride + row % g.kernel_h * g.dilation_h * g.row_stride +
                 tap % g.kernel_w * g.dilation_w * p.a_stride;
  }
}

// Address of an output pixel's first tap, be it inside or not.
inline const uint8_t* first_tap(const IgemmParams& p, const RowCursor& c) {
  const ConvGeometry& g = *p.conv;
  return p.a + c.n * g.image_stride + (c.od * g.stride_d - g.pad_d) * g.plane_stride +
         (c.oh * g.stride_h - g.pad_h) * g.row_stride + (c.ow * g.stride_w - g.pad_w) * p.a_stride;
}

// The output positions all of whose taps are inside, along each dimension; found once, as pointers are made for few
// products each.
struct Inside {
  int64_t d0 = 0, d1 = 0, h0 = 0, h1 = 0, w0 = 0, w1 = 0, kernel_d = 1;

  static void bounds(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t& first,
                     int64_t& end) {
    const int64_t last = in - 1 - (kernel - 1) * dilation + pad;  // input position of the last one's first tap, padded
    first = ceil_div(pad, stride);
    end = last < 0 ? 0 : last / stride + 1;
  }
  explicit Inside(const IgemmParams& p) {
    if (!p.conv) return;
    const ConvGeometry& g = *p.conv;
    if (g.pad_d == 0 && g.pad_h == 0 && g.pad_w == 0) {  // all are, also of taps that were put together
      d1 = g.out_d;
      h1 = g.out_h;
      w1 = g.out_w;
      return;
    }
    kernel_d = p.unique_taps / (g.kernel_w * g.kernel_h);
    bounds(g.in_d, kernel_d, g.stride_d, g.pad_d, g.dilation_d, d0, d1);
    bounds(g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, h0, h1);
    bounds(g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, w0, w1);
  }
  bool line(const RowCursor& c) const { return c.od >= d0 && c.od < d1 && c.oh >= h0 && c.oh < h1; }
  bool holds(const RowCursor& c) const { return line(c) && c.ow >= w0 && c.ow < w1; }
};

// The first tap's addresses of the `rows` output rows from the cursor on, if all their taps are inside; else false,
// with the cursor where it was. The taps are at the same offsets from them.
inline bool row_bases(const IgemmParams& p, const Inside& inside, int rows, RowCursor& c, const uint8_t** bases) {
  const ConvGeometry& g = *p.conv;
  const int64_t step = g.stride_w * p.a_stride;
  const RowCursor before = c;
  for (int r = 0; r < rows;) {  // line by line
    const int64_t left = g.out_w - c.ow, count = rows - r < left ? rows - r : left;
    if (!inside.line(c) || c.ow < inside.w0 || c.ow + count > inside.w1) {
      c = before;
      return false;
    }
    const uint8_t* next = first_tap(p, c);
    for (const int64_t end = r + count; r < end; ++r, next += step) bases[r] = next;
    c.ow += count - 1;
    advance(g, c);
  }
  return true;
}

// Fills pointers[tap * kMaxRows + r] for the `rows` output rows from the cursor on, and moves it past them.
inline void row_pointers(const IgemmParams& p, const Inside& inside, const int64_t* offsets, int64_t m, int rows,
                         RowCursor& c, const uint8_t** pointers) {
  if (!p.conv) {
    for (int r = 0; r < rows; ++r)
      for (int64_t t = 0; t < p.taps; ++t) pointers[t * kMaxRows + r] = p.a + (m + r) * p.a_stride;
    return;
  }
  const ConvGeometry& g = *p.conv;
  for (int r = 0; r < rows; ++r, advance(g, c)) {
    const uint8_t* base = first_tap(p, c);
    const uint8_t** dst = pointers + r;
    if (inside.holds(c)) {
      for (int64_t t = 0; t < p.taps; ++t) dst[t * kMaxRows] = base + offsets[t];
      continue;
    }
    const int64_t d0 = c.od * g.stride_d - g.pad_d, h0 = c.oh * g.stride_h - g.pad_h, w0 = c.ow * g.stride_w - g.pad_w;
    // Without a division per tap: each takes as long as a product of two registers' worth of terms.
    for (int64_t t = 0; t < p.taps;)
      for (int64_t d = d0; d < d0 + inside.kernel_d * g.dilation_d; d += g.dilation_d)
        for (int64_t h = h0; h < h0 + g.kernel_h * g.dilation_h; h += g.dilation_h) {
          const bool line = d >= 0 && d < g.in_d && h >= 0 && h < g.in_h;
          for (int64_t i = 0, w = w0; i < g.kernel_w; ++i, ++t, w += g.dilation_w)
            dst[t * kMaxRows] = line && w >= 0 && w < g.in_w ? base + offsets[t] : p.pad_row;
        }
  }
}

// How many bytes of a piece are copied at a time.
inline int64_t gathered_copy(const IgemmParams& p) { return p.kc / p.pieces <= kPiece / 2 ? kPiece / 2 : kPiece; }

// Bytes between gathered rows: what the last copy writes past a row is no other row's.
inline int64_t gathered_stride(const IgemmParams& p) { return ceil_div(p.kc + gathered_copy(p) - 1, 16) * 16; }

// `bytes` bytes of each of `count` output pixels, Copy at a time.
template <int64_t Copy>
inline void gather_piece(const uint8_t* source, int64_t step, int64_t bytes, int64_t count, uint8_t* out,
                         int64_t stride) {
  for (int64_t i = 0; i < bytes; i += Copy) {
    const uint8_t* from = source + i;
    uint8_t* to = out + i;
    for (int64_t r = 0; r < count; ++r, from += step, to += stride) __builtin_memcpy(to, from, Copy);
  }
}

// Puts together what the next `rows` output rows see. What a copy writes past its piece is the next one's place, or
// meets no weight.
inline void gather_pieces(const IgemmParams& p, const int64_t* offsets, int64_t rows, RowCursor& c, uint8_t* out) {
  const ConvGeometry& g = *p.conv;
  const int64_t bytes = p.kc / p.pieces, stride = gathered_stride(p), step = g.stride_w * p.a_stride;
  while (rows > 0) {  // a line of output pixels, or its part
    const int64_t count = rows < g.out_w - c.ow ? rows : g.out_w - c.ow;
    const uint8_t* base = first_tap(p, c);
    for (int64_t t = 0; t < p.pieces; ++t) {
      if (gathered_copy(p) < kPiece)
        gather_piece<kPiece / 2>(base + offsets[t], step, bytes, count, out + t * bytes, stride);
      else
        gather_piece<kPiece>(base + offsets[t], step, bytes, count, out + t * bytes, stride);
    }
    out += count * stride;
    rows -= count;
    c.ow += count - 1;
    advance(g, c);
  }
}

// Pointers to rows that were put together, for all taps of B.
inline void gathered_pointers(const IgemmParams& p, const uint8_t* gathered, int64_t stride, int rows,
                              const uint8_t** pointers) {
  for (int64_t t = 0; t < p.taps; ++t)
    for (int r = 0; r < rows; ++r) pointers[t * kMaxRows + r] = gathered + r * stride;
}

// f(row, pointers) for the `rows` rows from m on, which the cursor is moved past: tap t is at pointers[t * kMaxRows].
// `pieces` has room for their pieces, if they have any.
template <class F>
__attribute__((always_inline)) inline void each_row(const IgemmParams& p, const Inside& inside, const int64_t* offsets,
                                                    int64_t m, int64_t rows, RowCursor& cursor,
                                                    const uint8_t** pointers, uint8_t* pieces, const F& f) {
  const int64_t stride = p.pieces ? gathered_stride(p) : 0;
  if (p.pieces) gather_pieces(p, offsets, rows, cursor, pieces);
  for (int64_t first = 0; first < rows; first += kMaxRows) {
    const int count = static_cast<int>(rows - first < kMaxRows ? rows - first : kMaxRows);
    if (p.pieces)
      gathered_pointers(p, pieces + first * stride, stride, count, pointers);
    else
      row_pointers(p, inside, offsets, m + first, count, cursor, pointers);
    for (int r = 0; r < count; ++r) f(first + r, pointers + r);
  }
}

// How many of `count` rows or tiles a chunk of at most `most` takes, so that all take about as many: whole register
// tiles of `height`.
inline int64_t chunk_step(int64_t count, int64_t most, int64_t height) {
  return ceil_div(ceil_div(count, ceil_div(count, most)), height) * height;
}

// Splits `rows` rows into the fewest tiles of at most `most`: all of about the same height, or, as staggered ones
// are made of halves, all but the last of kMaxRows.
struct Tiling {
  int64_t count, tall;  // `tall` tiles of base + 1 rows come first
  int base;
  Tiling(int64_t rows, bool halves, int most = kMaxRows)
      : count(ceil_div(rows, most)),
        tall(halves ? 0 : rows % count),
        base(halves ? kMaxRows : static_cast<int>(rows / count)),
        last(halves ? static_cast<int>(rows - (count - 1) * kMaxRows) : base) {}
  int rows(int64_t tile) const { return tile == count - 1 ? last : base + (tile < tall ? 1 : 0); }

 private:
  int last;
};

// What a register tile works on.
struct Tile {
  int rows;
  int64_t m;                       // its first row
  const int64_t* places;           // rows of the output; null: from m on
  const uint8_t* const* pointers;  // [tap][row]; with `offsets` [row]
  int64_t taps;
  const int32_t* kept = nullptr;     // which taps of B these are; null: all
  const int64_t* offsets = nullptr;  // of the taps from `pointers`

  int64_t place(int row) const { return places ? places[row] : m + row; }
};

// What becomes of a tile's accumulators.
template <class V, int MR, int NV>
void store_tile(const IgemmParams& p, const Tile& work, typename V::I32 (&acc)[MR][NV], int64_t col) {
  const int64_t m = work.m, slot = col;  // panel order keeps the columns of a panel together
  const int64_t left = p.n - col;
  const int cols = left < NV * V::kLanes ? static_cast<int>(left) : NV * V::kLanes;
  const Epilogue& e = p.epilogue;
  if (e.output == Epilogue::Output::kU8) {
    int64_t places[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) places[r] = work.place(r);
    store_u8<V, MR, NV>(e, acc, slot, static_cast<uint8_t*>(p.out) + col, p.out_stride, cols,
                        e.residual ? e.residual + col : nullptr, places);
    return;
  }
  if constexpr (V::kOrders && NV != 3) {
    if (cols == NV * V::kLanes) {
      store_ordered<V, MR, NV>(e, acc, p.out, m * p.out_stride + col, p.out_stride, m, col);
      return;
    }
  }
  alignas(64) int32_t spilled[MR][NV * V::kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) V::store_i32(spilled[r] + v * V::kLanes, acc[r][v]);
  for (int r = 0; r < MR; ++r)
    store_general<V, NV>(e, spilled[r], slot, p.out, (m + r) * p.out_stride + col, m + r, col, cols);
}

// Weights are asked for this many bytes before they are multiplied: about as long as a line takes from the last cache,
// and past the page at whose end the core's own prefetching stops. On Zen 5 a 128x768x3072 product whose weights come
// from there takes 5 % less, and nothing more where they are near.
constexpr int64_t kPrefetch = 8192;

template <int Bytes>
__attribute__((always_inline)) inline void prefetch_weights(const uint8_t* b) {
#pragma GCC unroll 8
  for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(b + kPrefetch + i);
}

template <class V, int MR, int NV>
void tile(const IgemmParams& p, const Tile& work, int64_t groups, const uint8_t* panel, int64_t col) {
  const int64_t m = work.m;
  typename V::I32 acc[MR][NV];
  const int64_t slot = col;  // panel order keeps the columns of a panel together
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const typename V::I32 init = V::load_i32(p.epilogue.init + slot + v * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) acc[r][v] = init;
  }
  if (p.epilogue.row_init) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = V::add_i32(acc[r][v], V::set_i32(p.epilogue.row_init[m + r]));
  }
  const uint8_t* b = panel;
  for (int64_t t = 0; t < work.taps; ++t) {
    const uint8_t* a[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
      a[r] = work.offsets ? work.pointers[r] + work.offsets[t] : work.pointers[t * kMaxRows + r];
    if (work.kept) b = panel + work.kept[t] * groups * NV * V::kLanes * 4;
    for (int64_t g = 0; g < groups; ++g) {
      typename V::I32 bv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) bv[v] = V::load_i32(reinterpret_cast<const int32_t*>(b) + v * V::kLanes);
      prefetch_weights<NV * V::kLanes * 4>(b);
      b += NV * V::kLanes * 4;
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const typename V::I32 av = V::broadcast_a(a[r] + 4 * g);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = V::dot(acc[r][v], av, bv[v]);
      }
    }
  }
  store_tile<V, MR, NV>(p, work, acc, col);
}

// One row of a matrix, which is bound by reading B: two streams of it, half of K apart, keep more of the memory busy
// than one.
template <class V, int NV>
void row_tile(const IgemmParams& p, const Tile& work, int64_t groups, const uint8_t* panel, int64_t col) {
  constexpr int64_t kStep = NV * V::kLanes * 4;
  const int64_t half = groups / 2;
  const uint8_t *low = panel, *high = panel + half * kStep;
  const uint8_t* a = work.pointers[0];
  typename V::I32 acc[1][NV], other[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    acc[0][v] = V::load_i32(p.epilogue.init + col + v * V::kLanes);
    if (p.epilogue.row_init) acc[0][v] = V::add_i32(acc[0][v], V::set_i32(p.epilogue.row_init[work.m]));
    other[v] = V::set_i32(0);
  }
  for (int64_t g = 0; g < half; ++g, low += kStep, high += kStep) {
    const typename V::I32 first = V::broadcast_a(a + 4 * g), second = V::broadcast_a(a + 4 * (half + g));
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[0][v] = V::dot(acc[0][v], first, V::load_i32(reinterpret_cast<const int32_t*>(low) + v * V::kLanes));
      other[v] = V::dot(other[v], second, V::load_i32(reinterpret_cast<const int32_t*>(high) + v * V::kLanes));
    }
  }
  if (groups % 2) {
    const typename V::I32 last = V::broadcast_a(a + 4 * (groups - 1));
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      acc[0][v] = V::dot(acc[0][v], last, V::load_i32(reinterpret_cast<const int32_t*>(high) + v * V::kLanes));
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) acc[0][v] = V::add_i32(acc[0][v], other[v]);
  store_tile<V, 1, NV>(p, work, acc, col);
}

template <class V, int NV>
void tile_rows(const IgemmParams& p, const Tile& work, int64_t groups, const uint8_t* b, int64_t col) {
  switch (work.rows) {
    case 1:
      if (work.taps == 1 && !work.kept && !work.offsets) return row_tile<V, NV>(p, work, groups, b, col);
      return tile<V, 1, NV>(p, work, groups, b, col);
    case 2:
      return tile<V, 2, NV>(p, work, groups, b, col);
    case 3:
      return tile<V, 3, NV>(p, work, groups, b, col);
    case 4:
      return tile<V, 4, NV>(p, work, groups, b, col);
    case 5:
      return tile<V, 5, NV>(p, work, groups, b, col);
    default:
      return tile<V, 6, NV>(p, work, groups, b, col);
  }
}

template <class V>
void tile_panel(int vectors, const IgemmParams& p, const Tile& work, int64_t groups, const uint8_t* b, int64_t col) {
  if constexpr (V::kPanelVectors >= 4) {
    if (vectors == 4) return tile_rows<V, 4>(p, work, groups, b, col);
    if (vectors == 3) return tile_rows<V, 3>(p, work, groups, b, col);
  }
  if (vectors == 2) return tile_rows<V, 2>(p, work, groups, b, col);
  return tile_rows<V, 1>(p, work, groups, b, col);
}

// f(0), f(1), ... with numbers that are known to the compiler.
template <int Count, class F>
__attribute__((always_inline)) inline void each_part(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, Count>{});
}

// Products of few terms (and one tap), whose epilogue takes about as long: of tiles of half the height, the one before
// waits in registers, and a part of its rows is finished after each part of the products of the next. Multiplier and
// epilogue need other units of the core, but more of the program lies between them than it can look ahead. Where a
// tile's rows are no multiple of the height, the last one is multiplied again, but not stored: the output may lie where
// the residual does.
template <class V, int NV, bool Plain, bool Residual>
void staggered_tiles(const IgemmParams& p, const Tile* tiles, int64_t count, int64_t groups, const uint8_t* panel,
                     int64_t col) {
  constexpr int kHeight = NV > 2 ? kMaxRows / 2 : kMaxRows;
  constexpr int kShare = NV > 2 ? 1 : 4 / NV, kParts = (kHeight + kShare - 1) / kShare;  // rows of a part; parts
  constexpr int64_t kStep = NV * V::kLanes * 4;
  const int64_t left = p.n - col, out_stride = p.out_stride;
  const int cols = left < NV * V::kLanes ? static_cast<int>(left) : NV * V::kLanes;
  uint8_t* out = static_cast<uint8_t*>(p.out) + col;
  typename V::I32 acc[kHeight][NV], before[kHeight][NV];
  int64_t places[kHeight];
  int waiting = 0;  // rows of `before`
  const auto finish = [&](auto number) __attribute__((always_inline)) {
    constexpr int kFirst = decltype(number)::value * kShare;
    constexpr int kRows = kFirst + kShare <= kHeight ? kShare : kHeight - kFirst;
    if (kFirst >= waiting) return;
    // Read anew: constants kept in registers would push the sums out of them.
    const Epilogue* again = &p.epilogue;
    __asm__ volatile("" : "+r"(again));
    const Epilogue& e = *again;
    if (e.table) __builtin_unreachable();
    const uint8_t* residual = nullptr;
    if constexpr (Residual) {
      residual = e.residual + col;
      if (!residual) __builtin_unreachable();
    }
    typename V::I32 part[kRows][NV];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) part[r][v] = before[kFirst + r][v];
    if (kRows == 1 || kFirst + kRows <= waiting) {
      store_rows<V, kRows, NV, true, Plain>(e, part, col, out, out_stride, cols, residual, places + kFirst);
      return;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (kFirst + r >= waiting) continue;
      typename V::I32 one[1][NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) one[0][v] = part[r][v];
      store_rows<V, 1, NV, true, Plain>(e, one, col, out, out_stride, cols, residual, places + kFirst + r);
    }
  };
  const auto multiply = [&](const uint8_t* const(&a)[kHeight], const uint8_t*& b, int64_t g, int64_t end)
      __attribute__((always_inline)) {
    for (; g < end; ++g) {
      typename V::I32 bv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) bv[v] = V::load_i32(reinterpret_cast<const int32_t*>(b) + v * V::kLanes);
      b += kStep;
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) {
        const typename V::I32 av = V::broadcast_a(a[r] + 4 * g);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = V::dot(acc[r][v], av, bv[v]);
      }
    }
  };
  const uint8_t* next_panel = panel + groups * kStep;
  const int64_t share = ceil_div(groups * kStep, count * 64) * 64;
  for (int64_t i = 0; i < count; ++i, next_panel += share) {
    const Tile& work = tiles[i];
    // Not among the products, whose registers they would take.
    for (int64_t line = 0; line < share; line += 64) __builtin_prefetch(next_panel + line);
    for (int first = 0; first < work.rows; first += kHeight) {
      int rows[kHeight];
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) rows[r] = first + r < work.rows ? first + r : work.rows - 1;
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const typename V::I32 init = V::load_i32(p.epilogue.init + col + v * V::kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kHeight; ++r) acc[r][v] = init;
      }
      const uint8_t *a[kHeight], *b = panel;
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) a[r] = work.pointers[rows[r]] + (work.offsets ? work.offsets[0] : 0);
      each_part<kParts>([&](auto number) __attribute__((always_inline)) {
        constexpr int kPart = decltype(number)::value;
        multiply(a, b, kPart * (groups / kParts), kPart + 1 < kParts ? (kPart + 1) * (groups / kParts) : groups);
        finish(number);
      });
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) before[r][v] = acc[r][v];
        places[r] = work.place(rows[r]);
      }
      waiting = work.rows - first < kHeight ? work.rows - first : kHeight;
    }
  }
  each_part<kParts>(finish);
}

// Tiles of a chunk; its rows.
constexpr int64_t kChunkTiles = 32, kChunkRows = kChunkTiles * kMaxRows;

// Bytes of a chunk's offsets, pointers and (with `order`) kept taps; then come rows that were put together.
inline int64_t chunk_pointers(const IgemmParams& p) {
  return (tap_count(p) + (kChunkRows + kChunkTiles) * p.taps) * static_cast<int64_t>(sizeof(void*));
}

inline size_t igemm_scratch(const IgemmParams& p) {
  return static_cast<size_t>(chunk_pointers(p) + (p.pieces ? kChunkRows * gathered_stride(p) : 0));
}

template <class V, int NV>
void staggered_kind(const IgemmParams& p, const Tile* tiles, int64_t count, int64_t groups, const uint8_t* b,
                    int64_t col) {
  if (p.epilogue.plain && p.epilogue.residual)
    return staggered_tiles<V, NV, true, true>(p, tiles, count, groups, b, col);
  if (p.epilogue.plain) return staggered_tiles<V, NV, true, false>(p, tiles, count, groups, b, col);
  if (p.epilogue.residual) return staggered_tiles<V, NV, false, true>(p, tiles, count, groups, b, col);
  return staggered_tiles<V, NV, false, false>(p, tiles, count, groups, b, col);
}

template <class V>
void staggered_panel(int vectors, const IgemmParams& p, const Tile* tiles, int64_t count, int64_t groups,
                     const uint8_t* b, int64_t col) {
  switch (vectors) {
    case 1:
      return staggered_kind<V, 1>(p, tiles, count, groups, b, col);
    case 2:
      return staggered_kind<V, 2>(p, tiles, count, groups, b, col);
    case 3:
      return staggered_kind<V, 3>(p, tiles, count, groups, b, col);
    default:
      return staggered_kind<V, 4>(p, tiles, count, groups, b, col);
  }
}

// A tile of fewer terms is so short that the core sees the next one's products during its epilogue; one of more has no
// time to save.
constexpr int64_t kStaggeredFrom = 28, kStaggeredTerms = 512;

inline bool staggers(const IgemmParams& p, int64_t groups) {
  const Epilogue& e = p.epilogue;
  return e.output == Epilogue::Output::kU8 && e.bounded && !e.table && !e.row_init && p.taps == 1 &&
         (e.residual || groups * 4 >= kStaggeredFrom) && groups * 4 <= kStaggeredTerms;
}

// All panels of a chunk of tiles.
template <class V>
void multiply_tiles(const IgemmParams& p, const Tile* tiles, int64_t count, int64_t groups, int64_t panel0,
                    int64_t panel1) {
  const int64_t panel_cols = V::kPanelVectors * V::kLanes, panel_bytes = p.taps * groups * panel_cols * 4;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const int64_t col = panel * panel_cols, left = p.n - col;
    const int vectors = left >= panel_cols ? V::kPanelVectors : static_cast<int>(ceil_div(left, V::kLanes));
    if constexpr (V::kStaggers) {
      if (count > 1 && staggers(p, groups)) {
        staggered_panel<V>(vectors, p, tiles, count, groups, p.b + panel * panel_bytes, col);
        continue;
      }
    }
    for (int64_t i = 0; i < count; ++i) tile_panel<V>(vectors, p, tiles[i], groups, p.b + panel * panel_bytes, col);
  }
}

// Drops the taps that are padding for all rows of a tile: moves the pointers of the others together, lists them in
// `kept`.
inline int64_t keep_taps(const IgemmParams& p, int rows, const uint8_t** pointers, int32_t* kept) {
  int64_t count = 0;
  for (int64_t t = 0; t < p.taps; ++t) {
    bool inside = false;
    for (int r = 0; r < rows; ++r) inside = inside || pointers[t * kMaxRows + r] != p.pad_row;
    if (!inside) continue;
    for (int r = 0; r < rows; ++r) pointers[count * kMaxRows + r] = pointers[t * kMaxRows + r];
    kept[count++] = static_cast<int32_t>(t);
  }
  return count;
}

// The tiles [tile0, tile1) of p.order.
template <class V>
void igemm_ordered(const IgemmParams& p, int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1,
                   uint8_t* scratch) {
  const ConvGeometry& g = *p.conv;
  const int64_t groups = ceil_div(p.kc, 4), area = g.out_h * g.out_w;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + p.taps * sizeof(int64_t));
  auto* kept = reinterpret_cast<int32_t*>(scratch + (kChunkRows + 1) * p.taps * sizeof(void*));
  tap_offsets(p, offsets);
  const Inside inside(p);
  int64_t places[kChunkRows];
  Tile tiles[kChunkTiles];
  for (int64_t chunk = tile0; chunk < tile1; chunk += kChunkTiles) {
    const int64_t count = tile1 - chunk < kChunkTiles ? tile1 - chunk : kChunkTiles;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = (chunk + i) / p.tile_count, in_image = (chunk + i) % p.tile_count;
      const int32_t* pixels = p.order + p.tiles[in_image];
      const int rows = p.tiles[in_image + 1] - p.tiles[in_image];
      const uint8_t** block = pointers + i * kMaxRows * p.taps;
      for (int r = 0; r < rows; ++r) {
        RowCursor cursor{image, 0, pixels[r] / g.out_w, pixels[r] % g.out_w};
        row_pointers(p, inside, offsets, 0, 1, cursor, block + r);
        places[i * kMaxRows + r] = image * area + pixels[r];
      }
      const int64_t taps = keep_taps(p, rows, block, kept + i * p.taps);
      tiles[i] = {rows, 0, places + i * kMaxRows, block, taps, kept + i * p.taps};
    }
    multiply_tiles<V>(p, tiles, count, groups, panel0, panel1);
  }
}

template <class V>
void igemm(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  if (p.order) return igemm_ordered<V>(p, m0, m1, panel0, panel1, scratch);
  const int64_t groups = ceil_div(p.kc, 4);
  const bool halves = V::kStaggers && staggers(p, groups);
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + tap_count(p) * static_cast<int64_t>(sizeof(int64_t)));
  uint8_t* gathered = scratch + chunk_pointers(p);
  const int64_t stride = p.pieces ? gathered_stride(p) : 0;
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  const Inside inside(p);
  Tile tiles[kChunkTiles];
  for (int64_t chunk = m0; chunk < m1; chunk += kChunkRows) {
    const int64_t rows = m1 - chunk < kChunkRows ? m1 - chunk : kChunkRows;
    const Tiling tiling(rows, halves);
    if (p.pieces) gather_pieces(p, offsets, rows, cursor, gathered);
    int64_t m = chunk;
    for (int64_t i = 0; i < tiling.count; ++i) {
      const uint8_t** block = pointers + i * kMaxRows * p.taps;
      const bool bases = !p.pieces && p.conv && row_bases(p, inside, tiling.rows(i), cursor, block);
      // As row_pointers, but without its call and loop over taps: 12544x16x32 45 -> 40 us on Zen 5.
      if (!p.conv && p.taps == 1)
        for (int r = 0; r < tiling.rows(i); ++r) block[r] = p.a + (m + r) * p.a_stride;
      else if (p.pieces)
        gathered_pointers(p, gathered + (m - chunk) * stride, stride, tiling.rows(i), block);
      else if (!bases)
        row_pointers(p, inside, offsets, m, tiling.rows(i), cursor, block);
      tiles[i] = {tiling.rows(i), m, nullptr, block, p.taps, nullptr, bases ? offsets : nullptr};
      m += tiling.rows(i);
    }
    multiply_tiles<V>(p, tiles, tiling.count, groups, panel0, panel1);
  }
}

}  // namespace
}  // namespace zeropoint
