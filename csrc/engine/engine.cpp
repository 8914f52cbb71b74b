// zeropoint::program_*: programs by number, for Python.
#include <shared_mutex>

#include "../kernels/huge_pages.h"
#include "program.h"

namespace zeropoint {
namespace {

struct Programs {
  std::shared_mutex mutex;
  std::map<int64_t, std::shared_ptr<Program>> by_number;
  int64_t next = 1;
};

Programs& programs() {
  static Programs all;
  return all;
}

std::shared_ptr<Program> find(int64_t number) {
  Programs& all = programs();
  const std::shared_lock<std::shared_mutex> lock(all.mutex);
  const auto found = all.by_number.find(number);
  ZP_REQUIRE(found != all.by_number.end(), "program_run: there is no program number " + std::to_string(number));
  return found->second;
}

int64_t create(Tensor code, std::string names, std::vector<Tensor> constants) {
  auto program = std::make_shared<Program>(code, names, std::move(constants));
  Programs& all = programs();
  const std::unique_lock<std::shared_mutex> lock(all.mutex);
  all.by_number.emplace(all.next, std::move(program));
  return all.next++;
}

std::vector<Tensor> run(int64_t number, std::vector<Tensor> inputs) { return find(number)->run(inputs); }

// Seconds per instruction, float64.
Tensor profile(int64_t number, std::vector<Tensor> inputs) {
  const auto program = find(number);
  Tensor seconds = empty_contiguous({static_cast<int64_t>(program->size())}, ScalarType::Double);
  auto* out = static_cast<double*>(seconds.data_ptr());
  std::fill_n(out, program->size(), 0.0);
  program->run(inputs, out);
  return seconds;
}

int64_t planned_bytes(int64_t number) { return find(number)->planned_bytes(); }

void release(int64_t number) {
  Programs& all = programs();
  const std::unique_lock<std::shared_mutex> lock(all.mutex);
  all.by_number.erase(number);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CompositeExplicitAutograd, m) {
  m.impl("program_create", TORCH_BOX(&create));
  m.impl("program_run", TORCH_BOX(&run));
  m.impl("program_profile", TORCH_BOX(&profile));
  m.impl("program_bytes", TORCH_BOX(&planned_bytes));
}

}  // namespace zeropoint

// No operators, which a dispatch mode would record into a graph: Python collects garbage anywhere, and builds programs
// wherever it runs them.
extern "C" __attribute__((visibility("default"))) void zeropoint_program_release(int64_t number) {
  zeropoint::release(number);
}
extern "C" __attribute__((visibility("default"))) void zeropoint_prefer_huge_pages(void* data, size_t bytes) {
  zeropoint::prefer_huge_pages(data, bytes);
}
