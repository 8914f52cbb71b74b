// What the CPU and the operating system let this process execute.
#pragma once

namespace zeropoint {

struct CpuFeatures {
  bool avx2 = false;        // AVX2 and FMA
  bool avxvnni = false;     // the same with 256-bit VNNI
  bool avx512vnni = false;  // AVX-512 F, BW, DQ, VL and VNNI
  bool avx512vbmi = false;
  bool amx = false;  // tiles of bytes, and the system lets this process use them
  bool neon_dotprod = false;
  bool neon_i8mm = false;
};

const CpuFeatures& cpu_features();

}  // namespace zeropoint
