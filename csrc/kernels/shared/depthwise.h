// Depthwise convolution on NHWC, any kernel, stride and dilation, written once over the vocabulary `V`.
//
// For one output row and one block of channels the kernel first builds a column buffer: for each input
// column it needs, the bytes of up to four kernel rows interleaved per channel, so that one 4-way dot
// product serves four vertical taps. The buffer (a few KB, in L1) is then read by every kernel column
// and every output pixel: the interleaving is paid once per input column instead of once per tap.
//
// Where registers allow, two shapes do better: kernels three columns wide and up to four high keep the columns of their
// window in registers and need no buffer; five or seven columns keep one vector's window and weights there.
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
  return static_cast<size_t>(buffer_columns(p.conv, pixels) * column_bytes<V>(p)) +
         kDepthwisePixels * 16 * V::kLanes;  // and the accumulators of depthwise_window
}

// The four kernel rows of `group` at input rows from h0 on; null outside the image or the kernel.
inline void tap_rows(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t group, int64_t channel,
                     const uint8_t* (&rows)[4]) {
  for (int i = 0; i < 4; ++i) {
    const int64_t kh = group * 4 + i, h = h0 + kh * p.conv.dilation_h;
    rows[i] = kh < p.kernel_h && h >= 0 && h < p.conv.in_h ? image + h * p.conv.row_stride + channel : nullptr;
  }
}

template <class V>
void fill_columns(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t w0, int64_t columns,
                  int64_t channel, int count, uint8_t* buffer) {
  const ConvGeometry& g = p.conv;
  const uint8_t* outside = p.pad_row + channel;
  for (int64_t group = 0; group < row_groups(p); ++group) {
    const uint8_t* rows[4];
    tap_rows(p, image, h0, group, channel, rows);
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

constexpr int64_t kOnlyRow = 0;

template <class V>
inline void store_pixel(const DepthwiseParams& p, typename V::I32 (&acc)[1][4], int64_t pixel, int64_t channel,
                        int count) {
  const int64_t offset = pixel * p.channels + channel;
  const Epilogue& e = p.epilogue;
  if (e.output == Epilogue::Output::kU8) {
    // Of one kind, so that its constants stay in registers over the pixels: 5x5 240@28 96 us, 109 with those of
    // store_u8.
    store_rows<V, 1, 4, false, false>(e, acc, channel, static_cast<uint8_t*>(p.out) + offset, 0, count,
                                      e.residual ? e.residual + pixel * e.residual_stride + channel : nullptr,
                                      &kOnlyRow);
  } else {
    alignas(64) int32_t spilled[4 * V::kLanes];
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) V::store_i32(spilled + v * V::kLanes, acc[0][v]);
    store_general<V, 4>(p.epilogue, spilled, channel, p.out, offset, pixel, channel, count);
  }
}

// Kernels of three columns and one group of rows to bytes, straight from the image. `first` is the index of the first
// pixel. Everything is inlined: a call would spill the window.
template <class V, int Stride>
[[gnu::flatten]] void depthwise_columns(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t w0,
                                        const uint8_t* weight, int64_t first, int64_t pixels, int64_t channel,
                                        int count) {
  const ConvGeometry& g = p.conv;
  const uint8_t* outside = p.pad_row + channel;
  const uint8_t* rows[4];
  tap_rows(p, image, h0, 0, channel, rows);
  int64_t step[4];
  for (int i = 0; i < 4; ++i) {
    step[i] = rows[i] ? p.channels : 0;
    if (!rows[i]) rows[i] = outside;
  }
  typename V::DwWeight held[3][4];
#pragma GCC unroll 8
  for (int t = 0; t < 3; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) held[t][v] = V::load_dw(weight + (t * 4 + v) * V::kDwBytes);
  typename V::I32 window[3][4] = {};
  const auto column = [&](int64_t w, typename V::I32(&mixed)[4]) {
    const bool inside = w >= 0 && w < g.in_w;
    typename V::U8 taps[4];
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i) taps[i] = V::template load_u8<4>(inside ? rows[i] + w * step[i] : outside, count);
    // A fourth row has weights of 0 if the kernel has three: any bytes will do.
    taps[3] = p.kernel_h < 4 ? taps[2] : V::template load_u8<4>(inside ? rows[3] + w * step[3] : outside, count);
    V::interleave(taps, mixed);
  };
  const auto shift = [&] {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      window[0][v] = window[1][v];
      window[1][v] = window[2][v];
    }
  };
  for (int64_t t = 0; t < 3 - Stride; ++t) {
    shift();
    column(w0 + t, window[2]);
  }
  int64_t next = w0 + 3 - Stride;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
#pragma GCC unroll 2
    for (int s = 0; s < Stride; ++s) {
      shift();
      column(next++, window[2]);
    }
    typename V::I32 acc[1][4];
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) {
      acc[0][v] = V::load_i32(p.epilogue.init + channel + v * V::kLanes);
#pragma GCC unroll 4
      for (int t = 0; t < 3; ++t) acc[0][v] = V::dot_mixed(acc[0][v], window[t][v], held[t][v]);
    }
    const Epilogue& e = p.epilogue;
    store_u8<V, 1, 4>(e, acc, channel, static_cast<uint8_t*>(p.out) + (first + pixel) * p.channels + channel, 0, count,
                      nullptr, &kOnlyRow);
  }
}

// `Taps` columns and `Groups` groups of rows from the buffer, one vector of channels after the other.
template <class V, int Taps, int Groups>
void depthwise_window(const DepthwiseParams& p, const uint8_t* buffer, const uint8_t* weight, int64_t first,
                      int64_t pixels, int64_t channel, int count, int32_t* sums) {
  const int64_t bytes = column_bytes<V>(p), stride = p.conv.stride_w;
  for (int v = 0; v < 4; ++v) {
    typename V::DwWeight held[Taps][Groups];
    typename V::DwInput window[Taps][Groups] = {};
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 2
      for (int k = 0; k < Groups; ++k) held[t][k] = V::load_dw(weight + ((t * Groups + k) * 4 + v) * V::kDwBytes);
    const uint8_t* next = buffer + v * V::kDwInputBytes;
    const auto take = [&] {
#pragma GCC unroll 8
      for (int t = 1; t < Taps; ++t)
#pragma GCC unroll 2
        for (int k = 0; k < Groups; ++k) window[t - 1][k] = window[t][k];
#pragma GCC unroll 2
      for (int k = 0; k < Groups; ++k) window[Taps - 1][k] = V::load_dw_input(next + k * 4 * V::kDwInputBytes);
      next += bytes;
    };
    for (int64_t t = 0; t < Taps - stride; ++t) take();
    const typename V::I32 init = V::load_i32(p.epilogue.init + channel + v * V::kLanes);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t s = 0; s < stride; ++s) take();
      // Two chains, for the latency of the dot product.
      typename V::I32 acc[2] = {init, V::set_i32(0)};
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 2
        for (int k = 0; k < Groups; ++k) acc[(t + k) % 2] = V::dot_dw(acc[(t + k) % 2], window[t][k], held[t][k]);
      V::store_i32(sums + (pixel * 4 + v) * V::kLanes, V::add_i32(acc[0], acc[1]));
    }
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    typename V::I32 acc[1][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[0][v] = V::load_i32(sums + (pixel * 4 + v) * V::kLanes);
    store_pixel<V>(p, acc, first + pixel, channel, count);
  }
}

// Any kernel, from the buffer.
template <class V>
void depthwise_pixels(const DepthwiseParams& p, const uint8_t* buffer, const uint8_t* weight, int64_t first,
                      int64_t pixels, int64_t channel, int count) {
  const ConvGeometry& g = p.conv;
  const int64_t bytes = column_bytes<V>(p);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    typename V::I32 acc[1][4];
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) acc[0][v] = V::load_i32(p.epilogue.init + channel + v * V::kLanes);
    const uint8_t *x = buffer + pixel * g.stride_w * bytes, *w = weight;
    for (int64_t repeat = 0; repeat < p.repeats; ++repeat)
      for (int64_t t = 0; t < g.kernel_w; ++t)
        for (int64_t group = 0; group < row_groups(p); ++group, w += 4 * V::kDwBytes) {
          const uint8_t* column = x + t * g.dilation_w * bytes + group * 4 * V::kDwInputBytes;
#pragma GCC unroll 8
          for (int v = 0; v < 4; ++v)
            acc[0][v] =
                V::dot_dw(acc[0][v], V::load_dw_input(column + v * V::kDwInputBytes), V::load_dw(w + v * V::kDwBytes));
        }
    store_pixel<V>(p, acc, first + pixel, channel, count);
  }
}

// One block of `count` channels of one stretch of an output row; `first` is its first output pixel.
template <class V>
void depthwise_block(const DepthwiseParams& p, const uint8_t* image, int64_t oh, int64_t ow, int64_t first,
                     int64_t pixels, int64_t channel, int count, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const int64_t channel_bytes = p.repeats * g.kernel_w * row_groups(p) * V::kDwBytes / V::kLanes;
  const uint8_t* weight = p.weight + channel * channel_bytes;
  const int64_t h0 = oh * g.stride_h - g.pad_h, w0 = ow * g.stride_w - g.pad_w;
  const bool plain = p.repeats == 1 && g.dilation_w == 1 && g.stride_w <= 2;
  if constexpr (V::kDwWindow >= 14) {
    // Other outputs would push the window out of the registers.
    if (plain && g.kernel_w == 3 && row_groups(p) == 1 && p.epilogue.output == Epilogue::Output::kU8 &&
        !p.epilogue.residual) {
      if (g.stride_w == 1)
        depthwise_columns<V, 1>(p, image, h0, w0, weight, first, pixels, channel, count);
      else
        depthwise_columns<V, 2>(p, image, h0, w0, weight, first, pixels, channel, count);
      return;
    }
  }
  const int64_t columns = buffer_columns(g, pixels);
  fill_columns<V>(p, image, h0, w0, columns, channel, count, scratch);
  auto* sums = reinterpret_cast<int32_t*>(scratch + columns * column_bytes<V>(p));
  if (plain && g.kernel_w == 3 && row_groups(p) == 1)
    return depthwise_window<V, 3, 1>(p, scratch, weight, first, pixels, channel, count, sums);
  if constexpr (V::kDwWindow >= 14) {
    if (plain && g.kernel_w == 5 && row_groups(p) == 2)
      return depthwise_window<V, 5, 2>(p, scratch, weight, first, pixels, channel, count, sums);
    if (plain && g.kernel_w == 7 && row_groups(p) == 2)
      return depthwise_window<V, 7, 2>(p, scratch, weight, first, pixels, channel, count, sums);
  }
  depthwise_pixels<V>(p, scratch, weight, first, pixels, channel, count);
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
