// AVX-512 with VNNI and VBMI by SIMDe, and what that lacks by hand, for CPUs without them (EMULATE in CMakeLists.txt).
// It stands in for the compiler's header of that name, which it includes for AVX2.
#pragma once
#include_next <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace emulated {

template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Element, int N>
struct Lanes {
  Element at[N];
};
using Words = Lanes<int32_t, 16>;
using Floats = Lanes<float, 16>;

template <class Vector>
Vector load_bytes(uint64_t mask, const void* from) {
  Lanes<uint8_t, sizeof(Vector)> lanes = {};
  for (size_t i = 0; i < sizeof(Vector); ++i)
    if (mask >> i & 1) lanes.at[i] = static_cast<const uint8_t*>(from)[i];
  return bits<Vector>(lanes);
}
template <class Vector>
void store_bytes(void* to, uint64_t mask, Vector v) {
  const auto lanes = bits<Lanes<uint8_t, sizeof(Vector)>>(v);
  for (size_t i = 0; i < sizeof(Vector); ++i)
    if (mask >> i & 1) static_cast<uint8_t*>(to)[i] = lanes.at[i];
}
inline __m128i low_bytes(__m512i v) {
  const Words words = bits<Words>(v);
  Lanes<uint8_t, 16> lanes;
  for (int i = 0; i < 16; ++i) lanes.at[i] = static_cast<uint8_t>(words.at[i]);
  return bits<__m128i>(lanes);
}
inline __m512i widen_bytes(__m128i v) {
  const auto lanes = bits<Lanes<uint8_t, 16>>(v);
  Words words;
  for (int i = 0; i < 16; ++i) words.at[i] = lanes.at[i];
  return bits<__m512i>(words);
}
// By way of AVX2, which converts as AVX-512 does.
inline __m512 to_floats(__m512i v) {
  const auto halves = bits<Lanes<__m256i, 2>>(v);
  return bits<__m512>(Lanes<__m256, 2>{_mm256_cvtepi32_ps(halves.at[0]), _mm256_cvtepi32_ps(halves.at[1])});
}
inline __m512i to_integers(__m512 v) {
  const auto halves = bits<Lanes<__m256, 2>>(v);
  return bits<__m512i>(Lanes<__m256i, 2>{_mm256_cvtps_epi32(halves.at[0]), _mm256_cvtps_epi32(halves.at[1])});
}
inline __m512i expand(__mmask16 mask, __m512i v) {
  const Words words = bits<Words>(v);
  Words spread = {};
  for (int i = 0, next = 0; i < 16; ++i)
    if (mask >> i & 1) spread.at[i] = words.at[next++];
  return bits<__m512i>(spread);
}
inline int32_t sum(__m512i v) {
  uint32_t total = 0;
  for (const int32_t word : bits<Words>(v).at) total += static_cast<uint32_t>(word);
  return static_cast<int32_t>(total);
}
template <class All, class Vector>
auto largest(Vector v) {
  const All lanes = bits<All>(v);
  auto most = lanes.at[0];
  for (const auto lane : lanes.at) most = lane > most ? lane : most;
  return most;
}

}  // namespace emulated

#define _mm256_maskz_loadu_epi8(mask, p) emulated::load_bytes<__m256i>(mask, p)
#define _mm256_mask_storeu_epi8(p, mask, v) emulated::store_bytes<__m256i>(p, mask, v)
#define _mm512_maskz_loadu_epi8(mask, p) emulated::load_bytes<__m512i>(mask, p)
#define _mm512_mask_storeu_epi8(p, mask, v) emulated::store_bytes<__m512i>(p, mask, v)
#define _mm512_cvtepi32_epi8(v) emulated::low_bytes(v)
#define _mm512_cvtepu8_epi32(v) emulated::widen_bytes(v)
#define _mm512_cvtepi32_ps(v) emulated::to_floats(v)
#define _mm512_cvtps_epi32(v) emulated::to_integers(v)
#define _mm512_maskz_expand_epi32(mask, v) emulated::expand(mask, v)
#define _mm512_reduce_add_epi32(v) emulated::sum(v)
#define _mm512_reduce_max_epi32(v) emulated::largest<emulated::Words>(v)
#define _mm512_reduce_max_ps(v) emulated::largest<emulated::Floats>(v)
