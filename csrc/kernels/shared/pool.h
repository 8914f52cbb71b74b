// Pooling on NHWC bytes: the inner loop runs over channels. Rows are (image, output row) pairs.
#pragma once
#include "elementwise.h"

namespace zeropoint {
namespace {

// Calls f(pixel pointer) for every tap inside the image.
template <class F>
inline void for_taps(const PoolParams& p, int64_t n, int64_t oh, int64_t ow, const F& f) {
  const ConvGeometry& g = p.conv;
  for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
    const int64_t h = oh * g.stride_h - g.pad_h + kh * g.dilation_h;
    if (h < 0 || h >= g.in_h) continue;
    for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
      const int64_t w = ow * g.stride_w - g.pad_w + kw * g.dilation_w;
      if (w >= 0 && w < g.in_w) f(p.x + n * g.image_stride + h * g.row_stride + w * p.channels);
    }
  }
}

// Channels are pooled in blocks that stay in registers.
constexpr int64_t kPoolBlock = 64;

// The largest of `n` channels over the taps; a constant `n` keeps it in one register.
inline void max_of_taps(const PoolParams& p, int64_t row, int64_t ow, int64_t first, int64_t n, uint8_t* out) {
  uint8_t largest[kPoolBlock] = {};
  for_taps(p, row / p.conv.out_h, row % p.conv.out_h, ow, [&](const uint8_t* x) {
    for (int64_t c = 0; c < n; ++c) {
      const uint8_t v = x[first + c] ^ p.in_xor;
      largest[c] = v > largest[c] ? v : largest[c];
    }
  });
  for (int64_t c = 0; c < n; ++c) out[first + c] = largest[c] ^ p.in_xor;
}

void max_pool(const PoolParams& p, int64_t row0, int64_t row1) {
  const ConvGeometry& g = p.conv;
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t ow = 0; ow < g.out_w; ++ow) {
      uint8_t* out = p.out + (row * g.out_w + ow) * p.channels;
      int64_t c = 0;
      for (; c + kPoolBlock <= p.channels; c += kPoolBlock) max_of_taps(p, row, ow, c, kPoolBlock, out);
      if (c < p.channels) max_of_taps(p, row, ow, c, p.channels - c, out);
    }
}

// float(sum - count * zero_point) * factor, rounded half to even.
inline void store_average(const PoolParams& p, const int32_t* sums, int64_t channels, int64_t count, float factor,
                          uint8_t* out) {
  const int32_t offset = static_cast<int32_t>(count) * p.zero_point;
  for (int64_t c = 0; c < channels; ++c)
    out[c] = round_to_u8(static_cast<float>(sums[c] - offset) * factor, p.out_zero_point, p.lo, p.hi) ^ p.out_xor;
}

// Extent of a window within the image plus its padding, as torch counts it (count_include_pad).
inline int64_t padded_extent(int64_t start, int64_t kernel, int64_t in, int64_t pad) {
  const int64_t end = start + kernel < in + pad ? start + kernel : in + pad;
  return end - start;
}

// The average of `count` channels over the taps; a constant `count` keeps the sums in registers.
inline void average_of_taps(const PoolParams& p, int64_t n, int64_t oh, int64_t ow, int64_t first, int64_t count,
                            int64_t taps, float factor, uint8_t* out) {
  int32_t sums[kPoolBlock] = {};
  for_taps(p, n, oh, ow, [&](const uint8_t* x) {
    for (int64_t c = 0; c < count; ++c) sums[c] += x[first + c] ^ p.in_xor;
  });
  store_average(p, sums, count, taps, factor, out + first);
}

void avg_pool(const PoolParams& p, int64_t row0, int64_t row1) {
  const ConvGeometry& g = p.conv;
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t n = row / g.out_h, oh = row % g.out_h;
    for (int64_t ow = 0; ow < g.out_w; ++ow) {
      int64_t inside = 0;
      for_taps(p, n, oh, ow, [&](const uint8_t*) { ++inside; });
      int64_t divisor = p.divisor;
      if (!divisor)
        divisor = p.count_include_pad ? padded_extent(oh * g.stride_h - g.pad_h, p.kernel_h, g.in_h, g.pad_h) *
                                            padded_extent(ow * g.stride_w - g.pad_w, g.kernel_w, g.in_w, g.pad_w)
                                      : inside;
      const float factor = p.factor != 0 ? p.factor : 1.0f / static_cast<float>(divisor);
      uint8_t* out = p.out + (row * g.out_w + ow) * p.channels;
      int64_t c = 0;
      for (; c + kPoolBlock <= p.channels; c += kPoolBlock)
        average_of_taps(p, n, oh, ow, c, kPoolBlock, inside, factor, out);
      if (c < p.channels) average_of_taps(p, n, oh, ow, c, p.channels - c, inside, factor, out);
    }
  }
}

}  // namespace
}  // namespace zeropoint
