// The right-hand activation of a matrix product, packed into panels at run time (pack.h has the layout) as q - 128,
// with its column sums; what a zero point needs is in the accumulators' start.
#pragma once
#include "igemm.h"

namespace zeropoint {
namespace {

// Four rows of NV vectors of columns, `real` of them, side by side in memory: the interleaving leaves them in panel
// order. What is beyond the real columns is no result's.
template <class V, int NV>
void pack_four_rows(const uint8_t* rows, int64_t stride, int64_t real, uint8_t flip, uint8_t* out, int32_t* sums) {
  typename V::U8 taps[4];
  for (int64_t i = 0; i < 4; ++i)
    taps[i] = V::flip(V::template load_u8<NV>(rows + i * stride, static_cast<int>(real)), flip);
  typename V::I32 mixed[4];
  V::interleave(taps, mixed);
  const typename V::I32 ones = V::set_i32(0x01010101);
  for (int v = 0; v < NV; ++v) {
    V::store_i32(reinterpret_cast<int32_t*>(out) + v * V::kLanes, mixed[v]);
    V::store_i32(sums + v * V::kLanes, V::dot(V::load_i32(sums + v * V::kLanes), ones, mixed[v]));
  }
}

// b[k * stride_k + n * stride_n], bytes; `sums` holds a panel's columns, zeroed by the caller.
template <class V>
void pack_panel(const ActivationView& b, int64_t col, int vectors, uint8_t* out, int32_t* sums) {
  const int64_t columns = vectors * V::kLanes, real = b.n - col < columns ? b.n - col : columns;
  constexpr int64_t kStep = 4;
  const uint8_t flip = b.flip ^ 0x80;
  const uint8_t* source = b.data + col * b.stride_n;
  int64_t k = 0;
  if constexpr (V::kGathers) {
    if (b.stride_k == 1 && vectors == 4 && real == columns) {
      const typename V::I32 mask = V::set_i32(static_cast<int32_t>(0x01010101U * flip)), ones = V::set_i32(0x01010101);
      for (; k + 16 <= b.k; k += 16, out += 4 * columns * 4)
        for (int v = 0; v < 4; ++v) {
          typename V::I32 four[4];
          V::gather_columns(source + 4 * v * b.stride_n + k, b.stride_n, four);
          int32_t* sum = sums + v * V::kLanes;
          typename V::I32 total = V::load_i32(sum);
          for (int g = 0; g < 4; ++g) {
            const typename V::I32 bytes = V::xor_i32(four[g], mask);
            V::store_i32(reinterpret_cast<int32_t*>(out + g * columns * 4) + v * V::kLanes, bytes);
            total = V::dot(total, ones, bytes);
          }
          V::store_i32(sum, total);
        }
    }
  }
  for (; k < b.k; k += kStep, out += columns * 4) {
    const int64_t rows = b.k - k < kStep ? b.k - k : kStep;
    if constexpr (V::kPanelVectors == 4) {
      if (rows == 4 && b.stride_n == 1) {
        const auto pack = vectors == 4   ? pack_four_rows<V, 4>
                          : vectors == 3 ? pack_four_rows<V, 3>
                          : vectors == 2 ? pack_four_rows<V, 2>
                                         : pack_four_rows<V, 1>;
        pack(source + k * b.stride_k, b.stride_k, real, flip, out, sums);
        continue;
      }
    }
    for (int v = 0; v < vectors; ++v)
      for (int lane = 0; lane < V::kLanes; ++lane) {
        const int64_t slot = v * V::kLanes + lane, column = lane / 4 * 4 * vectors + 4 * v + lane % 4;
        int8_t bytes[4] = {};
        if (column < real) {
          const uint8_t* at = source + k * b.stride_k + column * b.stride_n;
          if (rows == 4 && b.stride_k == 1) {
            uint32_t word;
            __builtin_memcpy(&word, at, 4);
            word ^= 0x01010101U * flip;
            __builtin_memcpy(bytes, &word, 4);
          } else {
            for (int64_t i = 0; i < rows; ++i) bytes[i] = static_cast<int8_t>(at[i * b.stride_k] ^ flip);
          }
        }
        sums[slot] += bytes[0] + bytes[1] + bytes[2] + bytes[3];
        __builtin_memcpy(out + slot * 4, bytes, 4);
      }
  }
}

// All panels, and in panel order the accumulators' start: -a_zero_point * sum of a column of b - its zero point, and
// what igemm leaves out of a.
template <class V>
void pack_activation(const ActivationView& b, int32_t a_zero_point, uint8_t* out, int32_t* init) {
  const int64_t columns = V::kPanelVectors * V::kLanes, groups = ceil_div(b.k, 4);
  for (int64_t col = 0; col < b.n; col += columns) {
    const int64_t left = b.n - col;
    const int vectors = left >= columns ? V::kPanelVectors : static_cast<int>(ceil_div(left, V::kLanes));
    for (int64_t i = 0; i < vectors * V::kLanes; ++i) init[col + i] = 0;
    pack_panel<V>(b, col, vectors, out, init + col);
    // Wraps with the accumulator: what counts is the exact sum at the end.
    for (int64_t i = 0; i < vectors * V::kLanes; ++i)
      init[col + i] = static_cast<int32_t>(uint32_t{kAOffset<V>} * static_cast<uint32_t>(init[col + i]) -
                                           static_cast<uint32_t>(a_zero_point) *
                                               (static_cast<uint32_t>(init[col + i]) -
                                                static_cast<uint32_t>(b.k) * static_cast<uint32_t>(b.zero_point)));
    out += groups * vectors * V::kLanes * 4;
  }
}

}  // namespace
}  // namespace zeropoint
