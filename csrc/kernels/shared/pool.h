// Pooling on NHWC bytes, in blocks of channels that stay in registers. Rows are (image, output row) pairs.
#pragma once
#include "epilogue.h"

namespace zeropoint {
namespace {

// The taps of a window that lie inside the image.
struct Window {
  const uint8_t* first;
  int64_t rows, columns;  // of taps; 0: none is inside
};

// The taps [from, to) of a kernel whose first one is at `start` that lie in [0, in).
struct TapRange {
  int64_t from, to;
  TapRange(int64_t start, int64_t taps, int64_t step, int64_t in)
      : from(start < 0 ? (step - 1 - start) / step : 0), to(start < in ? (in - 1 - start) / step + 1 : 0) {
    if (to > taps) to = taps;
    if (to < from) to = from;
  }
};

inline Window window_at(const PoolParams& p, int64_t row, int64_t ow) {
  const ConvGeometry& g = p.conv;
  const int64_t h = row % g.out_h * g.stride_h - g.pad_h, w = ow * g.stride_w - g.pad_w;
  const TapRange rows(h, p.kernel_h, g.dilation_h, g.in_h), columns(w, g.kernel_w, g.dilation_w, g.in_w);
  return {p.x + row / g.out_h * g.image_stride + (h + rows.from * g.dilation_h) * g.row_stride +
              (w + columns.from * g.dilation_w) * p.channels,
          rows.to - rows.from, columns.to - columns.from};
}

// Calls f(first channel, count) for blocks of 4 * V::kLanes channels; where there are more of them than one block's,
// the last one overlaps the one before, as part blocks are slower.
template <class V, class F>
inline void for_channel_blocks(int64_t channels, const F& f) {
  constexpr int64_t kBlock = 4 * V::kLanes;
  for (int64_t c = 0; c < channels; c += kBlock) {
    if (channels < kBlock)
      f(c, static_cast<int>(channels));
    else
      f(c + kBlock < channels ? c : channels - kBlock, static_cast<int>(kBlock));
  }
}

template <class V>
void max_pool(const PoolParams& p, int64_t row0, int64_t row1) {
  const ConvGeometry& g = p.conv;
  const int64_t next_row = g.dilation_h * g.row_stride, next_column = g.dilation_w * p.channels;
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t ow = 0; ow < g.out_w; ++ow) {
      const Window window = window_at(p, row, ow);
      uint8_t* out = p.out + (row * g.out_w + ow) * p.channels;
      for_channel_blocks<V>(p.channels, [&](int64_t c, int count) {
        typename V::U8 largest = {};
        const uint8_t* line = window.first + c;
        for (int64_t h = 0; h < window.rows; ++h, line += next_row)
          for (int64_t w = 0; w < window.columns; ++w)
            largest = V::max_u8(largest, V::flip(V::template load_u8<4>(line + w * next_column, count), p.in_xor));
        V::template store_u8<4>(out + c, V::flip(largest, p.in_xor), count);
      });
    }
}

// Adds the bytes of `pixels` pixels, `step` apart, to the sums of their channels in panel order (epilogue.h): four
// pixels are interleaved, and one dot product with ones adds them.
template <class V>
inline void add_pixels(const uint8_t* x, int64_t pixels, int64_t step, int count, uint8_t flip,
                       typename V::DwWeight ones, typename V::I32 (&sums)[4]) {
  const auto add = [&](const typename V::U8(&taps)[4]) {
    typename V::I32 mixed[4];
    V::interleave(taps, mixed);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] = V::dot_mixed(sums[v], mixed[v], ones);
  };
  const auto at = [&](int64_t i) { return V::flip(V::template load_u8<4>(x + i * step, count), flip); };
  int64_t i = 0;
  for (; i + 4 <= pixels; i += 4) add({at(i), at(i + 1), at(i + 2), at(i + 3)});
  if (i < pixels)
    add({at(i), i + 1 < pixels ? at(i + 1) : typename V::U8{}, i + 2 < pixels ? at(i + 2) : typename V::U8{},
         typename V::U8{}});
}

// Extent of a window within the image plus its padding, as torch counts it (count_include_pad).
inline int64_t padded_extent(int64_t start, int64_t kernel, int64_t in, int64_t pad) {
  const int64_t end = start + kernel < in + pad ? start + kernel : in + pad;
  return end - start;
}

// float(sum - taps * zero_point) * factor, rounded half to even.
template <class V>
void avg_pool(const PoolParams& p, int64_t row0, int64_t row1) {
  const ConvGeometry& g = p.conv;
  alignas(64) uint8_t one[V::kDwBytes];
  for (uint8_t& byte : one) byte = 1;
  const typename V::DwWeight ones = V::load_dw(one);
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t ow = 0; ow < g.out_w; ++ow) {
      const Window window = window_at(p, row, ow);
      const int64_t taps = window.rows * window.columns;
      int64_t divisor = p.divisor;
      if (!divisor)
        divisor = p.count_include_pad
                      ? padded_extent(row % g.out_h * g.stride_h - g.pad_h, p.kernel_h, g.in_h, g.pad_h) *
                            padded_extent(ow * g.stride_w - g.pad_w, g.kernel_w, g.in_w, g.pad_w)
                      : taps;
      const typename V::F32 factor = V::set_f32(p.factor != 0 ? p.factor : 1.0f / static_cast<float>(divisor));
      const typename V::I32 offset = V::set_i32(static_cast<int32_t>(taps) * p.zero_point);
      uint8_t* out = p.out + (row * g.out_w + ow) * p.channels;
      for_channel_blocks<V>(p.channels, [&](int64_t c, int count) {
        typename V::I32 sums[4] = {};
        for (int64_t h = 0; h < window.rows; ++h)
          add_pixels<V>(window.first + h * g.row_stride + c, window.columns, p.channels, count, p.in_xor, ones, sums);
        typename V::I32 q[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) q[v] = rounded<V, false>(V::mul(V::to_f32(V::sub_i32(sums[v], offset)), factor));
        V::template store_u8<4>(
            out + c, V::flip(V::template narrow<4, false>(q, p.out_zero_point, p.lo, p.hi), p.out_xor), count);
      });
    }
}

}  // namespace
}  // namespace zeropoint
