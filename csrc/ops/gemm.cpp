#include "gemm.h"

#include <algorithm>

namespace zeropoint {

void run_igemm(const KernelTable& table, const IgemmParams& p, int64_t m) {
  const int64_t panel_cols = table.panel_columns(), panels = table.panels(p.n);
  const int64_t k = p.taps * p.kc;
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const size_t scratch_bytes = table.igemm_scratch(p);
  // Few rows: each thread takes panels, so that each weight is read by one thread only. Many rows, or panels
  // that cannot be shared evenly: each thread takes rows, so that each activation is read by one thread only.
  const bool by_panels = m <= kMaxRows || (m < 8 * threads * kMaxRows && panels % threads == 0);
  if (threads == 1) {
    table.igemm(p, 0, m, 0, panels, scratch(Scratch::kWorker, scratch_bytes));
  } else if (by_panels) {
    // Few rows are bound by reading the panels, not by multiplying.
    parallel(panels, std::max<int64_t>(m, 2) * k * panel_cols / 32, [&](int64_t begin, int64_t end) {
      table.igemm(p, 0, m, begin, end, scratch(Scratch::kWorker, scratch_bytes));
    });
  } else {
    // Whole register tiles, about equal shares.
    const int64_t tiles = (m + kMaxRows - 1) / kMaxRows;
    parallel(tiles, kMaxRows * k * p.n / 32, [&](int64_t begin, int64_t end) {
      table.igemm(p, begin * kMaxRows, std::min(m, end * kMaxRows), 0, panels,
                  scratch(Scratch::kWorker, scratch_bytes));
    });
  }
}

}  // namespace zeropoint
