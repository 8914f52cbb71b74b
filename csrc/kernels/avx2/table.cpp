#include "../shared/table.h"

#include "simd.h"

namespace zeropoint {
constexpr KernelTable kAvx2Table = make_table<Avx2>("avx2");
}
