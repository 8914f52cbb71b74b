// Implicit GEMM, written once. `V` is an instruction set's vocabulary (simd.h in its folder): the
// vector type, the dot product and the conversions. This file is the register tile (MR x NV vectors,
// unrolled) and the loop nest; the arithmetic after the accumulator is epilogue.h.
//
// Loop order: a chunk of rows, then panels of B, then register tiles. The pointers of a chunk are
// computed once and reused by all panels; a panel of B streams from L1 or L2 for each register tile.
#pragma once
#include "epilogue.h"

namespace zeropoint {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Address of the first byte of A for an output row and tap, or the padding row.
struct RowCursor {
  int64_t n, oh, ow;
};

inline RowCursor cursor_at(const ConvGeometry& g, int64_t m) {
  const int64_t area = g.out_h * g.out_w;
  const int64_t rest = m % area;
  return {m / area, rest / g.out_w, rest % g.out_w};
}

inline void advance(const ConvGeometry& g, RowCursor& c) {
  if (++c.ow == g.out_w) {
    c.ow = 0;
    if (++c.oh == g.out_h) {
      c.oh = 0;
      ++c.n;
    }
  }
}

// Byte offset of each tap from an output pixel's first tap.
inline void tap_offsets(const IgemmParams& p, int64_t* offsets) {
  for (int64_t t = 0; t < p.taps; ++t) {
    const int64_t tap = t % p.unique_taps;
    offsets[t] = p.conv ? tap / p.conv->kernel_w * p.conv->dilation_h * p.conv->row_stride +
                              tap % p.conv->kernel_w * p.conv->dilation_w * p.a_stride
                        : 0;
  }
}

// Fills pointers[tap * kMaxRows + r] for the `rows` output rows from the cursor on, and moves it past them.
inline void row_pointers(const IgemmParams& p, const int64_t* offsets, int64_t m, int rows, RowCursor& c,
                         const uint8_t** pointers) {
  if (!p.conv) {
    for (int r = 0; r < rows; ++r)
      for (int64_t t = 0; t < p.taps; ++t) pointers[t * kMaxRows + r] = p.a + (m + r) * p.a_stride;
    return;
  }
  const ConvGeometry& g = *p.conv;
  if (g.pad_h == 0 && g.pad_w == 0) {  // every tap is inside
    const auto start = [&] {
      return p.a + c.n * g.image_stride + c.oh * g.stride_h * g.row_stride + c.ow * g.stride_w * p.a_stride;
    };
    const uint8_t* base = start();
    const int64_t step = g.stride_w * p.a_stride;
    for (int r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < p.taps; ++t) pointers[t * kMaxRows + r] = base + offsets[t];
      base += step;
      advance(g, c);
      if (c.ow == 0) base = start();
    }
    return;
  }
  const int64_t kernel_h = p.unique_taps / g.kernel_w;
  const int64_t last_h = g.in_h - (kernel_h - 1) * g.dilation_h, last_w = g.in_w - (g.kernel_w - 1) * g.dilation_w;
  for (int r = 0; r < rows; ++r, advance(g, c)) {
    const int64_t h0 = c.oh * g.stride_h - g.pad_h, w0 = c.ow * g.stride_w - g.pad_w;
    const uint8_t* base = p.a + c.n * g.image_stride + h0 * g.row_stride + w0 * p.a_stride;
    const uint8_t** dst = pointers + r;
    if (h0 >= 0 && h0 < last_h && w0 >= 0 && w0 < last_w) {
      for (int64_t t = 0; t < p.taps; ++t) dst[t * kMaxRows] = base + offsets[t];
      continue;
    }
    for (int64_t t = 0; t < p.taps; ++t) {
      const int64_t tap = t % p.unique_taps;
      const int64_t h = h0 + tap / g.kernel_w * g.dilation_h, w = w0 + tap % g.kernel_w * g.dilation_w;
      dst[t * kMaxRows] = h >= 0 && h < g.in_h && w >= 0 && w < g.in_w ? base + offsets[t] : p.pad_row;
    }
  }
}

// Splits `rows` rows into the fewest tiles of at most kMaxRows, all of about the same height.
struct Tiling {
  int64_t count, tall;  // `tall` tiles of base + 1 rows come first
  int base;
  explicit Tiling(int64_t rows)
      : count(ceil_div(rows, kMaxRows)), tall(rows % count), base(static_cast<int>(rows / count)) {}
  int rows(int64_t tile) const { return base + (tile < tall ? 1 : 0); }
};

template <class V, int MR, int NV>
void tile(const IgemmParams& p, const uint8_t* const* pointers, int64_t taps, int64_t groups, const uint8_t* b,
          int64_t m, int64_t col) {
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
  for (int64_t t = 0; t < taps; ++t) {
    const uint8_t* a[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) a[r] = pointers[t * kMaxRows + r];
    for (int64_t g = 0; g < groups; ++g) {
      typename V::I32 bv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) bv[v] = V::load_i32(reinterpret_cast<const int32_t*>(b) + v * V::kLanes);
      b += NV * V::kLanes * 4;
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const typename V::I32 av = V::broadcast_a(a[r] + 4 * g);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = V::dot(acc[r][v], av, bv[v]);
      }
    }
  }
  const int64_t left = p.n - col;
  const int cols = left < NV * V::kLanes ? static_cast<int>(left) : NV * V::kLanes;
  const Epilogue& e = p.epilogue;
  if (e.output == Epilogue::Output::kU8) {
    store_u8<V, MR, NV>(e, acc, slot, static_cast<uint8_t*>(p.out) + m * p.out_stride + col, p.out_stride, cols,
                        e.residual ? e.residual + m * e.residual_stride + col : nullptr);
    return;
  }
  if constexpr (V::kOrders && NV == 4) {
    if (cols == 4 * V::kLanes && e.output != Epilogue::Output::kU8) {
      store_ordered<V, MR>(e, acc, p.out, m * p.out_stride + col, p.out_stride, m, col);
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

template <class V, int NV>
void tile_rows(int rows, const IgemmParams& p, const uint8_t* const* pointers, int64_t taps, int64_t groups,
               const uint8_t* b, int64_t m, int64_t col) {
  switch (rows) {
    case 1:
      return tile<V, 1, NV>(p, pointers, taps, groups, b, m, col);
    case 2:
      return tile<V, 2, NV>(p, pointers, taps, groups, b, m, col);
    case 3:
      return tile<V, 3, NV>(p, pointers, taps, groups, b, m, col);
    case 4:
      return tile<V, 4, NV>(p, pointers, taps, groups, b, m, col);
    case 5:
      return tile<V, 5, NV>(p, pointers, taps, groups, b, m, col);
    default:
      return tile<V, 6, NV>(p, pointers, taps, groups, b, m, col);
  }
}

template <class V>
void tile_panel(int vectors, int rows, const IgemmParams& p, const uint8_t* const* pointers, int64_t taps,
                int64_t groups, const uint8_t* b, int64_t m, int64_t col) {
  if constexpr (V::kPanelVectors >= 4) {
    if (vectors == 4) return tile_rows<V, 4>(rows, p, pointers, taps, groups, b, m, col);
    if (vectors == 3) return tile_rows<V, 3>(rows, p, pointers, taps, groups, b, m, col);
  }
  if (vectors == 2) return tile_rows<V, 2>(rows, p, pointers, taps, groups, b, m, col);
  return tile_rows<V, 1>(rows, p, pointers, taps, groups, b, m, col);
}

constexpr int64_t kChunkTiles = 8;
constexpr int64_t kChunkRows = kChunkTiles * kMaxRows;

template <class V>
size_t igemm_scratch(const IgemmParams& p) {
  size_t bytes = static_cast<size_t>((kChunkRows + 1) * p.taps) * sizeof(void*);
  if constexpr (V::kWidenA) bytes += static_cast<size_t>(kChunkRows * p.unique_taps * ceil_div(p.kc, 2)) * 4 + 64;
  return bytes;
}

template <class V>
void igemm(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  const int64_t groups = ceil_div(p.kc, V::kWidenA ? 2 : 4);
  const int64_t panel_cols = V::kPanelVectors * V::kLanes;
  const int64_t panel_bytes = p.taps * groups * panel_cols * 4;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* pointers = reinterpret_cast<const uint8_t**>(scratch + p.taps * sizeof(int64_t));
  tap_offsets(p, offsets);
  RowCursor cursor = p.conv ? cursor_at(*p.conv, m0) : RowCursor{};
  for (int64_t chunk = m0; chunk < m1; chunk += kChunkRows) {
    const int64_t rows = m1 - chunk < kChunkRows ? m1 - chunk : kChunkRows;
    const Tiling tiling(rows);
    int64_t m = chunk;
    for (int64_t i = 0; i < tiling.count; ++i) {
      const uint8_t** block = pointers + i * kMaxRows * p.taps;
      row_pointers(p, offsets, m, tiling.rows(i), cursor, block);
      if constexpr (V::kWidenA) {
        // The 16-bit copies of each row's taps, side by side; repeated taps share one copy.
        auto* wide = reinterpret_cast<int16_t*>(scratch + (kChunkRows + 1) * p.taps * sizeof(void*));
        for (int r = 0; r < tiling.rows(i); ++r) {
          int16_t* row = wide + (m - chunk + r) * p.unique_taps * groups * 2;
          for (int64_t t = 0; t < p.unique_taps; ++t, row += groups * 2) {
            V::widen(block[t * kMaxRows + r], p.kc, row);
            if (p.kc & 1) row[p.kc] = 0;
            block[t * kMaxRows + r] = reinterpret_cast<const uint8_t*>(row);
          }
          for (int64_t t = p.unique_taps; t < p.taps; ++t)
            block[t * kMaxRows + r] = block[(t - p.unique_taps) * kMaxRows + r];
        }
      }
      m += tiling.rows(i);
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols;
      const int64_t left = p.n - col;
      const int vectors = left >= panel_cols ? V::kPanelVectors : static_cast<int>(ceil_div(left, V::kLanes));
      m = chunk;
      for (int64_t i = 0; i < tiling.count; ++i) {
        tile_panel<V>(vectors, tiling.rows(i), p, pointers + i * kMaxRows * p.taps, p.taps, groups,
                      p.b + panel * panel_bytes, m, col);
        m += tiling.rows(i);
      }
    }
  }
}

}  // namespace
}  // namespace zeropoint
