// The native operators as the engine calls them: by index, with arguments from a program, without the dispatcher.
// An operator is registered with torch and here by one line, ZP_OPERATOR.
#pragma once
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../torch_stable.h"

namespace zeropoint {

// One argument of an instruction, as the program has it.
struct Argument {
  enum class Kind : int64_t {
    kNone,
    kValue,           // a tensor, `number` is its value's index
    kInt,             // `number`
    kFloat,           // `real`
    kBool,            // `number`
    kDtype,           // `number`, a ScalarType
    kInts,            // `items`
    kValues,          // `items`, indices of tensors
    kRegister,        // an integer, `number` is its value's index
    kString,          // `text`
    kOptionalValues,  // `items`, indices of tensors, -1 for none
  };
  struct Item {
    bool is_register;
    int64_t number;
  };
  Kind kind = Kind::kNone;
  bool optional = false;  // of the schema's type: it is wrapped for the dispatcher
  int64_t number = 0;
  double real = 0;
  std::vector<Item> items;
  std::string text;

  // Calls f(index) for each tensor that the argument names.
  template <class F>
  void for_each_value(const F& f) const {
    if (kind == Kind::kValue) f(number);
    if (kind == Kind::kValues || kind == Kind::kOptionalValues)
      for (const Item& item : items)
        if (item.number >= 0) f(item.number);
  }
};

// The values of one run.
struct Values {
  std::vector<OptionalTensor> tensors;
  std::vector<int64_t> integers;

  const Tensor& tensor(int64_t index) const {
    const auto& t = tensors[static_cast<size_t>(index)];
    ZP_REQUIRE(t.has_value(), "program: value " + std::to_string(index) + " is used before it is computed");
    return *t;
  }
  int64_t integer(int64_t index) const { return integers[static_cast<size_t>(index)]; }
};

template <class T>
struct Read;
template <>
struct Read<Tensor> {
  static Tensor from(const Values& values, const Argument& a) {
    ZP_REQUIRE(a.kind == Argument::Kind::kValue, "program: a tensor was expected");
    return values.tensor(a.number);
  }
};
template <>
struct Read<int64_t> {
  static int64_t from(const Values& values, const Argument& a) {
    if (a.kind == Argument::Kind::kRegister) return values.integer(a.number);
    ZP_REQUIRE(a.kind == Argument::Kind::kInt, "program: an integer was expected");
    return a.number;
  }
};
template <>
struct Read<double> {
  static double from(const Values&, const Argument& a) {
    ZP_REQUIRE(a.kind == Argument::Kind::kFloat || a.kind == Argument::Kind::kInt, "program: a number was expected");
    return a.kind == Argument::Kind::kFloat ? a.real : static_cast<double>(a.number);
  }
};
template <>
struct Read<bool> {
  static bool from(const Values&, const Argument& a) {
    ZP_REQUIRE(a.kind == Argument::Kind::kBool, "program: a bool was expected");
    return a.number != 0;
  }
};
template <>
struct Read<ScalarType> {
  static ScalarType from(const Values&, const Argument& a) {
    ZP_REQUIRE(a.kind == Argument::Kind::kDtype, "program: a dtype was expected");
    return static_cast<ScalarType>(a.number);
  }
};
template <>
struct Read<std::vector<int64_t>> {
  static std::vector<int64_t> from(const Values& values, const Argument& a) {
    ZP_REQUIRE(a.kind == Argument::Kind::kInts, "program: a list of integers was expected");
    std::vector<int64_t> result;
    result.reserve(a.items.size());
    for (const auto& item : a.items) result.push_back(item.is_register ? values.integer(item.number) : item.number);
    return result;
  }
};
template <class T>
struct Read<std::optional<T>> {
  static std::optional<T> from(const Values& values, const Argument& a) {
    if (a.kind == Argument::Kind::kNone) return std::nullopt;
    return Read<T>::from(values, a);
  }
};

// Calls an operator with arguments from a program; results in the order of its schema.
using OperatorCall = void (*)(const Values&, const Argument*, std::vector<Tensor>& results);
struct NativeOperator {
  OperatorCall call;
  size_t arguments;
  // An argument that the first result may take the memory of: each of its elements is read, for the last time, before
  // that of the result at the same place is written, and by the same thread. -1 for none.
  int64_t overwrites = -1;
};

inline std::map<std::string, NativeOperator>& native_operators() {
  static std::map<std::string, NativeOperator> table;
  return table;
}

template <auto Function>
struct Caller;
template <class R, class... A, R (*Function)(A...)>
struct Caller<Function> {
  static constexpr size_t kArguments = sizeof...(A);
  static void call(const Values& values, const Argument* arguments, std::vector<Tensor>& results) {
    run(values, arguments, results, std::index_sequence_for<A...>{});
  }

 private:
  template <size_t... I>
  static void run(const Values& values, const Argument* arguments, std::vector<Tensor>& results,
                  std::index_sequence<I...>) {
    R result = Function(Read<std::decay_t<A>>::from(values, arguments[I])...);
    if constexpr (std::is_same_v<R, Tensor>)
      results.push_back(std::move(result));
    else if constexpr (std::is_same_v<R, std::vector<Tensor>>)
      results = std::move(result);
    else
      std::apply([&](auto&... parts) { (results.push_back(std::move(parts)), ...); }, result);
  }
};

#define ZP_OPERATOR(library, name, function)                                  \
  library.impl(name, TORCH_BOX(&function));                                   \
  zeropoint::native_operators()[name] = {&zeropoint::Caller<&function>::call, \
                                         zeropoint::Caller<&function>::kArguments, -1}

// The same, of an operator whose first result may take the memory of the argument of this number.
#define ZP_OPERATOR_OVER(library, name, function, argument) \
  ZP_OPERATOR(library, name, function);                     \
  zeropoint::native_operators()[name].overwrites = argument

}  // namespace zeropoint
