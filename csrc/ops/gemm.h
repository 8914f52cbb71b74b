// How an implicit GEMM is cut into work for threads; shared by linear and convolution.
#pragma once
#include <utility>

#include "../kernels/dispatch.h"
#include "epilogue_params.h"

namespace zeropoint {

// A table looked up on finished bytes while they are in the cache: the instruction set's lookup does 64 bytes at a
// time, an epilogue as many as a row of its tile has.
struct TableAfter {
  const uint8_t* table = nullptr;
  uint8_t* out = nullptr;

  // Takes the table out of the epilogue, unless its bytes are not as stored.
  TableAfter(Epilogue& epilogue, void* target) {
    if (!epilogue.table || epilogue.out_xor) return;
    std::swap(table, epilogue.table);
    out = static_cast<uint8_t*>(target);
  }
  void operator()(const KernelTable& kernel, int64_t begin, int64_t end) const {
    if (table) kernel.lookup(out + begin, end - begin, table, out + begin);
  }
};

// The header of a weight that linear_pack packed from `weight`; another one is an error.
const PackedHeader& linear_header(const char* what, const KernelTable& table, const Tensor& weight,
                                  const Tensor& packed);

// What the right side's zero point (of q - 128) takes from each row of an activation product: Epilogue::row_init.
void start_rows(const KernelTable& table, const uint8_t* rows, int64_t stride, int64_t count, int64_t k,
                int32_t b_zero_point, int32_t* init);

// Runs `p` over its m rows and all panels on torch's threads.
void run_igemm(const KernelTable& table, const IgemmParams& p, int64_t m);
// The same by Winograd's algorithm, over the output pixels of `batch` images.
void run_winograd(const KernelTable& table, const IgemmParams& p, int64_t batch);

}  // namespace zeropoint
