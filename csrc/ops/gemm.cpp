#include "gemm.h"

#include <algorithm>

#include "threads.h"

namespace zeropoint {

const PackedHeader& linear_header(const char* what, const KernelTable& table, const Tensor& weight,
                                  const Tensor& packed) {
  const PackedHeader& h = read_header(bytes(packed), packed.numel(), table, what);
  ZP_REQUIRE(h.kind == PackKind::kDirect && h.unique_taps == 1 && h.groups == 1,
             std::string(what) + ": `packed` is a packed convolution weight; use linear_pack");
  ZP_REQUIRE(weight.dim() == 2 && weight.size(0) == h.n && weight.size(1) == h.kc,
             std::string(what) + ": weight and packed disagree in shape");
  return h;
}

void start_rows(const KernelTable& table, const uint8_t* rows, int64_t stride, int64_t count, int64_t k,
                int32_t b_zero_point, int32_t* init) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t sum, squares;
    table.row_sums(rows + i * stride, k, 0, &sum, &squares);
    init[i] = static_cast<int32_t>(-static_cast<uint32_t>(b_zero_point) * static_cast<uint32_t>(sum));
  }
}

// Few rows: each thread takes panels, so that each weight is read by one thread only. Many rows, or panels that cannot
// be shared evenly: each thread takes rows, so that each activation is read by one thread only.
static bool shares_panels(int64_t rows, int64_t panels) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  return rows <= kMaxRows || (rows < 8 * threads * kMaxRows && panels % threads == 0);
}

void run_igemm(const KernelTable& table, const IgemmParams& product, int64_t m) {
  IgemmParams p = product;
  const TableAfter after(p.epilogue, p.out);
  const int64_t panel_cols = table.panel_columns(), panels = table.panels(p.n);
  const int64_t k = p.taps * p.kc;
  const size_t scratch_bytes = table.igemm_scratch(p);
  const auto rows = [&](int64_t begin, int64_t end) {
    uint8_t* worker = scratch(Scratch::kWorker, scratch_bytes);
    if (!after.table) return table.igemm(p, begin, end, 0, panels, worker);
    // Blocks that stay in the first cache, of enough rows to reuse the weights.
    const int64_t block = std::max<int64_t>(8, 24576 / (kMaxRows * p.n)) * kMaxRows;
    for (int64_t row = begin; row < end; row += block) {
      const int64_t last = std::min(end, row + block);
      table.igemm(p, row, last, 0, panels, worker);
      if (p.out_stride == p.n)
        after(table, row * p.n, last * p.n);
      else
        for (int64_t i = row; i < last; ++i) after(table, i * p.out_stride, i * p.out_stride + p.n);
    }
  };
  // In an order of its own, a product is cut into tiles, not rows.
  const int64_t units = p.order ? m / (p.conv->out_h * p.conv->out_w) * p.tile_count : m;
  if (shares_panels(m, panels)) {
    // Few rows are bound by reading the panels, not by multiplying.
    parallel(panels, std::max<int64_t>(m, 2) * k * panel_cols / 32, [&](int64_t begin, int64_t end) {
      table.igemm(p, 0, units, begin, end, scratch(Scratch::kWorker, scratch_bytes));
      for (int64_t i = 0; after.table && i < m; ++i)
        after(table, i * p.out_stride + begin * panel_cols, i * p.out_stride + std::min(p.n, end * panel_cols));
    });
  } else if (p.order) {
    parallel(units, kMaxRows * k * p.n / 32, rows);
  } else {
    // Whole register tiles, about equal shares.
    const int64_t tiles = (m + kMaxRows - 1) / kMaxRows;
    parallel(tiles, kMaxRows * k * p.n / 32,
             [&](int64_t begin, int64_t end) { rows(begin * kMaxRows, std::min(m, end * kMaxRows)); });
  }
}

void run_winograd(const KernelTable& table, const IgemmParams& p, int64_t batch) {
  const ConvGeometry& g = *p.conv;
  const int64_t tiles = batch * ceil_div(g.out_h, kWinogradTile) * ceil_div(g.out_w, kWinogradTile),
                panels = table.panels(p.n);
  const size_t scratch_bytes = table.winograd_scratch(p);
  const int64_t products = kWinogradPoints * p.kc * p.n / 32;  // of a tile
  // Each thread that takes panels transforms all tiles: little work, of few tiles.
  if (shares_panels(tiles, panels))
    parallel(panels, tiles * products / panels, [&](int64_t begin, int64_t end) {
      table.winograd(p, 0, tiles, begin, end, scratch(Scratch::kWorker, scratch_bytes));
    });
  else
    parallel(tiles, products, [&](int64_t begin, int64_t end) {
      table.winograd(p, begin, end, 0, panels, scratch(Scratch::kWorker, scratch_bytes));
    });
}

}  // namespace zeropoint
