// Products of float activations, quantized in groups along K, with 8- or 4-bit weights (numerics.md,
// "Grouped products"). Each group is an exact integer product; its float is added to the row's sum, group
// after group, so the order of additions is that of K on every instruction set.
//
// Panels of B (pack/grouped_pack.h), per group: [scale f32 per column][zero point f32 per column]
// [k / 4 or k / 8][vector][lane][4 bytes]; of 4-bit weights a byte holds k in its low and k + 4 in its high half.
#pragma once
#include "elementwise.h"
#include "igemm.h"

namespace zeropoint {
namespace {

// amax / 16383 or amax / 127 and the integers on it. NaN counts as 0; infinities leave an infinite scale.
template <class V>
void quantize_group(const float* x, int64_t n, int64_t padded, int8_t* high, int8_t* low, float* scale, int32_t* sum) {
  constexpr float kSmallest = 7.888609052210118e-31f;  // 2^-100: keeps 1 / scale finite
  float smallest, largest;
  row_range<V>(x, n, &smallest, &largest);
  largest = -smallest > largest ? -smallest : largest;
  const float top = low ? 16383.0f : 127.0f;
  const float s = largest / top > kSmallest ? largest / top : kSmallest;
  const float inverse = 1.0f / s;
  const auto limit = static_cast<int32_t>(top);
  int32_t total = 0;
  int64_t i = 0;
  if (low) {
    for (; i < n; ++i) {
      const float v = x[i] * inverse;
      const int32_t q = round_clamp(v == v ? v : 0.0f, -limit, limit);
      total += q;
      high[i] = static_cast<int8_t>(q >> 7);
      low[i] = static_cast<int8_t>(q & 127);
    }
    for (; i < padded; ++i) high[i] = low[i] = 0;
  } else {
    for (; i < n; ++i) {
      const float v = x[i] * inverse;
      const int32_t q = round_clamp(v == v ? v : 0.0f, -limit, limit);
      total += q;
      high[i] = static_cast<int8_t>(q);
    }
    for (; i < padded; ++i) high[i] = 0;
  }
  *scale = s;
  *sum = total;
}

// Bytes of a group of `length` in a panel of `columns`.
inline int64_t group_bytes(const GroupedParams& p, int bits, int64_t length, int64_t columns) {
  return columns * ((p.group_scales ? 4 : 0) + (p.zero_points ? 4 : 0) + length * bits / 8);
}

inline int64_t group_length(const GroupedParams& p, int64_t g) {
  const int64_t left = p.k_padded - g * p.group_size;
  return left < p.group_size ? left : p.group_size;
}

template <class V, int ROWS, int TERMS, int NV, int BITS>
void grouped_tile(const GroupedParams& p, const uint8_t* b, int64_t m, int64_t col) {
  constexpr int R = ROWS * TERMS;
  typename V::F32 sum[ROWS][NV];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = V::set_f32(0.0f);
  const int8_t* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = p.a + (m * TERMS + r) * p.k_padded;
  for (int64_t g = 0; g < p.groups; ++g) {
    const auto* scale = reinterpret_cast<const float*>(b);
    if (p.group_scales) b += NV * V::kLanes * 4;
    const auto* zero = reinterpret_cast<const float*>(b);
    if (p.zero_points) b += NV * V::kLanes * 4;
    const int64_t first = g * p.group_size, end = first + group_length(p, g);
    typename V::I32 acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = V::set_i32(0);
    for (int64_t k = first; k < end; k += 32 / BITS) {
      typename V::GroupB bv[NV], high[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        if constexpr (BITS == 8)
          bv[v] = V::group_bytes(b + v * V::kLanes * 4);
        else
          V::group_nibbles(b + v * V::kLanes * 4, bv[v], high[v]);
      }
      b += NV * V::kLanes * 4;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename V::GroupA av = V::broadcast_group(a[r] + k);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = V::dot_group(acc[r][v], bv[v], av);
        if constexpr (BITS == 4) {
          const typename V::GroupA next = V::broadcast_group(a[r] + k + 4);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] = V::dot_group(acc[r][v], high[v], next);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const typename V::F32 row_scale = V::set_f32(p.a_scale[(m + r) * p.groups + g]);
      const int32_t row_sum = p.a_sum[(m + r) * p.groups + g];
      const typename V::I32 shift = V::set_i32(p.offset * row_sum);
      const typename V::F32 minus_sum = V::set_f32(-(static_cast<float>(row_sum) * p.a_scale[(m + r) * p.groups + g]));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        typename V::I32 total = acc[r * TERMS][v];
        if constexpr (TERMS == 2) total = V::add_i32(V::mul_i32(total, V::set_i32(128)), acc[r * TERMS + 1][v]);
        typename V::F32 value = V::mul(V::to_f32(V::sub_i32(total, shift)), row_scale);
        if (p.zero_points) value = V::add(value, V::mul(minus_sum, V::load_f32(zero + v * V::kLanes)));
        if (p.group_scales) value = V::mul(value, V::load_f32(scale + v * V::kLanes));
        sum[r][v] = V::add(sum[r][v], value);
      }
    }
  }
  const int64_t left = p.n - col;
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    float* out = p.out + (m + r) * p.out_stride + (col - p.first_column);
    if (left >= NV * V::kLanes) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        typename V::F32 value = sum[r][v];
        if (!p.group_scales) value = V::mul(value, V::load_f32(p.column_scale + col + v * V::kLanes));
        if (p.column_bias) value = V::add(value, V::load_f32(p.column_bias + col + v * V::kLanes));
        V::store_f32(out + v * V::kLanes, p.relu ? V::max_0(value) : value);
      }
    } else {
      alignas(64) float values[NV * V::kLanes];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::store_f32(values + v * V::kLanes, sum[r][v]);
      for (int64_t i = 0; i < left; ++i) {
        float value = values[i];
        if (!p.group_scales) value = value * p.column_scale[col + i];
        if (p.column_bias) value = value + p.column_bias[col + i];
        out[i] = !p.relu || value > 0.0f ? value : 0.0f;
      }
    }
  }
}

template <class V, int TERMS, int NV, int BITS>
void grouped_rows(const GroupedParams& p, const uint8_t* b, int64_t m0, int64_t m1, int64_t col) {
  // Two kinds of accumulators and a panel's vectors have to fit the registers.
  constexpr int kRows = V::kPanelVectors < 4 ? 1 : TERMS == 2 ? 2 : 3;
  int64_t m = m0;
  for (; m + kRows <= m1; m += kRows) grouped_tile<V, kRows, TERMS, NV, BITS>(p, b, m, col);
  for (; m < m1; ++m) grouped_tile<V, 1, TERMS, NV, BITS>(p, b, m, col);
}

template <class V, int NV>
void grouped_panel(const GroupedParams& p, int bits, const uint8_t* b, int64_t m0, int64_t m1, int64_t col) {
  if (p.terms == 2)
    bits == 8 ? grouped_rows<V, 2, NV, 8>(p, b, m0, m1, col) : grouped_rows<V, 2, NV, 4>(p, b, m0, m1, col);
  else
    bits == 8 ? grouped_rows<V, 1, NV, 8>(p, b, m0, m1, col) : grouped_rows<V, 1, NV, 4>(p, b, m0, m1, col);
}

// A panel of 4-bit weights as one of bytes, for many rows: unpacked once instead of once per tile of rows.
template <class V>
void unpack_panel(const GroupedParams& p, const uint8_t* b, int64_t vectors, uint8_t* out) {
  const int64_t bytes = vectors * V::kLanes * 4, head = group_bytes(p, 8, 0, vectors * V::kLanes);
  for (int64_t g = 0; g < p.groups; ++g) {
    __builtin_memcpy(out, b, static_cast<size_t>(head));
    b += head;
    out += head;
    for (int64_t k = 0; k < group_length(p, g); k += 8, b += bytes, out += 2 * bytes)
      for (int64_t i = 0; i < bytes; ++i) {
        out[i] = b[i] & 15;
        out[bytes + i] = b[i] >> 4;
      }
  }
}

constexpr int64_t kGroupedChunk = 48;   // rows whose bytes stay in L2 beside a panel
constexpr int64_t kGroupedUnpack = 12;  // from this many rows on 4-bit panels are unpacked first

template <class V>
size_t grouped_scratch(const GroupedParams& p) {
  if (p.bits == 8) return 0;
  const int64_t columns = V::kPanelVectors * V::kLanes;
  return static_cast<size_t>(p.groups * columns * 8 + p.k_padded * columns);
}

template <class V>
void grouped(const GroupedParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  const int64_t columns = V::kPanelVectors * V::kLanes;
  int64_t panel_bytes = 0;
  for (int64_t g = 0; g < p.groups; ++g) panel_bytes += group_bytes(p, p.bits, group_length(p, g), columns);
  for (int64_t chunk = m0; chunk < m1; chunk += kGroupedChunk) {
    const int64_t end = chunk + kGroupedChunk < m1 ? chunk + kGroupedChunk : m1;
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t col = panel * columns, left = p.n - col;
      const int64_t vectors = left >= columns ? V::kPanelVectors : ceil_div(left, V::kLanes);
      const uint8_t* b = p.b + panel * panel_bytes;
      int bits = p.bits;
      if (bits == 4 && end - chunk >= kGroupedUnpack) {
        unpack_panel<V>(p, b, vectors, scratch);
        b = scratch;
        bits = 8;
      }
      if constexpr (V::kPanelVectors >= 4) {
        if (vectors == 4) {
          grouped_panel<V, 4>(p, bits, b, chunk, end, col);
          continue;
        }
        if (vectors == 3) {
          grouped_panel<V, 3>(p, bits, b, chunk, end, col);
          continue;
        }
      }
      if (vectors == 2)
        grouped_panel<V, 2>(p, bits, b, chunk, end, col);
      else
        grouped_panel<V, 1>(p, bits, b, chunk, end, col);
    }
  }
}

}  // namespace
}  // namespace zeropoint
