// How an implicit GEMM is cut into work for threads; shared by linear and convolution.
#pragma once
#include "../kernels/dispatch.h"
#include "epilogue_params.h"

namespace zeropoint {

// Runs `p` over its m rows and all panels on torch's threads.
void run_igemm(const KernelTable& table, const IgemmParams& p, int64_t m);

}  // namespace zeropoint
