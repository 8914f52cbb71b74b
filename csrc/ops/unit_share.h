// How the members of a team share a recurrent layer's units: what a member multiplies it also activates, where the
// columns of its units are whole panels.
#pragma once
#include <algorithm>

#include "../kernels/dispatch.h"
#include "../torch_stable.h"

namespace zeropoint {

struct UnitShare {
  int64_t hidden, gates, panels;
  bool aligned;  // panels end with gates: a member takes the same units of each gate
  int64_t step, blocks;

  UnitShare(const KernelTable& kernel, int64_t hidden, int64_t gates)
      : hidden(hidden),
        gates(gates),
        panels(kernel.panels(gates * hidden)),
        aligned(hidden % kernel.panel_columns() == 0),
        step(aligned ? kernel.panel_columns() : 16),
        blocks((hidden + step - 1) / step) {}

  // Whether a step of `rows` rows is over before a second thread is there.
  bool small(int64_t rows) const { return rows * hidden * gates * hidden < 200000; }

  int64_t block(int64_t rank, int64_t size) const { return blocks * rank / size; }
  int64_t first(int64_t rank, int64_t size) const { return block(rank, size) * step; }
  int64_t count(int64_t rank, int64_t size) const {
    return std::min(hidden, block(rank + 1, size) * step) - first(rank, size);
  }
  // Where not `aligned`, the others' columns are needed: members meet after it.
  void multiply(const KernelTable& kernel, const IgemmParams& p, int64_t m, int64_t rank, int64_t size) const {
    uint8_t* worker = scratch(Scratch::kWorker, kernel.igemm_scratch(p));
    if (size == 1) {
      kernel.igemm(p, 0, m, 0, panels, worker);
    } else if (aligned) {
      for (int64_t g = 0; g < gates; ++g)
        kernel.igemm(p, 0, m, g * blocks + block(rank, size), g * blocks + block(rank + 1, size), worker);
    } else {
      kernel.igemm(p, 0, m, panels * rank / size, panels * (rank + 1) / size, worker);
    }
  }
};

}  // namespace zeropoint
