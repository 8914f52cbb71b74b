// Vocabulary of AVX-VNNI: AVX2 with the 256-bit dot product of bytes, for CPUs without AVX-512. Where the compiler has
// AVX-512VL instead, the same operation in its encoding: that is how it is tested on CPUs that lack AVX-VNNI.
#pragma once
#include "../avx2/simd.h"

namespace zeropoint {
namespace {

struct AvxVnni : Avx2 {
  using Half = AvxVnni;  // never used: kHalfLanes is 0
  using DwWeight = __m256i;
  using DwInput = __m256i;
  using GroupA = __m256i;
  using GroupB = __m256i;
  static constexpr bool kSplits = false;
  static constexpr int kDwBytes = 32;
  static constexpr int kDwInputBytes = 32;

  static I32 dot(I32 acc, I32 a, I32 b) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(acc, a, b);
#else
    return _mm256_dpbusd_epi32(acc, a, b);
#endif
  }

  static GroupA broadcast_group(const int8_t* p) { return broadcast_a(reinterpret_cast<const uint8_t*>(p)); }
  static GroupB group_bytes(const uint8_t* p) { return load_i32(reinterpret_cast<const int32_t*>(p)); }
  static void group_nibbles(const uint8_t* p, GroupB& low, GroupB& high) {
    const __m256i x = group_bytes(p), mask = _mm256_set1_epi8(0x0F);
    low = _mm256_and_si256(x, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
  }
  static I32 dot_group(I32 acc, GroupB b, GroupA a) { return dot(acc, b, a); }

  static DwWeight load_dw(const uint8_t* p) { return group_bytes(p); }
  static DwInput load_dw_input(const uint8_t* p) { return group_bytes(p); }
  static void store_dw_input(uint8_t* p, I32 mixed) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), mixed); }
  static I32 dot_dw(I32 acc, DwInput x, DwWeight w) { return dot(acc, x, w); }
  static I32 dot_mixed(I32 acc, I32 x, DwWeight w) { return dot(acc, x, w); }
};

}  // namespace
}  // namespace zeropoint
