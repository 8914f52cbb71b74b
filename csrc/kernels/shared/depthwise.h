// Depthwise convolution on NHWC, any kernel, stride and dilation, written once over the vocabulary `V`.
//
// For one block of channels and a stretch of output pixels the kernel first builds a column buffer: for each input
// column it needs, the bytes of up to four input rows interleaved per channel, so that one 4-way dot product serves
// four vertical taps. The buffer (a few KB, in L1) is then read by every kernel column and every output pixel.
//
// A kernel whose height is no multiple of four leaves places of its last four rows free. They serve the output rows
// below: those read the same buffer with weights that are moved down by their distance. So two rows of a 3x3 kernel,
// four of a 5x5 one share the interleaving.
#pragma once
#include <type_traits>

#include "epilogue.h"

namespace zeropoint {
namespace {

// Pixels whose sums are in registers at a time; maps of networks for 224 pixels are 7 to 112 wide.
inline int64_t depthwise_block_pixels(const ConvGeometry& g) { return g.out_w % 7 == 0 ? 7 : 8; }

inline int64_t row_groups(const DepthwiseParams& p) { return (p.kernel_h + 3) / 4; }

inline int64_t buffer_columns(const ConvGeometry& g, int64_t pixels) {
  return (pixels - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
}

// Which columns of a buffer that begins at the input's column w0 are inside the image: those before `last`, from
// `first`.
struct InsideColumns {
  int64_t first, last;
  InsideColumns(const ConvGeometry& g, int64_t w0, int64_t count)
      : first(w0 < 0 ? (-w0 < count ? -w0 : count) : 0),
        last(g.in_w - w0 < count ? (g.in_w - w0 > first ? g.in_w - w0 : first) : count) {}
};

// Bytes of the buffer per input column: four vectors per group of four input rows. Those of a group lie column after
// column.
template <class V>
inline int64_t column_bytes(const DepthwiseParams& p) {
  return row_groups(p) * 4 * V::kDwInputBytes;
}

// Output pixels per column buffer, whole blocks of them: such that buffer and sums stay in L1.
template <class V>
inline int64_t depthwise_stretch(const DepthwiseParams& p) {
  const int64_t block = depthwise_block_pixels(p.conv), most = (p.conv.out_w + block - 1) / block * block;
  int64_t pixels = 4 * block;
  while (pixels > block && buffer_columns(p.conv, pixels) * column_bytes<V>(p) > 16384) pixels -= block;
  return pixels < most ? pixels : most;
}

// Output rows that share a column buffer.
template <class V>
inline int64_t rows_together(const DepthwiseParams& p) {
  if (p.repeats > 1 || p.conv.dilation_h != 1) return 1;
  return (4 * row_groups(p) - p.kernel_h) / p.conv.stride_h + 1;
}

template <class V>
inline int64_t weight_bytes(const DepthwiseParams& p) {
  return p.repeats * p.conv.kernel_w * row_groups(p) * 4 * V::kDwBytes;
}

template <class V>
size_t depthwise_scratch(const DepthwiseParams& p) {
  const int64_t pixels = depthwise_stretch<V>(p);
  return static_cast<size_t>(buffer_columns(p.conv, pixels) * column_bytes<V>(p) + pixels * 16 * V::kLanes +
                             weight_bytes<V>(p));
}

// The input rows from h0 on that a group of the buffer has; null outside the image or the kernels.
inline void tap_rows(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t group, int64_t kernel_rows,
                     int64_t channel, const uint8_t* (&rows)[4]) {
  for (int i = 0; i < 4; ++i) {
    const int64_t kh = group * 4 + i, h = h0 + kh * p.conv.dilation_h;
    rows[i] = kh < kernel_rows && h >= 0 && h < p.conv.in_h ? image + h * p.conv.row_stride + channel : nullptr;
  }
}

// `kernel_rows`: how many input rows the output rows that share the buffer see.
template <class V, bool Whole>
void fill_columns(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t kernel_rows, int64_t w0,
                  int64_t columns, int64_t channel, int count, uint8_t* buffer) {
  if (Whole && count != 4 * V::kLanes) __builtin_unreachable();
  const uint8_t* outside = p.pad_row + channel;
  const InsideColumns inside(p.conv, w0, columns);
  for (int64_t group = 0; group < row_groups(p); ++group) {
    const uint8_t* rows[4];
    tap_rows(p, image, h0, group, kernel_rows, channel, rows);
    uint8_t* out = buffer + group * columns * 4 * V::kDwInputBytes;
    const auto put = [&](const uint8_t*(&from)[4], int64_t c) __attribute__((always_inline)) {
      typename V::U8 taps[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) taps[i] = V::template load_u8<4>(from[i], count);
      typename V::I32 mixed[4];
      V::interleave(taps, mixed);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) V::store_dw_input(out + (4 * c + v) * V::kDwInputBytes, mixed[v]);
    };
    const uint8_t *nowhere[4] = {outside, outside, outside, outside}, *next[4];
    int64_t step[4];
    for (int i = 0; i < 4; ++i) {
      step[i] = rows[i] ? p.channels : 0;
      next[i] = rows[i] ? rows[i] + (w0 + inside.first) * p.channels : outside;
    }
    for (int64_t c = 0; c < inside.first; ++c) put(nowhere, c);
    for (int64_t c = inside.first; c < inside.last; ++c) {
      put(next, c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) next[i] += step[i];
    }
    for (int64_t c = inside.last; c < columns; ++c) put(nowhere, c);
  }
}

// Weights of the output row `rows` input rows (1 to 3) below the buffer's first one: each lane's bytes, of all groups
// in sequence, move up by as many.
template <class V>
void move_down(const DepthwiseParams& p, const uint8_t* weight, int64_t rows, uint8_t* out) {
  const int64_t groups = row_groups(p), words = V::kDwBytes;  // four vectors' lanes
  for (int64_t t = 0; t < p.conv.kernel_w; ++t) {
    for (int64_t k = groups - 1; k >= 0; --k) {
      const uint8_t* from = weight + (t * groups + k) * 4 * V::kDwBytes;
      uint8_t* to = out + (t * groups + k) * 4 * V::kDwBytes;
      for (int64_t i = 0; i < words; ++i) {
        uint32_t low = 0, high;
        __builtin_memcpy(&high, from + 4 * i, 4);
        if (k > 0) __builtin_memcpy(&low, from - 4 * V::kDwBytes + 4 * i, 4);
        high = high << 8 * rows | low >> (32 - 8 * rows);
        __builtin_memcpy(to + 4 * i, &high, 4);
      }
    }
  }
}

// A vector of sums, scaled already where they become bytes: the dot products leave those units of the core free.
template <class V>
inline void keep_sums(int32_t* to, typename V::I32 acc, bool scales, typename V::F32 mult, typename V::F32 bias) {
  if (scales)
    V::store_f32(reinterpret_cast<float*>(to), V::add(V::mul(V::to_f32(acc), mult), bias));
  else
    V::store_i32(to, acc);
}

// `Taps` columns and `Groups` groups of rows from the buffer, one vector of channels after the other: weights and the
// sums of `Pixels` neighbours are in registers, each input is loaded once for all of them.
template <class V, int Taps, int Groups, int Stride, int Pixels>
void depthwise_taps(const DepthwiseParams& p, const uint8_t* buffer, int64_t word_bytes, const uint8_t* weight,
                    int64_t pixels, int64_t channel, int32_t* sums) {
  constexpr int64_t kColumn = 4 * V::kDwInputBytes;
  const bool to_bytes = p.epilogue.output == Epilogue::Output::kU8;
  for (int v = 0; v < 4; ++v) {
    typename V::DwWeight held[Taps][Groups];
#pragma GCC unroll 8
    for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 2
      for (int k = 0; k < Groups; ++k) held[t][k] = V::load_dw(weight + ((t * Groups + k) * 4 + v) * V::kDwBytes);
    const int64_t slot = channel + v * V::kLanes;
    const typename V::I32 init = V::load_i32(p.epilogue.init + slot);
    const typename V::F32 mult = V::load_f32(p.epilogue.mult + slot), bias = V::load_f32(p.epilogue.bias + slot);
    for (int64_t first = 0; first < pixels; first += Pixels) {
      const uint8_t* x = buffer + first * Stride * kColumn + v * V::kDwInputBytes;
      typename V::I32 acc[Pixels];
#pragma GCC unroll 8
      for (int i = 0; i < Pixels; ++i) acc[i] = init;
#pragma GCC unroll 32
      for (int c = 0; c < (Pixels - 1) * Stride + Taps; ++c)
#pragma GCC unroll 2
        for (int k = 0; k < Groups; ++k) {
          const typename V::DwInput in = V::load_dw_input(x + c * kColumn + k * word_bytes);
#pragma GCC unroll 8
          for (int i = 0; i < Pixels; ++i) {
            const int t = c - i * Stride;
            if (t >= 0 && t < Taps) acc[i] = V::dot_dw(acc[i], in, held[t][k]);
          }
        }
#pragma GCC unroll 8
      for (int i = 0; i < Pixels; ++i)
        keep_sums<V>(sums + ((first + i) * 4 + v) * V::kLanes, acc[i], to_bytes, mult, bias);
    }
  }
}

// What lane_sums reads and writes: bytes from a word of the buffer to the next; int8 terms of a weight; words of a
// kernel's column; vectors of the panel whose weights and sums these are one of; whether the sums are scaled.
struct LaneSums {
  int64_t word_bytes, repeats, words;
  int vectors;
  bool scales;
};

// Any kernel, one vector of channels, whole blocks of pixels. The buffer's columns are Apart vectors from each other.
template <class V, int Apart, int Stride, int Pixels>
void lane_sums_block(const ConvGeometry& g, const Epilogue& e, const LaneSums& layout, const uint8_t* buffer,
                     const uint8_t* weight, int64_t pixels, int64_t slot, int32_t* sums) {
  constexpr int64_t kColumn = Apart * V::kDwInputBytes;
  const int64_t stride = Stride ? Stride : g.stride_w;
  const typename V::I32 init = V::load_i32(e.init + slot);
  const typename V::F32 mult = V::load_f32(e.mult + slot), bias = V::load_f32(e.bias + slot);
  for (int64_t first = 0; first < pixels; first += Pixels) {
    typename V::I32 acc[Pixels];
#pragma GCC unroll 8
    for (int i = 0; i < Pixels; ++i) acc[i] = init;
    const uint8_t* w = weight;
    for (int64_t repeat = 0; repeat < layout.repeats; ++repeat)
      for (int64_t t = 0; t < g.kernel_w; ++t) {
        const uint8_t* x = buffer + (first * stride + t * g.dilation_w) * kColumn;
        for (int64_t k = 0; k < layout.words; ++k, x += layout.word_bytes, w += layout.vectors * V::kDwBytes) {
          const typename V::DwWeight held = V::load_dw(w);
#pragma GCC unroll 8
          for (int i = 0; i < Pixels; ++i) acc[i] = V::dot_dw(acc[i], V::load_dw_input(x + i * stride * kColumn), held);
        }
      }
#pragma GCC unroll 8
    for (int i = 0; i < Pixels; ++i)
      keep_sums<V>(sums + (first + i) * layout.vectors * V::kLanes, acc[i], layout.scales, mult, bias);
  }
}

template <class V, int Apart>
void lane_sums(const ConvGeometry& g, const Epilogue& e, const LaneSums& layout, const uint8_t* buffer,
               const uint8_t* weight, int64_t pixels, int64_t slot, int32_t* sums) {
  const auto blocks = [&](auto size) {
    constexpr int kPixels = decltype(size)::value;
    if (g.stride_w == 1) return lane_sums_block<V, Apart, 1, kPixels>(g, e, layout, buffer, weight, pixels, slot, sums);
    if (g.stride_w == 2) return lane_sums_block<V, Apart, 2, kPixels>(g, e, layout, buffer, weight, pixels, slot, sums);
    lane_sums_block<V, Apart, 0, kPixels>(g, e, layout, buffer, weight, pixels, slot, sums);
  };
  if (depthwise_block_pixels(g) == 7)
    blocks(std::integral_constant<int, 7>{});
  else
    blocks(std::integral_constant<int, 8>{});
}

template <class V, int Taps, int Groups>
void depthwise_kernel(const DepthwiseParams& p, const uint8_t* buffer, int64_t word_bytes, const uint8_t* weight,
                      int64_t pixels, int64_t channel, int32_t* sums) {
  const auto blocks = [&](auto stride, auto size) {
    depthwise_taps<V, Taps, Groups, decltype(stride)::value, decltype(size)::value>(p, buffer, word_bytes, weight,
                                                                                    pixels, channel, sums);
  };
  const auto with = [&](auto stride) {
    if (depthwise_block_pixels(p.conv) == 7)
      blocks(stride, std::integral_constant<int, 7>{});
    else
      blocks(stride, std::integral_constant<int, 8>{});
  };
  if (p.conv.stride_w == 1)
    with(std::integral_constant<int, 1>{});
  else
    with(std::integral_constant<int, 2>{});
}

// The sums of a stretch of an output row; of those past `pixels`, up to a whole block, nothing is made.
template <class V>
void depthwise_sums(const DepthwiseParams& p, const uint8_t* buffer, int64_t columns, const uint8_t* weight,
                    int64_t pixels, int64_t channel, int32_t* sums) {
  const ConvGeometry& g = p.conv;
  const int64_t word_bytes = columns * 4 * V::kDwInputBytes;
  if (p.repeats == 1 && g.dilation_w == 1 && g.stride_w <= 2) {
    if constexpr (V::kDwTaps >= 3)
      if (g.kernel_w == 3 && row_groups(p) == 1)
        return depthwise_kernel<V, 3, 1>(p, buffer, word_bytes, weight, pixels, channel, sums);
    if constexpr (V::kDwTaps >= 14) {
      if (g.kernel_w == 5 && row_groups(p) == 2)
        return depthwise_kernel<V, 5, 2>(p, buffer, word_bytes, weight, pixels, channel, sums);
      if (g.kernel_w == 7 && row_groups(p) == 2)
        return depthwise_kernel<V, 7, 2>(p, buffer, word_bytes, weight, pixels, channel, sums);
    }
  }
  const LaneSums layout = {word_bytes, p.repeats, row_groups(p), 4, p.epilogue.output == Epilogue::Output::kU8};
  for (int v = 0; v < 4; ++v)
    lane_sums<V, 4>(g, p.epilogue, layout, buffer + v * V::kDwInputBytes, weight + v * V::kDwBytes, pixels,
                    channel + v * V::kLanes, sums + v * V::kLanes);
}

template <class V, int NV, bool Bounded, bool Plain>
void store_bytes(const Epilogue& e, const int32_t* sums, int64_t pixels, uint8_t* out, int64_t channels, int count,
                 const uint8_t* residual) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, sums += NV * V::kLanes, out += channels) {
    typename V::F32 x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = V::load_f32(reinterpret_cast<const float*>(sums) + v * V::kLanes);
    store_scaled<V, NV, Bounded, Plain>(e, x, out, count, residual);
    if (residual) residual += e.residual_stride;
  }
}

// From sums to the output of `channels`; `first` is the first one's pixel.
template <class V, int NV>
void store_pixels(const Epilogue& e, void* to, int64_t channels, const int32_t* sums, int64_t first, int64_t pixels,
                  int64_t channel, int count) {
  const int64_t offset = first * channels + channel;
  if (e.output != Epilogue::Output::kU8) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      store_general<V, NV>(e, sums + pixel * NV * V::kLanes, channel, to, offset + pixel * channels, first + pixel,
                           channel, count);
    return;
  }
  uint8_t* out = static_cast<uint8_t*>(to) + offset;
  const uint8_t* residual = e.residual ? e.residual + first * e.residual_stride + channel : nullptr;
  with_kind(e, [&](auto bounded, auto plain) {
    store_bytes<V, NV, decltype(bounded)::value, decltype(plain)::value>(e, sums, pixels, out, channels, count,
                                                                         residual);
  });
}

// Kernels of three columns and one group of rows to bytes, straight from the image: the window of interleaved columns
// is in registers, and moves through them by unrolling. `Whole`: count is a whole block's. Everything is inlined: a
// call would spill the window.
template <class V, int Stride, int Rows, bool Whole, bool Plain>
[[gnu::flatten]] void depthwise_columns(const DepthwiseParams& p, const uint8_t* image, int64_t h0, int64_t w0,
                                        const uint8_t* weight, const uint8_t* moved, int64_t first, int64_t pixels,
                                        int64_t channel, int count) {
  if (Whole && count != 4 * V::kLanes) __builtin_unreachable();
  const ConvGeometry& g = p.conv;
  const Epilogue& e = p.epilogue;
  const uint8_t* outside = p.pad_row + channel;
  const uint8_t *rows[4], *next[4];
  tap_rows(p, image, h0, 0, (Rows - 1) * g.stride_h + p.kernel_h, channel, rows);
  int64_t step[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    step[i] = rows[i] ? p.channels : 0;
    next[i] = rows[i] ? rows[i] + w0 * p.channels : outside;
  }
  // Weights of one row stay in registers, those of two are read at every pixel.
  typename V::DwWeight held[3][4];
#pragma GCC unroll 4
  for (int t = 0; t < 3; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) held[t][v] = V::load_dw(weight + (t * 4 + v) * V::kDwBytes);
  typename V::I32 window[3][4];
  int64_t w = w0;
  const auto column = [&](typename V::I32(&mixed)[4]) __attribute__((always_inline)) {
    const bool inside = static_cast<uint64_t>(w) < static_cast<uint64_t>(g.in_w);
    typename V::U8 taps[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      taps[i] = V::template load_u8<4>(inside ? next[i] : outside, count);
      next[i] += step[i];
    }
    V::interleave(taps, mixed);
    ++w;
  };
  const int64_t places[2] = {0, g.out_w};
  uint8_t* out = static_cast<uint8_t*>(p.out) + first * p.channels + channel;
  const auto pixel = [&](auto number) __attribute__((always_inline)) {
    constexpr int kFirst = decltype(number)::value;  // where the window begins
#pragma GCC unroll 2
    for (int s = 0; s < Stride; ++s) column(window[(kFirst + 3 - Stride + s) % 3]);
    typename V::I32 acc[Rows][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const typename V::I32 init = V::load_i32(e.init + channel + v * V::kLanes);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) acc[r][v] = init;
    }
#pragma GCC unroll 4
    for (int t = 0; t < 3; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) {
          const auto read = [&] { return V::load_dw((r ? moved : weight) + (t * 4 + v) * V::kDwBytes); };
          acc[r][v] = V::dot_mixed(acc[r][v], window[(kFirst + t) % 3][v], Rows == 1 ? held[t][v] : read());
        }
    store_rows<V, Rows, 4, true, Plain>(e, acc, channel, out, p.channels, count, nullptr, places);
    out += p.channels;
  };
#pragma GCC unroll 2
  for (int t = 0; t < 3 - Stride; ++t) column(window[t]);
  // After a pixel the window begins Stride registers later.
  for (;;) {
    pixel(std::integral_constant<int, 0>{});
    if (--pixels == 0) break;
    pixel(std::integral_constant<int, Stride % 3>{});
    if (--pixels == 0) break;
    pixel(std::integral_constant<int, 2 * Stride % 3>{});
    if (--pixels == 0) break;
  }
}

// Of part blocks all are taken as if they had a zero point and bounds of their own.
template <class V, int Stride, int Rows, bool Whole, class... Args>
void columns_kind(const DepthwiseParams& p, const Args&... args) {
  if constexpr (Whole)
    if (p.epilogue.plain && !p.epilogue.table) return depthwise_columns<V, Stride, Rows, true, true>(p, args...);
  depthwise_columns<V, Stride, Rows, Whole, false>(p, args...);
}

template <class V, bool Whole, class... Args>
void columns_shape(const DepthwiseParams& p, int64_t rows, const Args&... args) {
  if (rows == 2) return columns_kind<V, 1, 2, Whole>(p, args...);
  if (p.conv.stride_w == 1) return columns_kind<V, 1, 1, Whole>(p, args...);
  columns_kind<V, 2, 1, Whole>(p, args...);
}

// What depthwise_columns takes: other outputs would push the window out of the registers, and it rounds without a
// bound.
template <class V>
bool takes_columns(const DepthwiseParams& p, int64_t rows) {
  const ConvGeometry& g = p.conv;
  return p.repeats == 1 && g.dilation_w == 1 && g.kernel_w == 3 && row_groups(p) == 1 &&
         (rows == 1 ? g.stride_w <= 2 : rows == 2 && g.stride_w == 1) && p.epilogue.output == Epilogue::Output::kU8 &&
         p.epilogue.bounded && !p.epilogue.residual;
}

// One block of `count` channels of one stretch of `rows` output rows; `first` is the first pixel of the first one.
template <class V, bool Whole>
void depthwise_block(const DepthwiseParams& p, const uint8_t* image, int64_t oh, int64_t rows, int64_t ow,
                     int64_t first, int64_t pixels, int64_t channel, int count, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const uint8_t* weight = p.weight + channel * weight_bytes<V>(p) / (4 * V::kLanes);
  const int64_t h0 = oh * g.stride_h - g.pad_h, w0 = ow * g.stride_w - g.pad_w;
  if constexpr (V::kDwColumns) {
    if (takes_columns<V>(p, rows)) {
      if (rows == 2) move_down<V>(p, weight, g.stride_h, scratch);
      return columns_shape<V, Whole>(p, rows, image, h0, w0, weight, scratch, first, pixels, channel, count);
    }
  }
  const int64_t block = depthwise_block_pixels(g), whole = (pixels + block - 1) / block * block;
  const int64_t columns = buffer_columns(g, whole);
  fill_columns<V, Whole>(p, image, h0, (rows - 1) * g.stride_h + p.kernel_h, w0, columns, channel, count, scratch);
  auto* sums = reinterpret_cast<int32_t*>(scratch + columns * column_bytes<V>(p));
  uint8_t* moved = reinterpret_cast<uint8_t*>(sums + whole * 4 * V::kLanes);
  for (int64_t r = 0; r < rows; ++r) {
    if (r > 0) move_down<V>(p, weight, r * g.stride_h, moved);
    depthwise_sums<V>(p, scratch, columns, r > 0 ? moved : weight, whole, channel, sums);
    store_pixels<V, 4>(p.epilogue, p.out, p.channels, sums, first + r * g.out_w, pixels, channel, count);
  }
}

// Rows are (image, output row) pairs.
template <class V>
void depthwise(const DepthwiseParams& p, int64_t row0, int64_t row1, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  constexpr int kBlock = 4 * V::kLanes;
  const int64_t together = rows_together<V>(p), stretch = depthwise_stretch<V>(p);
  int64_t rows;
  for (int64_t row = row0; row < row1; row += rows) {
    const int64_t oh = row % g.out_h;
    rows = together < row1 - row ? together : row1 - row;
    if (rows > g.out_h - oh) rows = g.out_h - oh;
    const uint8_t* image = p.x + row / g.out_h * g.image_stride;
    for (int64_t ow = 0; ow < g.out_w; ow += stretch) {
      const int64_t pixels = g.out_w - ow < stretch ? g.out_w - ow : stretch;
      const int64_t first = row * g.out_w + ow;
      for (int64_t channel = 0; channel < p.channels; channel += kBlock) {
        const int64_t left = p.channels - channel;
        const int count = left < kBlock ? static_cast<int>(left) : kBlock;
        const auto run = [&](auto kernel) { kernel(p, image, oh, rows, ow, first, pixels, channel, count, scratch); };
        if (count == kBlock)
          run(depthwise_block<V, true>);
        else if (count > 4 * V::kHalfLanes)
          run(depthwise_block<V, false>);
        else if (count == 4 * V::kHalfLanes)
          run(depthwise_block<typename V::Half, true>);
        else
          run(depthwise_block<typename V::Half, false>);
      }
    }
  }
}

}  // namespace
}  // namespace zeropoint
