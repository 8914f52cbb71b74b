// Vocabulary of AVX-512 with VNNI: 16 int32 lanes, u8 x s8 dot products of four.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "../avxvnni/simd.h"

namespace zeropoint {
namespace {

// 256-bit vectors of the same instruction set, for a last block of at most 32 channels.
struct Avx512VnniHalf : AvxVnni {
  // Depthwise kernels in registers: weights of that many columns times groups of rows; windows of three columns.
  static constexpr int kDwTaps = 14;
  static constexpr bool kDwColumns = true;
  template <int NV>
  static void store_u8(uint8_t* p, U8 bytes, int count) {
    static_assert(NV == 4);
    if (count == 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
    else if (count == 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
    else
      _mm256_mask_storeu_epi8(p, (1U << count) - 1, bytes);
  }
  template <int NV>
  static U8 load_u8(const uint8_t* p, int count) {
    static_assert(NV == 4);
    return count == 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                       : _mm256_maskz_loadu_epi8((1U << count) - 1, p);
  }
};

struct Avx512Vnni {
  using Half = Avx512VnniHalf;
  using I32 = __m512i;
  using F32 = __m512;
  using U8 = __m512i;
  using DwWeight = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kPanelVectors = 4;
  static constexpr bool kSplits = false;
  static constexpr int64_t kLookupBytes = 0;
  static constexpr int kHalfLanes = 8;
  using DwInput = __m512i;
  static constexpr int kDwBytes = 64;
  static constexpr int kDwInputBytes = 64;
  // Depthwise kernels in registers: weights of that many columns times groups of rows; windows of three columns.
  static constexpr int kDwTaps = 14;
  static constexpr bool kDwColumns = true;

  // kLanes bytes.
  static I32 load_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Of values of 0 to 255.
  static void store_bytes(uint8_t* p, I32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  static I32 max_i32(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
  // x > y ? a : b.
  static F32 where_above(F32 x, F32 y, F32 a, F32 b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), b, a);
  }
  // Over the lanes; of floats none is NaN.
  static int32_t largest(I32 v) { return _mm512_reduce_max_epi32(v); }
  static float largest(F32 v) { return _mm512_reduce_max_ps(v); }
  static int32_t sum(I32 v) { return _mm512_reduce_add_epi32(v); }
  static I32 load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_i32(int32_t* p, I32 v) { _mm512_storeu_si512(p, v); }
  static I32 set_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static I32 sub_i32(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
  static F32 load_f32(const float* p) { return _mm512_loadu_ps(p); }
  static void store_f32(float* p, F32 v) { _mm512_storeu_ps(p, v); }
  static F32 set_f32(float x) { return _mm512_set1_ps(x); }
  static F32 to_f32(I32 v) { return _mm512_cvtepi32_ps(v); }
  static I32 bits(F32 v) { return _mm512_castps_si512(v); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  // 2^n from the float n + 1.5 * 2^23, whose low bits are n.
  static F32 power_of_2(F32 shifted) {
    const I32 n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4B400000 - 127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
  }
  // x * 2^n, x and the product normal, for the float n + 1.5 * 2^23, by way of x's exponent.
  static F32 times_power_of_2(F32 x, F32 shifted) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
  }
  // The second operand where one is NaN.
  static F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  // 0 where both are zeros: the second operand.
  static F32 max_0(F32 a) { return _mm512_max_ps(a, _mm512_setzero_ps()); }
  static I32 mul_i32(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
  // Panel order to column order (epilogue.h), of one, two or four vectors: of four, a 4 by 4 transposition of blocks of
  // four lanes.
  static constexpr bool kOrders = true;
  static constexpr bool kStaggers = true;
  template <int NV>
  static void order(const I32 (&x)[NV], I32 (&y)[NV]) {
    static_assert(NV == 1 || NV == 2 || NV == 4);
    if constexpr (NV == 1) {
      y[0] = x[0];
    } else if constexpr (NV == 2) {
      const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      y[0] = _mm512_permutex2var_epi32(x[0], low, x[1]);
      y[1] = _mm512_permutex2var_epi32(x[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), x[1]);
    } else {
      const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xEE);
      const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), d = _mm512_shuffle_i32x4(x[2], x[3], 0xEE);
      y[0] = _mm512_shuffle_i32x4(a, c, 0x88);
      y[1] = _mm512_shuffle_i32x4(a, c, 0xDD);
      y[2] = _mm512_shuffle_i32x4(b, d, 0x88);
      y[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
  }
  static I32 round_i32(F32 v) { return _mm512_cvtps_epi32(v); }
  static F32 round_f32(F32 v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

  // Keeps v in a register, opaque to the optimiser; where tests emulate the set there is none.
  static void keep([[maybe_unused]] I32& v) {
#ifdef __AVX512F__
    __asm__ volatile("" : "+v"(v));
#endif
  }

  static I32 broadcast_a(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static I32 dot(I32 acc, I32 a, I32 b) { return _mm512_dpbusd_epi32(acc, a, b); }

  static I32 xor_i32(I32 a, I32 b) { return _mm512_xor_si512(a, b); }
  static I32 add_i32(I32 a, I32 b) { return _mm512_add_epi32(a, b); }

  // Grouped products: bytes of B (unsigned) times four bytes of A (signed) per lane.
  using GroupA = __m512i;
  using GroupB = __m512i;
  static GroupA broadcast_group(const int8_t* p) { return broadcast_a(reinterpret_cast<const uint8_t*>(p)); }
  static GroupB group_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void group_nibbles(const uint8_t* p, GroupB& low, GroupB& high) {
    const __m512i x = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(0x0F);
    low = _mm512_and_si512(x, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(x, 4), mask);
  }
  static I32 dot_group(I32 acc, GroupB b, GroupA a) { return _mm512_dpbusd_epi32(acc, b, a); }

  static DwWeight load_dw(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static DwInput load_dw_input(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_dw_input(uint8_t* p, I32 mixed) { _mm512_storeu_si512(p, mixed); }
  static I32 dot_dw(I32 acc, DwInput x, DwWeight w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static I32 dot_mixed(I32 acc, I32 x, DwWeight w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static void interleave(const U8 (&t)[4], I32 (&out)[4]) {
    const __m512i lo01 = _mm512_unpacklo_epi8(t[0], t[1]), hi01 = _mm512_unpackhi_epi8(t[0], t[1]);
    const __m512i lo23 = _mm512_unpacklo_epi8(t[2], t[3]), hi23 = _mm512_unpackhi_epi8(t[2], t[3]);
    out[0] = _mm512_unpacklo_epi16(lo01, lo23);
    out[1] = _mm512_unpackhi_epi16(lo01, lo23);
    out[2] = _mm512_unpacklo_epi16(hi01, hi23);
    out[3] = _mm512_unpackhi_epi16(hi01, hi23);
  }

  // Sixteen bytes of each of 16 columns, `stride` apart: of vector v of a panel of four, the columns 16 j + 4 v + i
  // become lane 4 j + i; out[g] has their bytes 4 g to 4 g + 3.
  static constexpr bool kGathers = true;
  static void gather_columns(const uint8_t* first, int64_t stride, I32 (&out)[4]) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto* p = first + i * stride;
      const auto at = [&](int64_t j) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * j * stride)); };
      r[i] = _mm512_inserti32x4(
          _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1), at(2), 2), at(3), 3);
    }
    const __m512i lo01 = _mm512_unpacklo_epi32(r[0], r[1]), hi01 = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i lo23 = _mm512_unpacklo_epi32(r[2], r[3]), hi23 = _mm512_unpackhi_epi32(r[2], r[3]);
    out[0] = _mm512_unpacklo_epi64(lo01, lo23);
    out[1] = _mm512_unpackhi_epi64(lo01, lo23);
    out[2] = _mm512_unpacklo_epi64(hi01, hi23);
    out[3] = _mm512_unpackhi_epi64(hi01, hi23);
  }

  // int32 -> uint8 with saturation, zero point and clamp; Plain: those are 0 and 0 to 255. The bytes of NV vectors sit
  // in the low 4 * NV bytes of each 128-bit lane until store_u8 closes the gaps.
  template <int NV, bool Plain>
  static U8 narrow(const I32 (&q)[NV], int32_t zero_point, uint8_t lo, uint8_t hi) {
    const __m512i zp = _mm512_set1_epi16(static_cast<int16_t>(zero_point)), none = _mm512_setzero_si512();
    const auto moved = [&](__m512i x) { return Plain ? x : _mm512_adds_epi16(x, zp); };
    const __m512i first = moved(_mm512_packs_epi32(q[0], NV > 1 ? q[NV > 1 ? 1 : 0] : none));
    __m512i second = none;
    if constexpr (NV > 2) second = moved(_mm512_packs_epi32(q[2], NV > 3 ? q[NV > 3 ? 3 : 2] : none));
    const __m512i bytes = _mm512_packus_epi16(first, second);
    if (Plain) return bytes;
    return _mm512_min_epu8(_mm512_max_epu8(bytes, _mm512_set1_epi8(static_cast<char>(lo))),
                           _mm512_set1_epi8(static_cast<char>(hi)));
  }
  // float(byte - zero_point): the bytes become the low bits of 2^23 + byte.
  template <int NV>
  static void byte_floats(U8 bytes, float zero_point, F32 (&f)[NV]) {
    const __m512i none = _mm512_setzero_si512(), high = _mm512_set1_epi16(0x4B00);
    const __m512i lo = _mm512_unpacklo_epi8(bytes, none), hi = _mm512_unpackhi_epi8(bytes, none);
    const __m512i all[4] = {_mm512_unpacklo_epi16(lo, high), _mm512_unpackhi_epi16(lo, high),
                            _mm512_unpacklo_epi16(hi, high), _mm512_unpackhi_epi16(hi, high)};
    const __m512 zero = _mm512_set1_ps(8388608.0f + zero_point);
    for (int v = 0; v < NV; ++v) f[v] = _mm512_sub_ps(_mm512_castsi512_ps(all[v]), zero);
  }
  static __mmask64 first(int count) { return count >= 64 ? ~0ULL : (1ULL << count) - 1; }
  template <int NV>
  static constexpr __mmask16 lane_mask() {
    return static_cast<__mmask16>(((1 << NV) - 1) * 0x1111);
  }
  template <int NV>
  static void store_u8(uint8_t* p, U8 bytes, int count) {
    if constexpr (NV < 4) bytes = _mm512_maskz_compress_epi32(lane_mask<NV>(), bytes);
    // Byte-masked stores are slow on Zen 4: whole 16-byte pieces go without a mask.
    if (NV == 4 && count == 64) {
      _mm512_storeu_si512(p, bytes);
    } else if (count % 16 == 0) {
      if (count >= 32) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(bytes));
      if (count == 48) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 32), _mm512_extracti32x4_epi32(bytes, 2));
      if (count == 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(bytes));
    } else {
      _mm512_mask_storeu_epi8(p, first(count), bytes);
    }
  }
  // Four rows of one vector or two of two, narrowed together: of each 128-bit lane, a row has every fourth 4 or every
  // second 8 bytes. `cols` is 8 or 16, 24 or 32.
  static constexpr bool kJoins = true;
  template <int NV>
  static __m512i row_order() {
    return NV == 2 ? _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
                   : _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  }
  // Of 16 bytes at each place, one run or not, those that `which` names: 0 where it is above 127.
  template <bool Run>
  static U8 spread(const uint8_t* p, const int32_t (&where)[4], U8 which) {
    const auto at = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + where[i])); };
    __m512i bytes;
    if constexpr (Run) {
      bytes = _mm512_loadu_si512(p + where[0]);
    } else {
      bytes = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
      bytes = _mm512_inserti32x4(_mm512_inserti32x4(bytes, at(2), 2), at(3), 3);
    }
    return _mm512_shuffle_epi8(bytes, which);
  }
  static U8 or_u8(U8 a, U8 b) { return _mm512_or_si512(a, b); }
  static I32 words(U8 bytes) { return bytes; }
  template <int NV>
  static void store_joined(uint8_t* out, int64_t stride, const int64_t (&places)[4 / NV], int cols, U8 bytes) {
    bytes = _mm512_permutexvar_epi32(row_order<NV>(), bytes);
    if constexpr (NV == 2) {
      const __m256i rows[2] = {_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1)};
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        uint8_t* p = out + places[r] * stride;
        if (cols == 32) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rows[r]);
        } else {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(rows[r]));
          _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 16), _mm256_extracti128_si256(rows[r], 1));
        }
      }
    } else {
      const __m128i rows[4] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
                               _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        auto* p = reinterpret_cast<__m128i*>(out + places[r] * stride);
        if (cols == 16)
          _mm_storeu_si128(p, rows[r]);
        else
          _mm_storel_epi64(p, rows[r]);
      }
    }
  }
  template <int NV>
  static U8 load_joined(const uint8_t* from, int64_t stride, const int64_t (&places)[4 / NV], int cols) {
    U8 bytes;
    if constexpr (NV == 2) {
      const auto row = [&](int r) {
        const auto* p = reinterpret_cast<const __m128i*>(from + places[r] * stride);
        if (cols == 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm256_set_m128i(_mm_loadl_epi64(p + 1), _mm_loadu_si128(p));
      };
      bytes = _mm512_inserti64x4(_mm512_castsi256_si512(row(0)), row(1), 1);
    } else {
      const auto row = [&](int r) {
        const auto* p = reinterpret_cast<const __m128i*>(from + places[r] * stride);
        return cols == 16 ? _mm_loadu_si128(p) : _mm_loadl_epi64(p);
      };
      bytes = _mm512_inserti32x4(
          _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1), row(2), 2), row(3), 3);
    }
    const __m512i back = NV == 2 ? _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
                                 : row_order<1>();  // a transposition is its own inverse
    return _mm512_permutexvar_epi32(back, bytes);
  }
  template <int NV>
  static U8 load_u8(const uint8_t* p, int count) {
    __m512i bytes = NV == 4 && count == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(first(count), p);
    if constexpr (NV < 4) bytes = _mm512_maskz_expand_epi32(lane_mask<NV>(), bytes);
    return bytes;
  }
  static U8 max_u8(U8 a, U8 b) { return _mm512_max_epu8(a, b); }
  static U8 flip(U8 bytes, uint8_t mask) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(mask))); }
  static U8 lookup(U8 bytes, const uint8_t* table) {
    alignas(64) uint8_t b[64];
    _mm512_store_si512(b, bytes);
    for (int i = 0; i < 64; ++i) b[i] = table[b[i]];
    return _mm512_load_si512(b);
  }
};

}  // namespace
}  // namespace zeropoint
