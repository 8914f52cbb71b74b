#include "../shared/table.h"
#include "simd.h"

namespace zeropoint {
constexpr KernelTable kNeonI8mmTable = make_table<Neon>("neon_i8mm");
}
