// From int32 accumulators to the output (numerics.md, "Requantize"), on vectors of `V`.
//
// Order of columns: a panel of NV vectors holds column (lane / 4) * 4 * NV + 4 * v + lane % 4 in lane
// `lane` of vector v. That is the order in which narrowing int32 -> int16 -> uint8 within 128-bit
// lanes puts the bytes back in sequence, so that 4 vectors become 64 ordered bytes in 3 instructions.
#pragma once
#include <type_traits>

#include "../kernel_table.h"
#include "dynamic.h"

namespace zeropoint {
namespace {

// What igemm takes off the bytes of A (split.h).
template <class V>
constexpr int32_t kAOffset = V::kSplits ? 128 : 0;

// float(acc) * mult + bias, two roundings; the build forbids contraction to a fused multiply-add.
template <class V>
inline typename V::F32 scaled(const Epilogue& e, typename V::I32 acc, int64_t slot) {
  return V::add(V::mul(V::to_f32(acc), V::load_f32(e.mult + slot)), V::load_f32(e.bias + slot));
}

// Round half to even. Unless values are known to be in bounds, the float minimum keeps large positive ones from
// wrapping in the conversion; large negative ones convert to INT32_MIN, which the saturating narrowing brings to 0.
template <class V, bool Bounded>
inline typename V::I32 rounded(typename V::F32 x) {
  return V::round_i32(Bounded ? x : V::min(x, V::set_f32(kLargestRounded)));
}

// The sum with the residual, of values that are not rounded yet: it sees what an unfused layer would have stored, less
// its zero point. Rounding what was clamped to integers is clamping what was rounded.
template <class V, int NV, bool Bounded, bool Plain>
inline typename V::U8 with_residual(const Epilogue& e, const typename V::F32 (&x)[NV], typename V::U8 residual) {
  typename V::F32 r[NV];
  V::template byte_floats<NV>(V::flip(residual, e.residual_xor), e.residual_zero_point, r);
  const typename V::F32 lo = V::set_f32(e.least), hi = V::set_f32(e.most), qm = V::set_f32(e.sum_mult),
                        rm = V::set_f32(e.residual_mult);
  typename V::I32 q[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const typename V::F32 stored = V::round_f32(V::max(V::min(x[v], hi), lo));
    q[v] = rounded<V, Bounded>(V::add(V::mul(stored, qm), V::mul(r[v], rm)));
  }
  return V::template narrow<NV, Plain>(q, e.sum_zero_point, e.sum_lo, e.sum_hi);
}

// One row of scaled values to bytes; `residual` is its row's, or null.
template <class V, int NV, bool Bounded, bool Plain>
__attribute__((always_inline)) inline void store_scaled(const Epilogue& e, const typename V::F32 (&x)[NV], uint8_t* out,
                                                        int cols, const uint8_t* residual) {
  typename V::U8 bytes;
  if (residual) {
    bytes = with_residual<V, NV, Bounded, Plain>(e, x, V::template load_u8<NV>(residual, cols));
  } else {
    typename V::I32 q[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) q[v] = rounded<V, Bounded>(x[v]);
    bytes = V::template narrow<NV, Plain>(q, e.zero_point, e.lo, e.hi);
  }
  if (!Plain && e.table) bytes = V::lookup(bytes, e.table);
  if (!Plain) bytes = V::flip(bytes, e.out_xor);
  V::template store_u8<NV>(out, bytes, cols);
}

// `out` and `residual` (or null) are those of row 0 and the tile's first column; `places` are the rows of the tile.
template <class V, int MR, int NV, bool Bounded, bool Plain>
__attribute__((always_inline)) inline void store_rows(const Epilogue& e, typename V::I32 (&acc)[MR][NV], int64_t slot,
                                                      uint8_t* out, int64_t out_stride, int cols,
                                                      const uint8_t* residual, const int64_t* places) {
  typename V::F32 mult[NV], bias[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    mult[v] = V::load_f32(e.mult + slot + v * V::kLanes);
    bias[v] = V::load_f32(e.bias + slot + v * V::kLanes);
  }
  if constexpr (NV <= 2 && MR > 1 && V::kJoins) {
    if (cols % 8 == 0) {  // rows of half or a quarter of a register share what follows; the last may come twice
      constexpr int kRows = 4 / NV;
#pragma GCC unroll 4
      for (int first = 0; first < MR; first += kRows) {
        int64_t place[kRows];
        typename V::F32 x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const int r = first + i / NV < MR ? first + i / NV : MR - 1;
          place[i / NV] = places[r];
          x[i] = V::add(V::mul(V::to_f32(acc[r][i % NV]), mult[i % NV]), bias[i % NV]);
        }
        typename V::U8 bytes;
        if (residual) {
          bytes = with_residual<V, 4, Bounded, Plain>(
              e, x, V::template load_joined<NV>(residual, e.residual_stride, place, cols));
        } else {
          typename V::I32 q[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) q[i] = rounded<V, Bounded>(x[i]);
          bytes = V::template narrow<4, Plain>(q, e.zero_point, e.lo, e.hi);
        }
        if (!Plain && e.table) bytes = V::lookup(bytes, e.table);
        if (!Plain) bytes = V::flip(bytes, e.out_xor);
        V::template store_joined<NV>(out, out_stride, place, cols, bytes);
      }
      return;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    typename V::F32 x[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) x[v] = V::add(V::mul(V::to_f32(acc[r][v]), mult[v]), bias[v]);
    store_scaled<V, NV, Bounded, Plain>(e, x, out + places[r] * out_stride, cols,
                                        residual ? residual + places[r] * e.residual_stride : nullptr);
  }
}

// f(bounded, plain), types: the narrowest kind of byte results that has the epilogue's.
template <class F>
__attribute__((always_inline)) inline void with_kind(const Epilogue& e, const F& f) {
  if (e.plain && !e.table) return f(std::true_type{}, std::true_type{});
  if (e.bounded) return f(std::true_type{}, std::false_type{});
  f(std::false_type{}, std::false_type{});
}

template <class V, int MR, int NV>
inline void store_u8(const Epilogue& e, typename V::I32 (&acc)[MR][NV], int64_t slot, uint8_t* out, int64_t out_stride,
                     int cols, const uint8_t* residual, const int64_t* places) {
  with_kind(
      e, [&](auto bounded, auto plain) __attribute__((always_inline)) {
        store_rows<V, MR, NV, decltype(bounded)::value, decltype(plain)::value>(e, acc, slot, out, out_stride, cols,
                                                                                residual, places);
      });
}

// int32 and float outputs of whole vectors, in registers; kRowF32 is the formula of dequantize_row.
template <class V, int MR, int NV>
inline void store_ordered(const Epilogue& e, typename V::I32 (&acc)[MR][NV], void* out, int64_t offset,
                          int64_t out_stride, int64_t m, int64_t col) {
  const bool biased = e.column_bias != nullptr, relu = e.relu;
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    auto* ints = static_cast<int32_t*>(out) + offset + r * out_stride;
    auto* floats = static_cast<float*>(out) + offset + r * out_stride;
    if (e.output == Epilogue::Output::kF32)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = V::bits(scaled<V>(e, acc[r][v], col + v * V::kLanes));
    typename V::I32 ordered[NV];
    V::template order<NV>(acc[r], ordered);
    if (e.output != Epilogue::Output::kRowF32) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::store_i32(ints + v * V::kLanes, ordered[v]);
      continue;
    }
    const typename V::I32 zero_point = V::set_i32(e.row_zero_point[m + r] - kAOffset<V>);
    const typename V::F32 scale = V::set_f32(e.row_scale[m + r]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const int64_t c = col + v * V::kLanes;
      const typename V::I32 sums = V::load_i32(e.column_sums + c);
      typename V::F32 value = V::to_f32(V::sub_i32(ordered[v], V::mul_i32(zero_point, sums)));
      value = V::mul(V::mul(value, scale), V::load_f32(e.column_scale + c));
      if (biased) value = V::add(value, V::load_f32(e.column_bias + c));
      if (relu) value = V::max_0(value);
      V::store_f32(floats + v * V::kLanes, value);
    }
  }
}

// int32 and float outputs of part panels, one row at a time from accumulators spilled to memory.
template <class V, int NV>
inline void store_general(const Epilogue& e, const int32_t* acc, int64_t slot, void* out, int64_t offset, int64_t m,
                          int64_t col, int cols) {
  alignas(64) int32_t ordered[NV * V::kLanes];
  alignas(64) float values[V::kLanes];
  for (int v = 0; v < NV; ++v) {
    const int32_t* source = acc + v * V::kLanes;
    if (e.output == Epilogue::Output::kF32) {
      V::store_f32(values, scaled<V>(e, V::load_i32(source), slot + v * V::kLanes));
      source = reinterpret_cast<const int32_t*>(values);
    }
    for (int lane = 0; lane < V::kLanes; lane += 4)
      __builtin_memcpy(ordered + lane * NV + 4 * v, source + lane, 4 * sizeof(int32_t));
  }
  if (e.output == Epilogue::Output::kRowF32) {
    dequantize_row(ordered, e.column_sums + col, cols, e.row_zero_point[m] - kAOffset<V>, e.row_scale[m],
                   e.column_scale + col, e.column_bias ? e.column_bias + col : nullptr, e.relu,
                   static_cast<float*>(out) + offset);
    return;
  }
  __builtin_memcpy(static_cast<int32_t*>(out) + offset, ordered, static_cast<size_t>(cols) * 4);
}

}  // namespace
}  // namespace zeropoint
