// AMX: products of 8-bit tiles; AVX-512 VNNI does the rest. The logic is tested with a tile unit in C++ (tests/native);
// on a CPU that has AMX it has not run yet, so nothing chooses it by itself (dispatch.cpp).
#include <immintrin.h>

#include "../avx512vnni/simd.h"
#include "../shared/tiles.h"

namespace zeropoint {
namespace {

struct AmxTiles {
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64, "the layout of a tile configuration");
    _tile_loadconfig(&config);
  }
  static void release() { _tile_release(); }
  // By hand: GCC's macros want the register's number spelled out.
  template <int I>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(I));
  }
  template <int I>
  static void load(const uint8_t* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  static void store(uint8_t* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(I) : "memory");
  }
  // 32-bit sums of unsigned (A) times signed (B) bytes.
  template <int C, int A, int B>
  static void dot() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace

size_t igemm_scratch_amx(const IgemmParams& p) { return tiles_scratch<Avx512Vnni>(p); }

void igemm_amx(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch) {
  igemm_tiles<Avx512Vnni, AmxTiles>(p, m0, m1, panel0, panel1, scratch);
}

}  // namespace zeropoint
