// Which kernel table the process uses. Chosen once from the CPU, capped by ZEROPOINT_ISA, and
// switchable at run time for tests and measurements.
#pragma once
#include "kernel_table.h"

namespace zeropoint {

struct Isa {
  const KernelTable* table;
  bool available;        // this CPU can run it
  bool untried = false;  // it has not run on such a CPU yet: used only where its name is given
};

// Slowest first; a cap allows the named set and those before it.
int isa_count();
Isa isa_at(int index);

const KernelTable& kernels();
int current_isa();
// Throws std::invalid_argument if the CPU lacks the set or the index is out of range.
void select_isa(int index);

}  // namespace zeropoint
