// Depthwise convolution on NHWC, any kernel, stride and dilation, written once over the vocabulary `V`.
//
// For one output row and one block of channels the kernel first builds a column buffer: for each input
// column it needs, the bytes of up to four kernel rows interleaved per channel, so that one 4-way dot
// product serves four vertical taps. The buffer (a few KB, in L1) is then read by every kernel column
// and every output pixel: the interleaving is paid once per input column instead of once per tap.
#pragma once
#include "epilogue.h"

namespace zeropoint {
namespace {

constexpr int64_t kDepthwisePixels = 32;  // output pixels per column buffer

inline int64_t row_groups(const DepthwiseParams& p) { return (p.kernel_h + 3) / 4; }

inline int64_t buffer_columns(const ConvGeometry& g, int64_t pixels) {
  return (pixels - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
}

// Bytes of the buffer per input column: four vectors per group of four kernel rows.
template <class V>
inline int64_t column_bytes(const DepthwiseParams& p) {
  return row_groups(p) * 4 * V::kDwInputBytes;
}

template <class V>
size_t depthwise_scratch(const DepthwiseParams& p) {
  const int64_t pixels = p.conv.out_w < kDepthwisePixels ? p.conv.out_w : kDepthwisePixels;
  return static_cast<size_t>(buffer_columns(p.conv, pixels) * column_bytes<V>(p));
}

template <class V>
void fill_columns(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t w0, int64_t columns,
                  int64_t channel, int count, uint8_t* buffer) {
  const ConvGeometry& g = p.conv;
  const uint8_t* outside = p.pad_row + channel;
  for (int64_t group = 0; group < row_groups(p); ++group) {
    const uint8_t* rows[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t kh = group * 4 + i, h = h0 + kh * g.dilation_h;
      rows[i] = kh < p.kernel_h && h >= 0 && h < g.in_h ? image + h * g.row_stride + channel : nullptr;
    }
    uint8_t* out = buffer + group * 4 * V::kDwInputBytes;
    for (int64_t c = 0; c < columns; ++c, out += column_bytes<V>(p)) {
      const int64_t w = w0 + c;
      const bool inside = w >= 0 && w < g.in_w;
      typename V::U8 taps[4];
      for (int i = 0; i < 4; ++i)
        taps[i] = V::template load_u8<4>(inside && rows[i] ? rows[i] + w * p.channels : outside, count);
      typename V::I32 mixed[4];
      V::interleave(taps, mixed);
      for (int v = 0; v < 4; ++v) V::store_dw_input(out + v * V::kDwInputBytes, mixed[v]);
    }
  }
}

// `Taps` kernel columns of one group of rows when known at compile time, 0 for any number. `first` is the
// index of the first output pixel.
template <class V, int Taps>
inline void depthwise_pixels(const DepthwiseParams& p, const uint8_t* buffer, const uint8_t* weight, int64_t first,
                             int64_t pixels, int64_t channel, int count) {
  const ConvGeometry& g = p.conv;
  const int64_t bytes = column_bytes<V>(p);
  constexpr int kHeld = V::kHoldDw && Taps ? Taps : 1;
  typename V::DwWeight held[kHeld][4];
  if constexpr (V::kHoldDw && Taps > 0) {
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 8
      for (int v = 0; v < 4; ++v) held[t][v] = V::load_dw(weight + (t * 4 + v) * V::kDwBytes);
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    typename V::I32 acc[1][4];
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) acc[0][v] = V::load_i32(p.epilogue.init + channel + v * V::kLanes);
    const uint8_t* x = buffer + pixel * g.stride_w * bytes;
    if constexpr (Taps > 0) {
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) {
        const uint8_t* column = x + t * g.dilation_w * bytes;
#pragma GCC unroll 8
        for (int v = 0; v < 4; ++v) {
          const typename V::DwInput in = V::load_dw_input(column + v * V::kDwInputBytes);
          if constexpr (V::kHoldDw)
            acc[0][v] = V::dot_dw(acc[0][v], in, held[t][v]);
          else
            acc[0][v] = V::dot_dw(acc[0][v], in, V::load_dw(weight + (t * 4 + v) * V::kDwBytes));
        }
      }
    } else {
      const uint8_t* w = weight;
      for (int64_t repeat = 0; repeat < p.repeats; ++repeat)
        for (int64_t t = 0; t < g.kernel_w; ++t)
          for (int64_t group = 0; group < row_groups(p); ++group, w += 4 * V::kDwBytes) {
            const uint8_t* column = x + t * g.dilation_w * bytes + group * 4 * V::kDwInputBytes;
#pragma GCC unroll 8
            for (int v = 0; v < 4; ++v)
              acc[0][v] = V::dot_dw(acc[0][v], V::load_dw_input(column + v * V::kDwInputBytes),
                                    V::load_dw(w + v * V::kDwBytes));
          }
    }
    const int64_t offset = (first + pixel) * p.channels + channel;
    if (p.epilogue.output == Epilogue::Output::kU8 && !p.epilogue.residual) {
      store_u8<V, 1, 4>(p.epilogue, acc, channel, static_cast<uint8_t*>(p.out) + offset, 0, count);
    } else {
      alignas(64) int32_t spilled[4 * V::kLanes];
#pragma GCC unroll 8
      for (int v = 0; v < 4; ++v) V::store_i32(spilled + v * V::kLanes, acc[0][v]);
      store_general<V, 4>(p.epilogue, spilled, channel, p.out, offset, first + pixel, channel, count);
    }
  }
}

// One block of `count` channels of one stretch of an output row; `first` is its first output pixel.
template <class V>
void depthwise_block(const DepthwiseParams& p, const uint8_t* image, int64_t oh, int64_t ow, int64_t first,
                     int64_t pixels, int64_t channel, int count, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const int64_t channel_bytes = p.repeats * g.kernel_w * row_groups(p) * V::kDwBytes / V::kLanes;
  const uint8_t* weight = p.weight + channel * channel_bytes;
  fill_columns<V>(p, image, oh * g.stride_h - g.pad_h, ow * g.stride_w - g.pad_w, buffer_columns(g, pixels), channel,
                  count, scratch);
  if (g.kernel_w == 3 && row_groups(p) == 1 && p.repeats == 1)
    depthwise_pixels<V, 3>(p, scratch, weight, first, pixels, channel, count);
  else
    depthwise_pixels<V, 0>(p, scratch, weight, first, pixels, channel, count);
}

// Rows are (image, output row) pairs.
template <class V>
void depthwise(const DepthwiseParams& p, int64_t row0, int64_t row1, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  constexpr int kBlock = 4 * V::kLanes;
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t oh = row % g.out_h;
    const uint8_t* image = p.x + row / g.out_h * g.image_stride;
    for (int64_t ow = 0; ow < g.out_w; ow += kDepthwisePixels) {
      const int64_t pixels = g.out_w - ow < kDepthwisePixels ? g.out_w - ow : kDepthwisePixels;
      const int64_t first = row * g.out_w + ow;
      for (int64_t channel = 0; channel < p.channels; channel += kBlock) {
        const int64_t left = p.channels - channel;
        const int count = left < kBlock ? static_cast<int>(left) : kBlock;
        if (count <= 4 * V::kHalfLanes)
          depthwise_block<typename V::Half>(p, image, oh, ow, first, pixels, channel, count, scratch);
        else
          depthwise_block<V>(p, image, oh, ow, first, pixels, channel, count, scratch);
      }
    }
  }
}

}  // namespace
}  // namespace zeropoint
