// 256-entry lookup with the table in four registers: two two-register byte permutes, one for each half
// of the table, chosen by the top bit of the index.
#include <immintrin.h>

#include "../kernel_table.h"

namespace zeropoint {

void lookup_avx512vbmi(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out) {
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  const auto look_up = [&](__m512i index) {
    const __m512i low = _mm512_permutex2var_epi8(t0, index, t1), high = _mm512_permutex2var_epi8(t2, index, t3);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
  };
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) _mm512_storeu_si512(out + i, look_up(_mm512_loadu_si512(x + i)));
  if (i == n) return;
  const __mmask64 mask = (1ULL << (n - i)) - 1;
  _mm512_mask_storeu_epi8(out + i, mask, look_up(_mm512_maskz_loadu_epi8(mask, x + i)));
}

}  // namespace zeropoint
