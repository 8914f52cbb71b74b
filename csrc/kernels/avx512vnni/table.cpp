#include "../shared/table.h"

#include "simd.h"

namespace zeropoint {
constexpr KernelTable kAvx512VnniTable = make_table<Avx512Vnni>("avx512vnni");
}
