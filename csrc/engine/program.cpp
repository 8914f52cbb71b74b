#include "program.h"

#include <chrono>
#include <cstring>
#include <set>

#include "plan.h"

namespace zeropoint {
namespace {

constexpr int64_t kMagic = 0x50505A;  // "ZPP"
constexpr int64_t kVersion = 1;
constexpr size_t kPlans = 32;  // shapes remembered at once
constexpr int64_t kMost = int64_t{1} << 24;

// Reads the code with every count and index checked.
class Reader {
 public:
  Reader(const int64_t* data, int64_t size) : data_(data), size_(size) {}
  int64_t next() {
    ZP_REQUIRE(at_ < size_, "program: the code ends early");
    return data_[at_++];
  }
  int64_t below(int64_t bound, const char* what) {
    const int64_t value = next();
    ZP_REQUIRE(value >= 0 && value < bound, std::string("program: ") + what + " " + std::to_string(value) +
                                                " is outside 0.." + std::to_string(bound - 1));
    return value;
  }
  int64_t count(const char* what) { return below(std::min(kMost, size_ - at_ + 1), what); }
  bool done() const { return at_ == size_; }

 private:
  const int64_t* data_;
  int64_t size_, at_ = 0;
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

Argument read_argument(Reader& reader, const std::vector<std::string>& names, int64_t values) {
  Argument a;
  const int64_t tag = reader.next();
  a.optional = tag >= 16;
  a.kind = static_cast<Argument::Kind>(tag % 16);
  switch (a.kind) {
    case Argument::Kind::kNone:
      break;
    case Argument::Kind::kValue:
    case Argument::Kind::kRegister:
      a.number = reader.below(values, "value");
      break;
    case Argument::Kind::kInt:
      a.number = reader.next();
      break;
    case Argument::Kind::kFloat: {
      const int64_t bits = reader.next();
      std::memcpy(&a.real, &bits, 8);
      break;
    }
    case Argument::Kind::kBool:
      a.number = reader.below(2, "bool");
      break;
    case Argument::Kind::kDtype:
      a.number = reader.below(16, "dtype");
      break;
    case Argument::Kind::kInts:
    case Argument::Kind::kValues:
      for (int64_t n = reader.count("length of a list"); n > 0; --n) {
        const bool is_register = reader.below(2, "kind of an item") != 0;
        const bool is_index = is_register || a.kind == Argument::Kind::kValues;
        a.items.push_back({is_register, is_index ? reader.below(values, "value") : reader.next()});
      }
      break;
    case Argument::Kind::kOptionalValues:
      for (int64_t n = reader.count("length of a list"); n > 0; --n)
        a.items.push_back({false, reader.below(values + 1, "value") - 1});
      break;
    case Argument::Kind::kString:
      a.text = names[static_cast<size_t>(reader.below(static_cast<int64_t>(names.size()), "string"))];
      break;
    default:
      ZP_REQUIRE(false, "program: unknown kind of argument " + std::to_string(tag));
  }
  return a;
}

Instruction read_instruction(Reader& reader, const std::vector<std::string>& names, int64_t values) {
  static const std::map<std::string, Instruction::Kind> kIntegers = {
      {"int::size", Instruction::Kind::kSize},
      {"int::add", Instruction::Kind::kAdd},
      {"int::sub", Instruction::Kind::kSub},
      {"int::mul", Instruction::Kind::kMul},
      {"int::floordiv", Instruction::Kind::kFloorDiv},
      {"int::mod", Instruction::Kind::kMod},
      {"int::min", Instruction::Kind::kMin},
      {"int::max", Instruction::Kind::kMax},
      {"int::require_equal", Instruction::Kind::kRequireEqual},
      {"int::require_at_most", Instruction::Kind::kRequireAtMost}};
  Instruction instruction;
  const std::string name = names[static_cast<size_t>(reader.below(static_cast<int64_t>(names.size()), "operator"))];
  instruction.returns_list = reader.below(2, "kind of result") != 0;
  for (int64_t n = reader.count("number of arguments"); n > 0; --n)
    instruction.arguments.push_back(read_argument(reader, names, values));
  for (int64_t n = reader.count("number of results"); n > 0; --n) {
    const int64_t result = reader.next();
    ZP_REQUIRE(result >= -1 && result < values, "program: result " + std::to_string(result) + " is no value");
    instruction.results.push_back(result);
  }
  const std::string prefix = "zeropoint::";
  if (const auto integer = kIntegers.find(name); integer != kIntegers.end()) {
    instruction.kind = integer->second;
    ZP_REQUIRE(instruction.arguments.size() == 2 && instruction.results.size() == 1 && instruction.results[0] >= 0,
               "program: " + name + " takes two arguments and has one result");
  } else if (name.rfind(prefix, 0) == 0) {
    const auto native = native_operators().find(name.substr(prefix.size()));
    ZP_REQUIRE(native != native_operators().end(), "program: there is no native operator " + name);
    instruction.kind = Instruction::Kind::kNative;
    instruction.native = native->second;
    ZP_REQUIRE(instruction.arguments.size() == native->second.arguments,
               "program: " + name + " takes " + std::to_string(native->second.arguments) + " arguments, got " +
                   std::to_string(instruction.arguments.size()));
  } else {
    instruction.kind = Instruction::Kind::kDispatched;
    const size_t dot = name.find('.');
    ZP_REQUIRE(name.rfind("aten::", 0) == 0, "program: operators are zeropoint's or aten's, got " + name);
    instruction.name = name.substr(0, dot);
    instruction.overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  }
  return instruction;
}

template <class T>
StableIValue wrapped(const T& value, bool optional) {
  return optional ? torch::stable::detail::from(std::optional<T>(value)) : torch::stable::detail::from(value);
}

StableIValue to_stack(const Values& values, const Argument& a) {
  switch (a.kind) {
    case Argument::Kind::kNone:
      return torch::stable::detail::from(std::nullopt);
    case Argument::Kind::kValue:
      return wrapped(values.tensor(a.number), a.optional);
    case Argument::Kind::kInt:
      return wrapped(a.number, a.optional);
    case Argument::Kind::kRegister:
      return wrapped(values.integer(a.number), a.optional);
    case Argument::Kind::kFloat:
      return wrapped(a.real, a.optional);
    case Argument::Kind::kBool:
      return wrapped(a.number != 0, a.optional);
    case Argument::Kind::kDtype:
      return wrapped(static_cast<ScalarType>(a.number), a.optional);
    case Argument::Kind::kInts:
      return wrapped(Read<std::vector<int64_t>>::from(values, a), a.optional);
    case Argument::Kind::kValues: {
      std::vector<Tensor> tensors;
      for (const auto& item : a.items) tensors.push_back(values.tensor(item.number));
      return wrapped(tensors, a.optional);
    }
    case Argument::Kind::kOptionalValues: {
      std::vector<OptionalTensor> tensors;
      for (const auto& item : a.items)
        tensors.push_back(item.number < 0 ? OptionalTensor() : OptionalTensor(values.tensor(item.number)));
      return wrapped(tensors, a.optional);
    }
    case Argument::Kind::kString:
      return wrapped(a.text, a.optional);
  }
  throw std::logic_error("program: unknown kind of argument");
}

int64_t floor_div(int64_t a, int64_t b) {
  ZP_REQUIRE(b != 0, "program: division of a size by 0");
  if (b == -1) return static_cast<int64_t>(0 - static_cast<uint64_t>(a));  // of the least integer, a processor's trap
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

// No gradients are recorded while a program runs.
class WithoutGradients {
 public:
  WithoutGradients() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~WithoutGradients() { aoti_torch_grad_mode_set_enabled(before_); }
  WithoutGradients(const WithoutGradients&) = delete;
  WithoutGradients& operator=(const WithoutGradients&) = delete;

 private:
  bool before_;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Program::Program(const Tensor& code, const std::string& names, std::vector<Tensor> constants)
    : constant_tensors_(std::move(constants)) {
  ZP_REQUIRE(code.scalar_type() == ScalarType::Long && code.is_contiguous() && code.dim() == 1,
             "program: code must be contiguous int64 [n]");
  Reader reader(static_cast<const int64_t*>(code.data_ptr()), code.numel());
  ZP_REQUIRE(reader.next() == kMagic && reader.next() == kVersion, "program: not the code of this version");
  const std::vector<std::string> lines = lines_of(names);
  value_count_ = reader.below(kMost, "number of values");
  const auto read_values = [&](std::vector<int64_t>& list, const char* what) {
    for (int64_t n = reader.count(what); n > 0; --n) list.push_back(reader.below(value_count_, "value"));
  };
  read_values(inputs_, "number of inputs");
  read_values(constants_, "number of constants");
  read_values(outputs_, "number of outputs");
  ZP_REQUIRE(
      constants_.size() == constant_tensors_.size(),
      "program: " + std::to_string(constants_.size()) + " constants, got " + std::to_string(constant_tensors_.size()));
  for (int64_t n = reader.count("number of instructions"); n > 0; --n)
    instructions_.push_back(read_instruction(reader, lines, value_count_));
  ZP_REQUIRE(reader.done(), "program: there is more after the last instruction");

  // Every value is defined once, before it is used.
  std::vector<bool> defined(static_cast<size_t>(value_count_), false);
  const auto define = [&](int64_t value) {
    if (value < 0) return;
    ZP_REQUIRE(!defined[static_cast<size_t>(value)], "program: value " + std::to_string(value) + " is defined twice");
    defined[static_cast<size_t>(value)] = true;
  };
  const auto use = [&](int64_t value) {
    ZP_REQUIRE(defined[static_cast<size_t>(value)],
               "program: value " + std::to_string(value) + " is used before it is computed");
  };
  for (const int64_t v : inputs_) define(v);
  for (const int64_t v : constants_) define(v);
  std::vector<int64_t> last(static_cast<size_t>(value_count_), -1);
  for (size_t i = 0; i < instructions_.size(); ++i) {
    for (const Argument& a : instructions_[i].arguments) {
      a.for_each_value([&](int64_t v) {
        use(v);
        last[static_cast<size_t>(v)] = static_cast<int64_t>(i);
      });
      if (a.kind == Argument::Kind::kRegister) use(a.number);
      for (const auto& item : a.items)
        if (item.is_register) use(item.number);
    }
    for (const int64_t v : instructions_[i].results) {
      define(v);
      if (v >= 0) last[static_cast<size_t>(v)] = static_cast<int64_t>(i);
    }
  }
  const std::set<int64_t> fixed(constants_.begin(), constants_.end());
  for (Instruction& instruction : instructions_) {
    const auto is_fixed = [&](const Argument& a) {
      return a.kind != Argument::Kind::kValue || fixed.count(a.number) > 0;
    };
    const auto& a = instruction.arguments;
    // linear and conv2d: x, weight, packed, w_scale, w_zero_point, bias, ..., table.
    instruction.fixed_epilogue = instruction.kind == Instruction::Kind::kNative && a.size() > 6 && is_fixed(a.back());
    for (size_t i = 1; i <= 5 && instruction.fixed_epilogue; ++i) instruction.fixed_epilogue = is_fixed(a[i]);
  }
  for (const int64_t v : outputs_) {
    use(v);
    last[static_cast<size_t>(v)] = -1;
  }
  for (const int64_t v : constants_) last[static_cast<size_t>(v)] = -1;
  dies_after_.resize(instructions_.size());
  for (size_t v = 0; v < last.size(); ++v)
    if (last[v] >= 0) dies_after_[static_cast<size_t>(last[v])].push_back(static_cast<int64_t>(v));
}

Program::~Program() = default;

int64_t Program::planned_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t total = 0;
  for (const auto& [key, plan] : plans_) total += plan ? plan->bytes() : 0;
  return total;
}

void Program::dispatch(const Instruction& instruction, const Values& values, std::vector<Tensor>& results) const {
  std::vector<StableIValue> stack;
  stack.reserve(std::max(instruction.arguments.size(), instruction.results.size()) + 1);
  for (const Argument& a : instruction.arguments) stack.push_back(to_stack(values, a));
  stack.resize(std::max(stack.size(), instruction.returns_list ? size_t{1} : instruction.results.size()));
  if (torch_call_dispatcher(instruction.name.c_str(), instruction.overload.c_str(), stack.data(), TORCH_ABI_VERSION) !=
      TORCH_SUCCESS) {
    // torch's own message does not come through the stable ABI.
    std::string given;
    for (const Argument& a : instruction.arguments)
      a.for_each_value([&](int64_t index) {
        const Tensor& t = values.tensor(index);
        given += (given.empty() ? "" : ", ") + std::string(torch::headeronly::toString(t.scalar_type())) + " [";
        for (int64_t d = 0; d < t.dim(); ++d) given += (d ? ", " : "") + std::to_string(t.size(d));
        given += "]";
      });
    throw std::runtime_error("program: " + instruction.name + " does not take what it is given: " + given +
                             "; the inputs have other dtypes or sizes than the model takes");
  }
  if (instruction.returns_list) {
    for (Tensor& t : torch::stable::detail::to<std::vector<Tensor>>(stack[0])) results.push_back(std::move(t));
  } else {
    for (size_t r = 0; r < instruction.results.size(); ++r)
      results.push_back(torch::stable::detail::to<Tensor>(stack[r]));
  }
}

void Program::execute(size_t i, Values& values, const Plan* plan, EpilogueCache* cache) const {
  const Instruction& instruction = instructions_[i];
  const auto& a = instruction.arguments;
  const auto integer = [&](int64_t value) { values.integers[static_cast<size_t>(instruction.results[0])] = value; };
  // Sizes wrap around rather than overflow; ATen and the operators reject what is no size.
  const auto number = [&](size_t n) { return static_cast<uint64_t>(Read<int64_t>::from(values, a[n])); };
  const auto require = [&](bool (*holds)(int64_t, int64_t), const char* otherwise) {
    const int64_t left = Read<int64_t>::from(values, a[0]), right = Read<int64_t>::from(values, a[1]);
    // The caller knows what the instruction is for, by its number.
    ZP_REQUIRE(holds(left, right), "program: instruction " + std::to_string(i) + ": " + std::to_string(left) +
                                       otherwise + std::to_string(right));
    integer(left);
  };
  const auto quotient = [&] { return floor_div(Read<int64_t>::from(values, a[0]), Read<int64_t>::from(values, a[1])); };
  switch (instruction.kind) {
    case Instruction::Kind::kSize: {
      const Tensor& t = Read<Tensor>::from(values, a[0]);
      const int64_t dim = Read<int64_t>::from(values, a[1]);
      ZP_REQUIRE(dim >= -t.dim() && dim < t.dim(), "program: there is no dimension " + std::to_string(dim));
      return integer(t.size(dim < 0 ? dim + t.dim() : dim));
    }
    case Instruction::Kind::kAdd:
      return integer(static_cast<int64_t>(number(0) + number(1)));
    case Instruction::Kind::kSub:
      return integer(static_cast<int64_t>(number(0) - number(1)));
    case Instruction::Kind::kMul:
      return integer(static_cast<int64_t>(number(0) * number(1)));
    case Instruction::Kind::kFloorDiv:
      return integer(quotient());
    case Instruction::Kind::kMod:  // of the divisor's sign, as in Python
      return integer(static_cast<int64_t>(number(0) - static_cast<uint64_t>(quotient()) * number(1)));
    case Instruction::Kind::kMin:
      return integer(std::min(Read<int64_t>::from(values, a[0]), Read<int64_t>::from(values, a[1])));
    case Instruction::Kind::kMax:
      return integer(std::max(Read<int64_t>::from(values, a[0]), Read<int64_t>::from(values, a[1])));
    case Instruction::Kind::kRequireEqual:
      return require([](int64_t left, int64_t right) { return left == right; }, " is not ");
    case Instruction::Kind::kRequireAtMost:
      return require([](int64_t left, int64_t right) { return left <= right; }, " is more than ");
    case Instruction::Kind::kNative:
    case Instruction::Kind::kDispatched:
      break;
  }
  static thread_local std::vector<Tensor> results;
  static thread_local std::vector<const Tensor*> places;
  results.clear();
  places.clear();
  const auto place = [&](int64_t result) -> const Tensor* {
    return plan && result >= 0 && plan->placed(static_cast<size_t>(result)) ? &values.tensor(result) : nullptr;
  };
  if (instruction.kind == Instruction::Kind::kNative) {
    for (const int64_t result : instruction.results) places.push_back(place(result));
    const ResultPlaces at(&places);
    const EpilogueCache::Scope scope(cache);
    instruction.native.call(values, a.data(), results);
  } else {
    dispatch(instruction, values, results);
  }
  ZP_REQUIRE(results.size() >= instruction.results.size(), "program: an operator has fewer results than expected");
  const auto misplaced = [&](size_t r) {
    const Tensor* own = place(instruction.results[r]);
    return own && results[r].data_ptr() != own->data_ptr();
  };
  // What did not get its place is copied there, since views look at it; first out of the way of the others, where it
  // got the place of another result.
  for (size_t r = 0; r < instruction.results.size(); ++r)
    for (const int64_t other : instruction.results)
      if (const Tensor* its = other == instruction.results[r] ? nullptr : place(other);
          its && results[r].data_ptr() == its->data_ptr())
        results[r] = torch::stable::clone(results[r]);
  for (size_t r = 0; r < instruction.results.size(); ++r) {
    const int64_t result = instruction.results[r];
    if (result < 0) continue;
    if (const Tensor* own = place(result); !own)
      values.tensors[static_cast<size_t>(result)] = std::move(results[r]);
    else if (misplaced(r))
      std::memcpy(own->data_ptr(), results[r].data_ptr(),
                  static_cast<size_t>(own->numel() * element_size(own->scalar_type())));
  }
  results.clear();
}

std::shared_ptr<Plan> Program::plan_for(const std::vector<Tensor>& inputs, std::vector<Tensor>& outputs) {
  std::vector<int64_t> key;
  for (const Tensor& t : inputs) {
    key.push_back(static_cast<int64_t>(t.scalar_type()));
    key.push_back(t.dim());
    for (const int64_t size : t.sizes()) key.push_back(size);
    for (const int64_t stride : t.strides()) key.push_back(stride);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
  }
  Values values;
  values.tensors.resize(static_cast<size_t>(value_count_));
  values.integers.resize(static_cast<size_t>(value_count_));
  for (size_t i = 0; i < inputs_.size(); ++i) values.tensors[static_cast<size_t>(inputs_[i])] = inputs[i];
  for (size_t i = 0; i < constants_.size(); ++i)
    values.tensors[static_cast<size_t>(constants_[i])] = constant_tensors_[i];
  Recording recording(*this);
  for (size_t i = 0; i < instructions_.size(); ++i) {
    execute(i, values);
    recording.note(*this, i, values);
    for (const int64_t v : dies_after_[i]) values.tensors[static_cast<size_t>(v)].reset();
  }
  auto plan = std::make_shared<Plan>(*this, recording, values.integers);
  for (const int64_t v : outputs_) outputs.push_back(values.tensor(v));
  const std::lock_guard<std::mutex> lock(mutex_);
  if (plans_.size() >= kPlans) plans_.clear();
  return plans_.emplace(std::move(key), std::move(plan)).first->second;
}

std::vector<Tensor> Program::run(const std::vector<Tensor>& inputs, double* seconds) {
  ZP_REQUIRE(inputs.size() == inputs_.size(),
             "program: " + std::to_string(inputs_.size()) + " inputs, got " + std::to_string(inputs.size()));
  const WithoutGradients guard;
  std::vector<Tensor> outputs;
  const std::shared_ptr<Plan> plan = plan_for(inputs, outputs);
  if (!outputs.empty() && !seconds) return outputs;
  outputs.clear();
  std::unique_ptr<Frame> frame = plan->acquire(*this);
  Values& values = frame->values;
  for (size_t i = 0; i < inputs_.size(); ++i) values.tensors[static_cast<size_t>(inputs_[i])] = inputs[i];
  double before = seconds ? now() : 0;
  const auto step = [&](size_t i) {
    if (!plan->done_once(i)) {
      const Instruction& instruction = instructions_[i];
      execute(i, values, plan.get(), instruction.fixed_epilogue ? &frame->caches[i] : nullptr);
      for (const int64_t v : dies_after_[i])
        if (!plan->kept(static_cast<size_t>(v))) values.tensors[static_cast<size_t>(v)].reset();
    }
    if (seconds) {
      const double after = now();
      seconds[i] = after - before;
      before = after;
    }
  };
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  for (size_t i = 0; i < instructions_.size();) {
    const size_t end = plan->crew_until(i);
    if (threads == 1 || end == i) {
      step(i++);
      continue;
    }
    Crew::hold(threads, [&] {
      for (; i < end; ++i) step(i);
    });
  }
  outputs.reserve(outputs_.size());
  for (const int64_t v : outputs_) outputs.push_back(values.tensor(v));
  for (const int64_t v : outputs_)
    if (!plan->kept(static_cast<size_t>(v))) values.tensors[static_cast<size_t>(v)].reset();
  for (const int64_t v : inputs_) values.tensors[static_cast<size_t>(v)].reset();
  plan->release(std::move(frame));
  return outputs;
}

}  // namespace zeropoint
