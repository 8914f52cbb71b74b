#include "../shared/table.h"
#include "simd.h"

namespace zeropoint {
constexpr KernelTable kNeonDotprodTable = make_table<Neon>("neon_dotprod");
}
