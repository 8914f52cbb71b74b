// Rows of quantized embeddings as float32, and the sums and maxima of bags of them.
#pragma once
#include "../kernel_table.h"

namespace zeropoint {
namespace {

// (q - zero_point) * scale of a row of 8-bit values, or of 4-bit ones, low halves first.
void embedding_row(const uint8_t* __restrict q, int64_t n, bool four_bits, float scale, float zero_point,
                   float* __restrict out) {
  if (!four_bits) {
    for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<float>(q[i]) - zero_point) * scale;
    return;
  }
  for (int64_t i = 0; i < n / 2; ++i) {
    out[2 * i] = (static_cast<float>(q[i] & 15) - zero_point) * scale;
    out[2 * i + 1] = (static_cast<float>(q[i] >> 4) - zero_point) * scale;
  }
  if (n % 2) out[n - 1] = (static_cast<float>(q[n / 2] & 15) - zero_point) * scale;
}

// A few vectors of features from `first` on stay in registers over all rows of a bag.
template <class V, int Vectors, bool Max>
void bag_block(const BagParams& p, int64_t first) {
  constexpr int64_t kWide = Vectors * V::kLanes;
  constexpr int64_t kAhead = 6;  // rows lie anywhere: asked for while others are added
  const int64_t byte = p.four_bits ? first / 2 : first;
  typename V::F32 acc[Vectors];
  for (int v = 0; v < Vectors; ++v) acc[v] = V::set_f32(Max ? -__builtin_inff() : 0.0f);
  for (int64_t i = 0; i < p.count; ++i) {
    if (i + kAhead < p.count) {
      const int64_t later = p.rows[i + kAhead];
      __builtin_prefetch(p.data + later * p.width + byte);
      __builtin_prefetch(p.scale + later);
      __builtin_prefetch(p.zero_point + later);
    }
    const int64_t row = p.rows[i];
    const uint8_t* q = p.data + row * p.width + byte;
    uint8_t unpacked[kWide];
    if (p.four_bits) {
      for (int64_t b = 0; b < kWide / 2; ++b) {
        unpacked[2 * b] = q[b] & 15;
        unpacked[2 * b + 1] = q[b] >> 4;
      }
      q = unpacked;
    }
    const typename V::F32 zero_point = V::set_f32(p.zero_point[row]), scale = V::set_f32(p.scale[row]),
                          weight = V::set_f32(p.weights ? p.weights[i] : 1.0f);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const typename V::F32 value = V::mul(V::sub(V::to_f32(V::load_bytes(q + v * V::kLanes)), zero_point), scale);
      acc[v] = Max ? V::max(value, acc[v]) : V::add(acc[v], V::mul(value, weight));
    }
  }
  for (int v = 0; v < Vectors; ++v) V::store_f32(p.out + first + v * V::kLanes, acc[v]);
}

// Of the features that fill no vector.
template <bool Max>
void bag_rest(const BagParams& p, int64_t feature) {
  for (; feature < p.features; ++feature) {
    float acc = Max ? -__builtin_inff() : 0.0f;
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t row = p.rows[i];
      const uint8_t* source = p.data + row * p.width;
      const int q = p.four_bits ? source[feature / 2] >> (feature % 2 * 4) & 15 : source[feature];
      const float value = (static_cast<float>(q) - p.zero_point[row]) * p.scale[row];
      if (Max)
        acc = value > acc ? value : acc;
      else
        acc = acc + value * (p.weights ? p.weights[i] : 1.0f);
    }
    p.out[feature] = acc;
  }
}

// Sums (each value times its row's weight first, two roundings) or maxima of rows, one row after the other.
template <class V, bool Max>
void bag_of(const BagParams& p) {
  int64_t feature = 0;
  for (; feature + 4 * V::kLanes <= p.features; feature += 4 * V::kLanes) bag_block<V, 4, Max>(p, feature);
  for (; feature + V::kLanes <= p.features; feature += V::kLanes) bag_block<V, 1, Max>(p, feature);
  bag_rest<Max>(p, feature);
}

template <class V>
void embedding_bag(const BagParams& p) {
  return p.maximum ? bag_of<V, true>(p) : bag_of<V, false>(p);
}

}  // namespace
}  // namespace zeropoint
