// Built with baseline flags: this file decides what may run, so it must itself run anywhere.
#include "cpu_features.h"

namespace zeropoint {

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    CpuFeatures f;
#ifdef ZEROPOINT_X86
    __builtin_cpu_init();
    // The builtin checks XCR0 as well: a feature counts only if the system saves its registers.
    f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    f.avx512vnni = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni");
    f.avx512vbmi = f.avx512vnni && __builtin_cpu_supports("avx512vbmi");
#endif
    return f;
  }();
  return features;
}

}  // namespace zeropoint
