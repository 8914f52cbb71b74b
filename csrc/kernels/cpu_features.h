// What the CPU and the operating system let this process execute.
#pragma once

namespace zeropoint {

struct CpuFeatures {
  bool avx2 = false;        // AVX2 and FMA
  bool avx512vnni = false;  // AVX-512 F, BW, DQ, VL and VNNI
  bool avx512vbmi = false;
};

const CpuFeatures& cpu_features();

}  // namespace zeropoint
