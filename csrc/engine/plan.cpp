#include "plan.h"

#include <algorithm>
#include <set>

#include "../kernels/huge_pages.h"

namespace zeropoint {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kSlack = 64;  // kernels may read past a row's end

// Where the memory that a tensor looks at begins.
const uint8_t* storage_base(const Tensor& t) {
  int64_t offset = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &offset));
  return bytes(t) - offset * element_size(t.scalar_type());
}

Tensor tensor_at(uint8_t* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                 ScalarType dtype) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_create_tensor_from_blob(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                                         torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// While a place is needed: for one value, or for several, of which each takes the place of the one before.
struct Interval {
  std::vector<size_t> values;
  int64_t bytes;
  size_t first, last;  // instructions
  int64_t offset;
};

// Largest first, each at the lowest offset that is free while it is alive.
int64_t place(std::vector<Interval>& intervals) {
  std::stable_sort(intervals.begin(), intervals.end(),
                   [](const Interval& a, const Interval& b) { return a.bytes > b.bytes; });
  int64_t total = 0;
  std::vector<const Interval*> alive;
  for (size_t i = 0; i < intervals.size(); ++i) {
    Interval& one = intervals[i];
    alive.clear();
    for (size_t j = 0; j < i; ++j)
      if (intervals[j].first <= one.last && one.first <= intervals[j].last) alive.push_back(&intervals[j]);
    std::sort(alive.begin(), alive.end(), [](const Interval* a, const Interval* b) { return a->offset < b->offset; });
    int64_t offset = 0;
    for (const Interval* other : alive) {
      if (other->offset - offset >= one.bytes) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    one.offset = offset;
    total = std::max(total, offset + one.bytes);
  }
  return total;
}

}  // namespace

Recording::Recording(const Program& program) : values(static_cast<size_t>(program.value_count_)) {
  for (size_t v = 0; v < values.size(); ++v) values[v].root = v;
}

void Recording::note(const Program& program, size_t i, const Values& run) {
  work.push_back(SharedWork::seen());
  const Instruction& instruction = program.instructions_[i];
  for (const int64_t result : instruction.results) {
    if (result < 0 || !run.tensors[static_cast<size_t>(result)]) continue;
    const Tensor& out = run.tensor(result);
    Seen& seen = values[static_cast<size_t>(result)];
    seen.native = instruction.kind == Instruction::Kind::kNative;
    seen.sizes = sizes_of(out);
    seen.strides = strides_of(out);
    seen.dtype = out.scalar_type();
    seen.elements = out.numel();
    if (instruction.kind != Instruction::Kind::kDispatched || out.numel() == 0) continue;
    for (const Argument& a : instruction.arguments)
      a.for_each_value([&](int64_t v) {
        if (storage_base(run.tensor(v)) == storage_base(out)) seen.root = values[static_cast<size_t>(v)].root;
      });
  }
}

Plan::Plan(const Program& program, const Recording& recording, std::vector<int64_t> integers)
    : integers_(std::move(integers)) {
  const auto count = static_cast<size_t>(program.value_count_);
  placement_.resize(count);
  done_once_.assign(program.instructions_.size(), false);
  const auto root = [&](int64_t v) { return recording.values[static_cast<size_t>(v)].root; };
  std::vector<size_t> first(count, 0), last(count, 0);
  for (size_t i = 0; i < program.instructions_.size(); ++i) {
    const Instruction& instruction = program.instructions_[i];
    for (const Argument& a : instruction.arguments) a.for_each_value([&](int64_t v) { last[root(v)] = i; });
    for (const int64_t r : instruction.results)
      if (r >= 0) first[static_cast<size_t>(r)] = last[static_cast<size_t>(r)] = i;
  }
  std::set<size_t> leaves;
  for (const int64_t output : program.outputs_) leaves.insert(root(output));
  std::vector<Interval> intervals;
  std::vector<int64_t> interval_of(count, -1);
  for (size_t v = 0; v < count; ++v) {
    const Recording::Seen& seen = recording.values[v];
    if (!seen.native || leaves.count(v) || seen.elements == 0) continue;
    Placement& p = placement_[v];
    p.sizes = seen.sizes;
    p.strides = seen.strides;
    p.dtype = seen.dtype;
    // Operators give results without gaps, so that the elements are all there is.
    const int64_t size = seen.elements * element_size(p.dtype) + kSlack;
    interval_of[v] = static_cast<int64_t>(intervals.size());
    intervals.push_back({{v}, (size + kAlignment - 1) / kAlignment * kAlignment, first[v], last[v], 0});
  }
  // A result that comes after the last use of what lies in as many bytes goes there, if its operator can do that:
  // memory that was just read is in a cache. A view of all elements that is in another order is copied by the operator.
  for (size_t i = 0; i < program.instructions_.size(); ++i) {
    const Instruction& instruction = program.instructions_[i];
    const int64_t number = instruction.native.overwrites;
    if (instruction.kind != Instruction::Kind::kNative || number < 0 || instruction.results.empty() ||
        instruction.results[0] < 0)
      continue;
    const Argument& argument = instruction.arguments[static_cast<size_t>(number)];
    if (argument.kind != Argument::Kind::kValue) continue;
    int64_t uses = 0;
    for (const Argument& a : instruction.arguments)
      a.for_each_value([&](int64_t v) { uses += root(v) == root(argument.number); });
    if (uses > 1) continue;
    const auto after = static_cast<size_t>(instruction.results[0]);
    const size_t before = root(argument.number);
    const Recording::Seen &from = recording.values[before], &to = recording.values[after];
    if (interval_of[before] < 0 || interval_of[after] < 0 || last[before] != i || from.elements != to.elements ||
        recording.values[static_cast<size_t>(argument.number)].elements != from.elements || from.dtype != to.dtype)
      continue;
    Interval& own = intervals[static_cast<size_t>(interval_of[after])];
    Interval& shared = intervals[static_cast<size_t>(interval_of[before])];
    shared.values.push_back(after);
    shared.last = own.last;
    own.values.clear();
    interval_of[after] = interval_of[before];
  }
  std::erase_if(intervals, [](const Interval& one) { return one.values.empty(); });
  bytes_ = place(intervals);
  for (const Interval& interval : intervals)
    for (const size_t v : interval.values) placement_[v].offset = interval.offset;
  // Integers are known; views of placed values and constants are made with the frame.
  std::vector<bool> fixed(count, false);
  for (const int64_t c : program.constants_) fixed[static_cast<size_t>(c)] = true;
  for (size_t v = 0; v < count; ++v)
    if (placement_[v].offset >= 0) fixed[v] = true;
  for (size_t i = 0; i < program.instructions_.size(); ++i) {
    const Instruction& instruction = program.instructions_[i];
    if (instruction.kind == Instruction::Kind::kNative) continue;
    bool once = instruction.kind != Instruction::Kind::kDispatched;
    if (!once) {
      once = true;
      for (const Argument& a : instruction.arguments)
        a.for_each_value([&](int64_t v) { once = once && fixed[static_cast<size_t>(v)]; });
      for (const int64_t r : instruction.results) once = once && (r < 0 || root(r) != static_cast<size_t>(r));
    }
    done_once_[i] = once;
    if (once)
      for (const int64_t r : instruction.results)
        if (r >= 0) fixed[static_cast<size_t>(r)] = true;
  }
  kept_ = std::move(fixed);
  find_crews(program, recording);
}

// Runs of instructions that share work more than once among them and leave torch's threads alone: those of ATen use
// them, unless all they do is look at a value in another way, and teams do.
void Plan::find_crews(const Program& program, const Recording& recording) {
  const size_t count = program.instructions_.size();
  const auto alone = [&](size_t i) {
    const Instruction& instruction = program.instructions_[i];
    if (done_once_[i]) return false;
    if (instruction.kind == Instruction::Kind::kDispatched)
      return !std::all_of(instruction.results.begin(), instruction.results.end(), [&](int64_t r) {
        return r >= 0 && recording.values[static_cast<size_t>(r)].root != static_cast<size_t>(r);
      });
    return recording.work[i + 1].teams != recording.work[i].teams;
  };
  crew_until_.resize(count);
  for (size_t i = 0; i < count;) {
    size_t end = i;
    while (end < count && !alone(end)) ++end;
    const bool worth = recording.work[end].shared - recording.work[i].shared > 1;
    for (size_t j = i; j < std::max(end, i + 1); ++j) crew_until_[j] = worth ? end : j;
    i = std::max(end, i + 1);
  }
}

std::unique_ptr<Frame> Plan::make_frame(const Program& program) const {
  auto frame = std::make_unique<Frame>();
  frame->memory.reset(new uint8_t[static_cast<size_t>(bytes_ + kAlignment)]);
  prefer_huge_pages(frame->memory.get(), static_cast<size_t>(bytes_ + kAlignment));
  uint8_t* memory = frame->memory.get();
  memory += (kAlignment - reinterpret_cast<uintptr_t>(memory) % kAlignment) % kAlignment;
  frame->values.integers = integers_;
  frame->caches.resize(program.instructions_.size());
  frame->values.tensors.resize(placement_.size());
  for (size_t i = 0; i < program.constants_.size(); ++i)
    frame->values.tensors[static_cast<size_t>(program.constants_[i])] = program.constant_tensors_[i];
  for (size_t v = 0; v < placement_.size(); ++v) {
    const Placement& p = placement_[v];
    if (p.offset >= 0) frame->values.tensors[v] = tensor_at(memory + p.offset, p.sizes, p.strides, p.dtype);
  }
  for (size_t i = 0; i < done_once_.size(); ++i)
    if (done_once_[i] && program.instructions_[i].kind == Instruction::Kind::kDispatched)
      program.execute(i, frame->values);
  return frame;
}

std::unique_ptr<Frame> Plan::acquire(const Program& program) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      auto frame = std::move(free_.back());
      free_.pop_back();
      return frame;
    }
  }
  ++frames_made_;
  return make_frame(program);
}

void Plan::release(std::unique_ptr<Frame> frame) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(frame));
}

}  // namespace zeropoint
