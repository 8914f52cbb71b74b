#include "../shared/table.h"

#include "simd.h"

namespace zeropoint {
constexpr KernelTable kScalarTable = make_table<Scalar>("scalar");
}
