// Built with baseline flags: this file decides what may run, so it must itself run anywhere.
#include "cpu_features.h"

#ifdef ZEROPOINT_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(ZEROPOINT_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace zeropoint {
namespace {

#ifdef ZEROPOINT_X86
// Linux saves tile registers only for processes that have asked for it.
bool may_use_tiles() {
#ifdef __linux__
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;  // AMX-TILE, AMX-INT8
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;                             // XGETBV
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3U << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    CpuFeatures f;
#ifdef ZEROPOINT_X86
    __builtin_cpu_init();
    // The builtin checks XCR0 as well: a feature counts only if the system saves its registers.
    f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    unsigned a = 0, b = 0, c = 0, d = 0;  // no builtin knows this one in GCC 12
    f.avxvnni = f.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    f.avx512vnni = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni");
    f.avx512vbmi = f.avx512vnni && __builtin_cpu_supports("avx512vbmi");
    f.amx = f.avx512vnni && may_use_tiles();
#endif
#ifdef ZEROPOINT_ARM64
#ifdef __linux__
    f.neon_dotprod = getauxval(AT_HWCAP) >> 20 & 1;                    // HWCAP_ASIMDDP
    f.neon_i8mm = f.neon_dotprod && (getauxval(AT_HWCAP2) >> 13 & 1);  // HWCAP2_I8MM
#elif defined(__APPLE__)
    f.neon_dotprod = true;  // every Apple CPU that runs macOS
#endif
#endif
    return f;
  }();
  return features;
}

}  // namespace zeropoint
