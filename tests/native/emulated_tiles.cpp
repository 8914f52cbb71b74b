// The products of amx/table.cpp with its eight tile registers in memory, as the instruction set's manual has them.
#include <cstring>

#include "../../csrc/kernels/avx512vnni/simd.h"
#include "../../csrc/kernels/shared/table.h"
#include "../../csrc/kernels/shared/tiles.h"

namespace zeropoint {
namespace {

struct EmulatedTiles {
  static inline uint8_t registers[8][16][64];
  static inline bool configured = false;

  static void configure() { configured = true; }
  static void release() { configured = false; }
  template <int I>
  static void zero() {
    std::memset(registers[I], 0, sizeof registers[I]);
  }
  template <int I>
  static void load(const uint8_t* p, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(registers[I][row], p + row * stride, 64);
  }
  template <int I>
  static void store(uint8_t* p, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(p + row * stride, registers[I][row], 64);
  }
  template <int C, int A, int B>
  static void dot() {
    for (int m = 0; m < 16 && configured; ++m)
      for (int n = 0; n < 16; ++n) {
        uint32_t sum;
        std::memcpy(&sum, registers[C][m] + 4 * n, 4);
        for (int k = 0; k < 64; ++k)
          sum += static_cast<uint32_t>(registers[A][m][k] * static_cast<int8_t>(registers[B][k / 4][4 * n + k % 4]));
        std::memcpy(registers[C][m] + 4 * n, &sum, 4);
      }
  }
};

constexpr KernelTable emulated_table() {
  KernelTable table = make_table<Avx512Vnni>("amx (emulated)");
  table.igemm_scratch = tiles_scratch<Avx512Vnni>;
  table.igemm = igemm_tiles<Avx512Vnni, EmulatedTiles>;
  return table;
}

}  // namespace

extern const KernelTable kEmulatedTilesTable;
constexpr KernelTable kEmulatedTilesTable = emulated_table();

}  // namespace zeropoint
