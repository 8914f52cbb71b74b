#include "../shared/table.h"

#include "simd.h"

namespace zeropoint {
constexpr KernelTable kAvxVnniTable = make_table<AvxVnni>("avxvnni");
}
