// Vocabulary of AVX2: 8 int32 lanes. The byte multiply-add of AVX2 saturates its 16-bit sums: matrix products take it
// where sums fit (split.h), others widen both sides to int16 and multiply with vpmaddwd: |a * b + c * d| < 2^31.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace zeropoint {
namespace {

struct Avx2 {
  using Half = Avx2;  // never used: kHalfLanes is 0
  using I32 = __m256i;
  using F32 = __m256;
  using U8 = __m256i;
  struct DwWeight {
    __m256i even, odd;  // taps 0 and 2, taps 1 and 3, as int16 pairs
  };
  static constexpr int kLanes = 8;
  static constexpr int kPanelVectors = 2;
  static constexpr bool kSplits = true;
  static constexpr int kHalfLanes = 0;
  static constexpr bool kGathers = false;
  static constexpr bool kJoins = true;
  static constexpr bool kOrders = true;
  static constexpr bool kStaggers = false;
  using DwInput = DwWeight;  // four interleaved bytes as two pairs of int16
  static constexpr int kDwBytes = 32;
  static constexpr int kDwInputBytes = 64;
  // Depthwise kernels in registers: weights of that many columns times groups of rows, some in memory, from where the
  // product takes them as well; windows of three columns.
  static constexpr int kDwTaps = 14;
  static constexpr bool kDwColumns = false;
  using I16 = __m256i;
  static constexpr int kBytes = 32, kLanes16 = 16;
  static constexpr int64_t kLookupBytes = 64;

  // kLanes bytes.
  static I32 load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // Of values of 0 to 255.
  static void store_bytes(uint8_t* p, I32 v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  static I32 max_i32(I32 a, I32 b) { return _mm256_max_epi32(a, b); }
  // x > y ? a : b.
  static F32 where_above(F32 x, F32 y, F32 a, F32 b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_GT_OQ)); }
  // Over the lanes; of floats none is NaN.
  static int32_t largest(I32 v) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
  }
  static float largest(F32 v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_shuffle_ps(x, x, 0x4E));
    return _mm_cvtss_f32(_mm_max_ps(x, _mm_shuffle_ps(x, x, 0xB1)));
  }
  static int32_t sum(I32 v) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
  }
  static I32 load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_i32(int32_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static I32 set_i32(int32_t x) { return _mm256_set1_epi32(x); }
  static I32 sub_i32(I32 a, I32 b) { return _mm256_sub_epi32(a, b); }
  static F32 load_f32(const float* p) { return _mm256_loadu_ps(p); }
  static void store_f32(float* p, F32 v) { _mm256_storeu_ps(p, v); }
  static F32 set_f32(float x) { return _mm256_set1_ps(x); }
  static I32 bits(F32 v) { return _mm256_castps_si256(v); }
  static F32 to_f32(I32 v) { return _mm256_cvtepi32_ps(v); }
  static F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  static F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  // 2^n from the float n + 1.5 * 2^23, whose low bits are n.
  static F32 power_of_2(F32 shifted) {
    const I32 n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4B400000 - 127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
  }
  // x * 2^n, x and the product normal, for the float n + 1.5 * 2^23, by way of x's exponent.
  static F32 times_power_of_2(F32 x, F32 shifted) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
  }
  // The second operand where one is NaN.
  static F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
  static F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  static I32 round_i32(F32 v) { return _mm256_cvtps_epi32(v); }
  static F32 round_f32(F32 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

  // Keeps v in a register, opaque to the optimiser.
  static void keep(I32& v) { __asm__ volatile("" : "+x"(v)); }

  static I32 broadcast_a(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }

  // 16 bits; multiply_add gives the sums of neighbouring products.
  static I16 load_whole(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_16(uint8_t* p, I16 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static I16 widen_16(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I16 add_16(I16 a, I16 b) { return _mm256_add_epi16(a, b); }
  static I16 sub_16(I16 a, I16 b) { return _mm256_sub_epi16(a, b); }
  static I32 multiply_add(I16 a, I16 b) { return _mm256_madd_epi16(a, b); }
  // Of each 64 bits, the second 32 first.
  static I16 swap_pairs(I16 v) { return _mm256_shuffle_epi32(v, 0xB1); }
  // Of lanes 0, 2, ...
  static int32_t sum_even(I32 v) {
    const __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E)));
  }
  // acc += multiply_add(a, b), opaque: compilers would copy acc from register to register, and spill others.
  static I32 accumulate(I32 acc, I16 a, I16 b) {
    const __m256i products = _mm256_madd_epi16(a, b);
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
    return acc;
  }
  static I32 quarter(I32 v) { return _mm256_srai_epi32(v, 2); }
  // Bytes 0, 2, ... and 1, 3, ... of a register.
  static I16 even_unsigned(U8 x) { return _mm256_and_si256(x, _mm256_set1_epi16(0xFF)); }
  static I16 odd_unsigned(U8 x) { return _mm256_srli_epi16(x, 8); }
  static I16 even_signed(U8 x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
  static I16 odd_signed(U8 x) { return _mm256_srai_epi16(x, 8); }
  // A - 128 as magnitudes and signs (0 or all bits), four bytes of both in turn; adds up the negative ones' magnitudes,
  // in the lower half of 64 bits each.
  static void split(U8 a, uint8_t* p, I32& negative) {
    const __m256i none = _mm256_setzero_si256(), x = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
    const __m256i signs = _mm256_cmpgt_epi8(none, x), magnitudes = _mm256_abs_epi8(x);
    negative = _mm256_add_epi32(negative, _mm256_sad_epu8(_mm256_and_si256(magnitudes, signs), none));
    const __m256i low = _mm256_unpacklo_epi32(magnitudes, signs), high = _mm256_unpackhi_epi32(magnitudes, signs);
    store_16(p, _mm256_permute2x128_si256(low, high, 0x20));
    store_16(p + 32, _mm256_permute2x128_si256(low, high, 0x31));
  }
  // Sums of neighbouring products; they fit. Weights come from memory with the flip: compilers would load them once for
  // all rows, which takes registers.
  static I16 multiply_split(U8 magnitudes, U8 signs, const uint8_t* w) {
    __m256i flipped;
    __asm__("vpxor %2, %1, %0" : "=x"(flipped) : "x"(signs), "m"(*reinterpret_cast<const __m256i*>(w)));
    return _mm256_maddubs_epi16(magnitudes, flipped);
  }
  static I32 add_pairs(I32 acc, I16 sums) { return accumulate(acc, sums, _mm256_set1_epi16(1)); }
  // n bytes, then `fill`; reads no 32-bit word without one of them.
  static U8 load_first(const uint8_t* p, int64_t n, uint8_t fill) {
    const __m256i count = _mm256_set1_epi32(static_cast<int32_t>(n));
    const __m256i words = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i bytes = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), words);
    const __m256i at = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                        22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
    return _mm256_blendv_epi8(_mm256_set1_epi8(static_cast<char>(fill)), bytes,
                              _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(n)), at));
  }

  static I32 add_i32(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
  static I32 mul_i32(I32 a, I32 b) { return _mm256_mullo_epi32(a, b); }
  // 0 where both are zeros: the second operand.
  static F32 max_0(F32 a) { return _mm256_max_ps(a, _mm256_setzero_ps()); }

  // Grouped products: bytes of B (unsigned) times four bytes of A (signed) per lane, each as pairs of int16.
  struct GroupB {
    __m256i even, odd;
  };
  using GroupA = GroupB;
  static GroupA broadcast_group(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m256i x = _mm256_set1_epi32(four);
    return {even_signed(x), odd_signed(x)};
  }
  static GroupB split_bytes(__m256i x) { return {even_unsigned(x), odd_unsigned(x)}; }
  static GroupB group_bytes(const uint8_t* p) { return split_bytes(load_i32(reinterpret_cast<const int32_t*>(p))); }
  static void group_nibbles(const uint8_t* p, GroupB& low, GroupB& high) {
    const __m256i x = load_i32(reinterpret_cast<const int32_t*>(p)), mask = _mm256_set1_epi16(0x0F);
    low = {_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 8), mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(x, 4), mask), _mm256_srli_epi16(x, 12)};
  }
  static I32 dot_group(I32 acc, GroupB b, GroupA a) {
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(b.even, a.even), _mm256_madd_epi16(b.odd, a.odd)));
  }

  static DwWeight load_dw(const uint8_t* p) { return {even_signed(load_whole(p)), odd_signed(load_whole(p))}; }
  static DwInput load_dw_input(const uint8_t* p) { return {load_whole(p), load_whole(p + 32)}; }
  static void store_dw_input(uint8_t* p, I32 mixed) {
    store_16(p, even_unsigned(mixed));
    store_16(p + 32, odd_unsigned(mixed));
  }
  static I32 dot_dw(I32 acc, DwInput x, DwWeight w) {
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(x.even, w.even), _mm256_madd_epi16(x.odd, w.odd)));
  }
  // The same on bytes as `interleave` leaves them.
  static I32 dot_mixed(I32 acc, I32 mixed, DwWeight w) {
    return dot_dw(acc, {even_unsigned(mixed), odd_unsigned(mixed)}, w);
  }
  // Of 16 bytes at each place, one run or not, those that `which` names: 0 where it is above 127.
  template <bool Run>
  static U8 spread(const uint8_t* p, const int32_t (&where)[2], U8 which) {
    const auto at = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + where[i])); };
    return _mm256_shuffle_epi8(Run ? load_whole(p + where[0]) : _mm256_set_m128i(at(1), at(0)), which);
  }
  // store_dw_input of words in a row, each in all lanes, `apart` bytes from each other.
  template <int Words>
  static void store_words(const uint8_t* p, uint8_t* out, int64_t apart) {
    __m256i x;
    if constexpr (Words == 4) {
      x = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    } else if constexpr (Words == 2) {
      int64_t eight;
      __builtin_memcpy(&eight, p, 8);
      x = _mm256_set1_epi64x(eight);
    } else {
      x = broadcast_a(p);
    }
    const __m256i even = even_unsigned(x), odd = odd_unsigned(x);
    const auto put = [&](int i, __m256i first, __m256i second) {
      store_16(out + i * apart, first);
      store_16(out + i * apart + 32, second);
    };
    put(0, Words > 1 ? _mm256_shuffle_epi32(even, 0x00) : even, Words > 1 ? _mm256_shuffle_epi32(odd, 0x00) : odd);
    if constexpr (Words > 1) put(1, _mm256_shuffle_epi32(even, 0x55), _mm256_shuffle_epi32(odd, 0x55));
    if constexpr (Words > 2) {
      put(2, _mm256_shuffle_epi32(even, 0xAA), _mm256_shuffle_epi32(odd, 0xAA));
      put(3, _mm256_shuffle_epi32(even, 0xFF), _mm256_shuffle_epi32(odd, 0xFF));
    }
  }
  static U8 or_u8(U8 a, U8 b) { return _mm256_or_si256(a, b); }
  static I32 words(U8 bytes) { return bytes; }
  static void interleave(const U8 (&t)[4], I32 (&out)[4]) {
    const __m256i lo01 = _mm256_unpacklo_epi8(t[0], t[1]), hi01 = _mm256_unpackhi_epi8(t[0], t[1]);
    const __m256i lo23 = _mm256_unpacklo_epi8(t[2], t[3]), hi23 = _mm256_unpackhi_epi8(t[2], t[3]);
    out[0] = _mm256_unpacklo_epi16(lo01, lo23);
    out[1] = _mm256_unpackhi_epi16(lo01, lo23);
    out[2] = _mm256_unpacklo_epi16(hi01, hi23);
    out[3] = _mm256_unpackhi_epi16(hi01, hi23);
  }

  template <int NV, bool Plain>
  static U8 narrow(const I32 (&q)[NV], int32_t zero_point, uint8_t lo, uint8_t hi) {
    const __m256i zp = _mm256_set1_epi16(static_cast<int16_t>(zero_point)), none = _mm256_setzero_si256();
    const auto moved = [&](__m256i x) { return Plain ? x : _mm256_adds_epi16(x, zp); };
    const __m256i first = moved(_mm256_packs_epi32(q[0], NV > 1 ? q[NV > 1 ? 1 : 0] : none));
    __m256i second = none;
    if constexpr (NV > 2) second = moved(_mm256_packs_epi32(q[2], NV > 3 ? q[NV > 3 ? 3 : 2] : none));
    const __m256i bytes = _mm256_packus_epi16(first, second);
    if (Plain) return bytes;
    return _mm256_min_epu8(_mm256_max_epu8(bytes, _mm256_set1_epi8(static_cast<char>(lo))),
                           _mm256_set1_epi8(static_cast<char>(hi)));
  }
  // float(byte - zero_point): the bytes become the low bits of 2^23 + byte.
  template <int NV>
  static void byte_floats(U8 bytes, float zero_point, F32 (&f)[NV]) {
    const __m256i none = _mm256_setzero_si256(), high = _mm256_set1_epi16(0x4B00);
    const __m256i lo = _mm256_unpacklo_epi8(bytes, none), hi = _mm256_unpackhi_epi8(bytes, none);
    const __m256i all[4] = {_mm256_unpacklo_epi16(lo, high), _mm256_unpackhi_epi16(lo, high),
                            _mm256_unpacklo_epi16(hi, high), _mm256_unpackhi_epi16(hi, high)};
    const __m256 zero = _mm256_set1_ps(8388608.0f + zero_point);
    for (int v = 0; v < NV; ++v) f[v] = _mm256_sub_ps(_mm256_castsi256_ps(all[v]), zero);
  }
  // Gathers the low 4 * NV bytes of both 128-bit lanes, or spreads them.
  template <int NV>
  static void store_u8(uint8_t* p, U8 bytes, int count) {
    if (NV == 4 && count == 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
      return;
    }
    if (NV == 2 && count == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(bytes, 0x08)));
      return;
    }
    const __m128i low = _mm256_castsi256_si128(bytes);
    if (NV == 4 && count == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
      return;
    }
    if (NV == 4 && count == 24) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 16), _mm256_extracti128_si256(bytes, 1));
      return;
    }
    if (NV == 3 && count == 24) {  // the first row of twelve bytes, and what follows it, which is written over
      const __m128i high = _mm256_extracti128_si256(bytes, 1);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 12), high);
      const int32_t last = _mm_extract_epi32(high, 2);
      __builtin_memcpy(p + 20, &last, 4);
      return;
    }
    if (NV != 3 && count == 8) {
      const __m128i first = NV == 1 ? _mm_unpacklo_epi32(low, _mm256_extracti128_si256(bytes, 1)) : low;
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), first);
      return;
    }
    alignas(32) uint8_t b[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(b), bytes);
    for (int i = 0; i < count; ++i) p[i] = b[i / (4 * NV) * 16 + i % (4 * NV)];
  }
  // Rows of 8 * NV columns that were narrowed together: row r's are the vectors from r * NV on.
  template <int NV>
  static void store_joined(uint8_t* out, int64_t stride, const int64_t (&places)[4 / NV], int, U8 bytes) {
    const auto row = [&](int r) { return reinterpret_cast<__m128i*>(out + places[r] * stride); };
    if constexpr (NV == 2) {
      bytes = _mm256_permute4x64_epi64(bytes, 0xD8);
      _mm_storeu_si128(row(0), _mm256_castsi256_si128(bytes));
      _mm_storeu_si128(row(1), _mm256_extracti128_si256(bytes, 1));
    } else {
      const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
      const __m128i above = _mm_unpacklo_epi32(low, high), below = _mm_unpackhi_epi32(low, high);
      _mm_storel_epi64(row(0), above);
      _mm_storel_epi64(row(1), _mm_unpackhi_epi64(above, above));
      _mm_storel_epi64(row(2), below);
      _mm_storel_epi64(row(3), _mm_unpackhi_epi64(below, below));
    }
  }
  template <int NV>
  static U8 load_joined(const uint8_t* from, int64_t stride, const int64_t (&places)[4 / NV], int) {
    const auto row = [&](int r) { return reinterpret_cast<const __m128i*>(from + places[r] * stride); };
    if constexpr (NV == 2) {
      return _mm256_permute4x64_epi64(_mm256_set_m128i(_mm_loadu_si128(row(1)), _mm_loadu_si128(row(0))), 0xD8);
    } else {
      const auto pair = [&](int r) {
        return _mm_castsi128_ps(_mm_unpacklo_epi64(_mm_loadl_epi64(row(r)), _mm_loadl_epi64(row(r + 1))));
      };
      const __m128 above = pair(0), below = pair(2);
      return _mm256_castps_si256(
          _mm256_set_m128(_mm_shuffle_ps(above, below, 0xDD), _mm_shuffle_ps(above, below, 0x88)));
    }
  }
  // Columns of a panel (epilogue.h) in sequence.
  template <int NV>
  static void order(const I32 (&x)[NV], I32 (&y)[NV]) {
    static_assert(NV == 1 || NV == 2);
    if constexpr (NV == 1) {
      y[0] = x[0];
    } else {
      y[0] = _mm256_permute2x128_si256(x[0], x[1], 0x20);
      y[1] = _mm256_permute2x128_si256(x[0], x[1], 0x31);
    }
  }
  template <int NV>
  static U8 load_u8(const uint8_t* p, int count) {
    if (NV == 4 && count == 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const auto* source = reinterpret_cast<const __m128i*>(p);
    if (NV == 4 && count == 24) return _mm256_setr_m128i(_mm_loadu_si128(source), _mm_loadl_epi64(source + 1));
    if (NV == 4 && count == 16) return _mm256_zextsi128_si256(_mm_loadu_si128(source));
    if (NV == 4 && count == 8) return _mm256_zextsi128_si256(_mm_loadl_epi64(source));
    if (NV == 2 && count == 16) return _mm256_permute4x64_epi64(_mm256_castsi128_si256(_mm_loadu_si128(source)), 0x50);
    if (NV == 1 && count == 8)
      return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(source)),
                                         _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    alignas(32) uint8_t b[32] = {};
    for (int i = 0; i < count; ++i) b[i / (4 * NV) * 16 + i % (4 * NV)] = p[i];
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(b));
  }
  static U8 max_u8(U8 a, U8 b) { return _mm256_max_epu8(a, b); }
  static U8 flip(U8 bytes, uint8_t mask) { return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(mask))); }
  // `n` bytes, whole blocks. A half of the table is eight rows of 16 entries, each as its difference from the row
  // before: a byte takes the entries of its column (low four bits) up to its row, whose sum is the row's entry. After
  // that it is negative, and gets zeros. On Zen 3 a byte takes half a cycle; by itself it takes two.
  static void lookup_blocks(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out) {
    __m128i rows[16];
    const auto* entries = reinterpret_cast<const __m128i*>(table);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      rows[i] = _mm_loadu_si128(entries + i);
      if (i % 8 > 0) rows[i] = _mm_xor_si128(rows[i], _mm_loadu_si128(entries + i - 1));
    }
    const auto row = [&](int i) { return _mm256_broadcastsi128_si256(rows[i]); };
    const __m256i top = _mm256_set1_epi8(-128), down = _mm256_set1_epi8(16);
    for (int64_t i = 0; i < n; i += kLookupBytes) {
      __m256i low[2], high[2], found[2];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        low[v] = load_whole(x + i + 32 * v);
        high[v] = _mm256_xor_si256(low[v], top);
        found[v] = _mm256_xor_si256(_mm256_shuffle_epi8(row(0), low[v]), _mm256_shuffle_epi8(row(8), high[v]));
      }
#pragma GCC unroll 7
      for (int r = 1; r < 8; ++r) {
        const __m256i first = row(r), second = row(8 + r);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          low[v] = _mm256_subs_epi8(low[v], down);
          high[v] = _mm256_subs_epi8(high[v], down);
          found[v] = _mm256_xor_si256(found[v], _mm256_shuffle_epi8(first, low[v]));
          found[v] = _mm256_xor_si256(found[v], _mm256_shuffle_epi8(second, high[v]));
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) store_16(out + i + 32 * v, found[v]);
    }
  }
  static U8 lookup(U8 bytes, const uint8_t* table) {
    alignas(32) uint8_t b[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(b), bytes);
    for (int i = 0; i < 32; ++i) b[i] = table[b[i]];
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(b));
  }
};

}  // namespace
}  // namespace zeropoint
