// 3x3 convolutions with stride 1 by Winograd's F(2x2, 3x3) (Lavin, Gray: Fast algorithms for convolutional neural
// networks, 2016), in integers: 16 multiplications for four output pixels of a channel instead of 36, of 16 bits. Where
// bytes have no exact product of their own that pays, and it is as exact:
//   input   V = B' d B of 4x4 bytes: sums of four with either sign, -510 to 1020;
//   weights U = (2 G) g (2 G)', four times what the algorithm has, made when they are packed: |U| <= 9 * 256;
//   product M = sum over channels of U * V, at 16 points, each a matrix product [tiles, C] x [C, N] in pairs of terms
//           (multiply_pairs), channels 0 and 1 of a group of four with 2 and 3;
//   output  4 * acc = A' M A. Sums wrap in int32; 4 * acc does not (plan_pack sees to it), so the shift is exact.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

// Tiles that are multiplied together: their V stays in L2, their products with a panel in L1 or near it.
constexpr int kWideRows = 4;        // of a register tile: sums, four vectors of B and two of A are in 16 registers
constexpr int64_t kPointBytes = 8;  // of a tile at one point: a group of four channels
constexpr int64_t kTransformedBytes = 262144, kMostTiles = 12 * kWideRows;

// How a call's tiles are laid out in the scratch.
struct WinogradShape {
  int64_t across, of_image;        // tiles of a row, of an image
  int64_t chunk, channels;         // tiles that are transformed together; kc, rounded up to groups
  int64_t point_bytes, sum_bytes;  // of V, of M at one point

  WinogradShape(const IgemmParams& p, int64_t panel_bytes) {
    const ConvGeometry& g = *p.conv;
    across = ceil_div(g.out_w, kWinogradTile);
    of_image = across * ceil_div(g.out_h, kWinogradTile);
    channels = ceil_div(p.kc, 4) * 4;
    const int64_t fit = kTransformedBytes / (kWinogradPoints * channels * 2);
    chunk = fit < kWideRows ? kWideRows : fit < kMostTiles ? fit / kWideRows * kWideRows : kMostTiles;
    // A line more: points at a distance of 4096 bytes would all be in one set of the cache.
    point_bytes = ceil_div(chunk * channels * 2, 64) * 64 + 64;
    sum_bytes = chunk * panel_bytes + 64;
  }
};

template <class V>
size_t winograd_scratch(const IgemmParams& p) {
  const WinogradShape shape(p, V::kPanelVectors * V::kLanes * 4);
  return static_cast<size_t>(kWinogradPoints * (shape.point_bytes + shape.sum_bytes + shape.chunk * 4) + 64);
}

// V of one tile, a vector of channels after the other; the last one overlaps the one before where channels are no
// multiple of it.
template <class V>
void transform_input(const IgemmParams& p, const uint8_t* const (&pixels)[4][4], int64_t point_bytes, uint8_t* out) {
  const auto row = [&](int first, int second, bool add, int64_t c, typename V::I16(&d)[4])
      __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const typename V::I16 a = V::widen_16(pixels[first][x] + c), b = V::widen_16(pixels[second][x] + c);
      d[x] = add ? V::add_16(a, b) : V::sub_16(a, b);
    }
  };
  for (int64_t next = 0; next < p.kc; next += V::kLanes16) {
    const int64_t c = next + V::kLanes16 <= p.kc ? next : p.kc - V::kLanes16;
    uint8_t* to = out + 2 * c;
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      typename V::I16 d[4];
      if (y == 0) row(0, 2, false, c, d);
      if (y == 1) row(1, 2, true, c, d);
      if (y == 2) row(2, 1, false, c, d);
      if (y == 3) row(1, 3, false, c, d);
      V::store_16(to, V::sub_16(d[0], d[2]));
      V::store_16(to + point_bytes, V::add_16(d[1], d[2]));
      V::store_16(to + 2 * point_bytes, V::sub_16(d[2], d[1]));
      V::store_16(to + 3 * point_bytes, V::sub_16(d[1], d[3]));
      to += 4 * point_bytes;
    }
  }
}

// Input pixels of the tile whose first output pixel is the cursor's. Those past the image's padding belong to no
// output pixel; they only have to be readable.
inline void tile_pixels(const IgemmParams& p, const RowCursor& c, const uint8_t* (&pixels)[4][4]) {
  const ConvGeometry& g = *p.conv;
  const uint8_t *base = first_tap(p, c), *outside = p.pad_row ? p.pad_row : p.a;
  const int64_t h0 = c.oh - g.pad_h, w0 = c.ow - g.pad_w;
  for (int64_t y = 0; y < 4; ++y)
    for (int64_t x = 0; x < 4; ++x) {
      const bool inside = h0 + y >= 0 && h0 + y < g.in_h && w0 + x >= 0 && w0 + x < g.in_w;
      pixels[y][x] = inside ? base + y * g.row_stride + x * p.a_stride : outside;
    }
}

// What pairs of a tile's terms multiply to, at one point.
template <class V>
int32_t tile_squares(const uint8_t* terms, int64_t channels) {
  typename V::I32 sums = V::set_i32(0);
  int64_t c = 0;
  for (; c + V::kLanes16 <= channels; c += V::kLanes16) {
    const typename V::I16 four = V::load_whole(terms + 2 * c);
    sums = V::add_i32(sums, V::multiply_add(four, V::swap_pairs(four)));
  }
  auto sum = static_cast<uint32_t>(V::sum_even(sums));  // each group's is there twice
  for (; c < channels; c += 4) {
    int16_t four[4];
    __builtin_memcpy(four, terms + 2 * c, 8);
    sum += static_cast<uint32_t>(four[0] * four[2]) + static_cast<uint32_t>(four[1] * four[3]);
  }
  return static_cast<int32_t>(sum);
}

// MR tiles, `stride` bytes apart, times a panel, at one point, two terms at once (Winograd: A new algorithm for inner
// product, 1968):
//   a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1.
// What is subtracted is a sum per tile and one per column. Half of the multiplications become additions of 16 bits,
// which more units of a core can do: on Zen 3 a register tile makes 87 instead of 80 products a nanosecond.
template <class V, int MR, int NV>
__attribute__((always_inline)) inline void multiply_pairs(const uint8_t* a, int64_t stride, int64_t groups,
                                                          const uint8_t* b, typename V::I32 (&acc)[MR][NV]) {
  for (int64_t g = 0; g < groups; ++g, a += kPointBytes, b += 2 * NV * V::kBytes) {
    typename V::I16 odd[NV], even[NV];
    prefetch_weights<2 * NV * V::kBytes>(b);
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
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) V::store_i32(sums + (r * NV + v) * V::kLanes, acc[r][v]);
}

// M of MR tiles and one panel at one point. `start` belongs to columns, `squares` to tiles.
template <class V, int MR, int NV>
[[gnu::noinline]] void point_products(const uint8_t* a, int64_t a_stride, int64_t groups, const uint8_t* b,
                                      const int32_t* start, const int32_t* squares, int32_t* out) {
  typename V::I32 acc[MR][NV];
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[r][v] = V::sub_i32(V::load_i32(start + v * V::kLanes), V::set_i32(squares[r]));
  multiply_pairs<V, MR, NV>(a, a_stride, groups, b, acc);
  store_sums<V, MR, NV>(acc, out);
}

template <class V, int NV>
void point_rows(int rows, const uint8_t* a, int64_t a_stride, int64_t groups, const uint8_t* b, const int32_t* start,
                const int32_t* squares, int32_t* out) {
  switch (rows) {
    case 1:
      return point_products<V, 1, NV>(a, a_stride, groups, b, start, squares, out);
    case 2:
      return point_products<V, 2, NV>(a, a_stride, groups, b, start, squares, out);
    case 3:
      return point_products<V, 3, NV>(a, a_stride, groups, b, start, squares, out);
    default:
      return point_products<V, 4, NV>(a, a_stride, groups, b, start, squares, out);
  }
}

// The output pixels of one tile, from its M.
template <class V, int NV>
void transform_output(const IgemmParams& p, const uint8_t* sums, int64_t sum_bytes, const RowCursor& c, int64_t col) {
  const ConvGeometry& g = *p.conv;
  typename V::I32 acc[4][NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    typename V::I32 above[4], below[4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const auto at = [&](int y) {
        return V::load_i32(reinterpret_cast<const int32_t*>(sums + (4 * y + x) * sum_bytes) + v * V::kLanes);
      };
      const typename V::I32 second = at(1), third = at(2);
      above[x] = V::add_i32(at(0), V::add_i32(second, third));
      below[x] = V::sub_i32(V::sub_i32(second, third), at(3));
    }
    const typename V::I32 init = V::load_i32(p.epilogue.init + col + v * V::kLanes);
    const auto left = [&](const typename V::I32(&m)[4]) {
      return V::add_i32(init, V::quarter(V::add_i32(m[0], V::add_i32(m[1], m[2]))));
    };
    const auto right = [&](const typename V::I32(&m)[4]) {
      return V::add_i32(init, V::quarter(V::sub_i32(V::sub_i32(m[1], m[2]), m[3])));
    };
    acc[0][v] = left(above);
    acc[1][v] = right(above);
    acc[2][v] = left(below);
    acc[3][v] = right(below);
  }
  const int64_t m = (c.n * g.out_h + c.oh) * g.out_w + c.ow;
  const int64_t places[4] = {m, m + 1, m + g.out_w, m + g.out_w + 1};
  const bool wide = c.ow + 1 < g.out_w, high = c.oh + 1 < g.out_h;
  if (wide && high && p.epilogue.output == Epilogue::Output::kU8) {
    store_tile<V, 4, NV>(p, {4, m, places, nullptr, 0}, acc, col);
    return;
  }
  for (int i = 0; i < 4; ++i) {
    if ((i % 2 && !wide) || (i / 2 && !high)) continue;
    typename V::I32 one[1][NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) one[0][v] = acc[i][v];
    store_tile<V, 1, NV>(p, {1, places[i], nullptr, nullptr, 0}, one, col);
  }
}

inline RowCursor tile_cursor(const WinogradShape& shape, int64_t tile) {
  const int64_t in_image = tile % shape.of_image;
  return {tile / shape.of_image, 0, in_image / shape.across * kWinogradTile, in_image % shape.across * kWinogradTile};
}

template <class V, int NV>
void winograd_panel(const IgemmParams& p, const WinogradShape& shape, int64_t first, int64_t count, const uint8_t* v,
                    const int32_t* squares, const uint8_t* panel, int64_t col, uint8_t* sums) {
  const int64_t groups = shape.channels / 4, stride = shape.channels * 2, row = NV * V::kBytes;
  const Tiling tiling(count, false, kWideRows);
  for (int point = 0; point < kWinogradPoints; ++point, panel += (1 + 2 * groups) * row, squares += shape.chunk) {
    const uint8_t* a = v + point * shape.point_bytes;
    auto* out = reinterpret_cast<int32_t*>(sums + point * shape.sum_bytes);
    int64_t t = 0;
    for (int64_t i = 0; i < tiling.count; ++i) {
      const int rows = tiling.rows(i);
      point_rows<V, NV>(rows, a + t * stride, stride, groups, panel + row, reinterpret_cast<const int32_t*>(panel),
                        squares + t, out + t * NV * V::kLanes);
      t += rows;
    }
  }
  for (int64_t t = 0; t < count; ++t)
    transform_output<V, NV>(p, sums + t * row, shape.sum_bytes, tile_cursor(shape, first + t), col);
}

// Tiles [tile0, tile1) of 2x2 output pixels, row after row, image after image.
template <class V>
void winograd(const IgemmParams& p, int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  const int64_t panel_cols = V::kPanelVectors * V::kLanes;
  const WinogradShape shape(p, panel_cols * 4);
  const int64_t panel_bytes = kWinogradPoints * (1 + shape.channels / 2) * panel_cols * 4;
  uint8_t* v = aligned(scratch);
  uint8_t* sums = v + kWinogradPoints * shape.point_bytes;
  auto* squares = reinterpret_cast<int32_t*>(sums + kWinogradPoints * shape.sum_bytes);
  const int64_t step = chunk_step(tile1 - tile0, shape.chunk, kWideRows);
  for (int64_t first = tile0; first < tile1; first += step) {
    const int64_t count = tile1 - first < step ? tile1 - first : step;
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* pixels[4][4];
      tile_pixels(p, tile_cursor(shape, first + t), pixels);
      uint8_t* to = v + t * shape.channels * 2;
      transform_input<V>(p, pixels, shape.point_bytes, to);
      for (int point = 0; point < kWinogradPoints; ++point) {
        uint8_t* terms = to + point * shape.point_bytes;
        if (p.kc % 4) __builtin_memset(terms + 2 * p.kc, 0, static_cast<size_t>(2 * (shape.channels - p.kc)));
        squares[point * shape.chunk + t] = tile_squares<V>(terms, shape.channels);
      }
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * panel_cols;
      const uint8_t* b = p.b + panel * panel_bytes;
      if (p.n - col > V::kLanes)
        winograd_panel<V, V::kPanelVectors>(p, shape, first, count, v, squares, b, col, sums);
      else
        winograd_panel<V, 1>(p, shape, first, count, v, squares, b, col, sums);
    }
  }
}

}  // namespace
}  // namespace zeropoint
