// What zeropoint.backend asks the library: which instruction sets there are, and which one is in use.
#include <atomic>

#include "../kernels/dispatch.h"
#include "../torch_stable.h"

namespace zeropoint {
namespace {

int64_t current() { return current_isa(); }
int64_t count() { return isa_count(); }
std::string name(int64_t index) {
  ZP_REQUIRE(index >= 0 && index < isa_count(), "isa_name: no instruction set number " + std::to_string(index));
  return isa_at(static_cast<int>(index)).table->name;
}
bool available(int64_t index) {
  ZP_REQUIRE(index >= 0 && index < isa_count(), "isa_available: no instruction set number " + std::to_string(index));
  return isa_at(static_cast<int>(index)).available;
}
// Operations done in `iterations` rounds of the dot product on registers.
int64_t dot_peak(int64_t iterations) {
  static std::atomic<int32_t> sink;
  sink = kernels().dot_peak(iterations);
  return iterations * kernels().dot_peak_ops;
}
void select(int64_t index) { select_isa(static_cast<int>(index)); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CompositeExplicitAutograd, m) {
  m.impl("isa_current", TORCH_BOX(&current));
  m.impl("isa_count", TORCH_BOX(&count));
  m.impl("isa_name", TORCH_BOX(&name));
  m.impl("isa_available", TORCH_BOX(&available));
  m.impl("isa_dot_peak", TORCH_BOX(&dot_peak));
  m.impl("isa_select", TORCH_BOX(&select));
}

}  // namespace zeropoint
