#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu_features.h"

namespace zeropoint {
namespace {

// Tables are put together here, in code for any CPU: an instruction set's object holds constants and kernels.
#ifdef ZEROPOINT_X86
KernelTable with_lookup(KernelTable table) {
  table.lookup = cpu_features().avx512vbmi ? lookup_avx512vbmi : kAvx2Table.lookup;
  return table;
}

KernelTable with_amx(KernelTable table) {
  table.name = "amx";
  table.igemm_scratch = igemm_scratch_amx;
  table.igemm = igemm_amx;
  return table;
}

const Isa* isas() {
  static const KernelTable avx512vnni = with_lookup(kAvx512VnniTable), amx = with_amx(avx512vnni);
  static const Isa list[] = {
      {&kScalarTable, true},
      {&kAvx2Table, cpu_features().avx2},
      {&kAvxVnniTable, cpu_features().avxvnni},
      {&avx512vnni, cpu_features().avx512vnni},
      {&amx, cpu_features().amx, true},
  };
  return list;
}
constexpr int kIsaCount = 5;
#elif defined(ZEROPOINT_ARM64)
const Isa* isas() {
  static const Isa list[] = {
      {&kScalarTable, true},
      {&kNeonDotprodTable, cpu_features().neon_dotprod},
      {&kNeonI8mmTable, cpu_features().neon_i8mm},
  };
  return list;
}
constexpr int kIsaCount = 3;
#else
const Isa* isas() {
  static const Isa list[] = {{&kScalarTable, true}};
  return list;
}
constexpr int kIsaCount = 1;
#endif

// An unknown name in ZEROPOINT_ISA caps nothing here; zeropoint.backend raises on it at import, where
// an error can be read.
int best_isa() {
  const char* cap = std::getenv("ZEROPOINT_ISA");
  int best = 0;
  for (int i = 0; i < kIsaCount; ++i) {
    const bool named = cap && std::strcmp(cap, isas()[i].table->name) == 0;
    if (isas()[i].available && (named || !isas()[i].untried)) best = i;
    if (cap && std::strcmp(cap, isas()[i].table->name) == 0) break;
  }
  return best;
}

std::atomic<int>& selected() {
  static std::atomic<int> index{best_isa()};
  return index;
}

}  // namespace

int isa_count() { return kIsaCount; }
Isa isa_at(int index) { return isas()[index]; }
int current_isa() { return selected().load(std::memory_order_relaxed); }
const KernelTable& kernels() { return *isas()[current_isa()].table; }

void select_isa(int index) {
  if (index < 0 || index >= kIsaCount)
    throw std::invalid_argument("select_isa: no instruction set number " + std::to_string(index));
  if (!isas()[index].available)
    throw std::invalid_argument(std::string("select_isa: this CPU does not support ") + isas()[index].table->name);
  selected().store(index, std::memory_order_relaxed);
}

}  // namespace zeropoint
