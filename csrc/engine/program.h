// A program: instructions over numbered values, and plans of memory by the shapes of its inputs.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>

#include "../ops/epilogue_params.h"
#include "operators.h"

namespace zeropoint {

struct Instruction {
  enum class Kind {
    kNative,      // an operator of this library
    kDispatched,  // one of ATen's, through the dispatcher
    kSize,        // size of a dimension, into a register
    kAdd,         // integers, into a register
    kSub,
    kMul,
    kFloorDiv,
    kMod,
    kMin,
    kMax,
    kRequireEqual,
    kRequireAtMost,
  };
  Kind kind;
  NativeOperator native;
  std::string name, overload;  // of a dispatched operator
  bool returns_list = false;   // one list of tensors instead of tensors
  std::vector<Argument> arguments;
  std::vector<int64_t> results;  // value indices; -1: not used

  // Whether a layer's epilogue is the same in every run: weight, scales, bias and table are fixed.
  bool fixed_epilogue = false;
};

class Plan;
class Recording;
struct Frame;

class Program {
 public:
  // `code` as zeropoint/engine/bytecode.py writes it; every index is checked.
  Program(const Tensor& code, const std::string& names, std::vector<Tensor> constants);
  ~Program();

  // Outputs for these inputs. Any number of threads may run a program at once.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) { return run(inputs, nullptr); }
  // The same, with the seconds that each instruction took.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs, double* seconds);

  size_t size() const { return instructions_.size(); }
  // Bytes of memory for intermediate values in the plans made so far.
  int64_t planned_bytes() const;

 private:
  friend class Plan;
  friend class Recording;
  // The plan for the shapes of these inputs. Where it has to be made first, `outputs` are those of the run it is made
  // from.
  std::shared_ptr<Plan> plan_for(const std::vector<Tensor>& inputs, std::vector<Tensor>& outputs);
  // Runs instruction i on `values`; native results go where `plan` has placed them, what epilogues need is kept
  // in `cache`.
  void execute(size_t i, Values& values, const Plan* plan = nullptr, EpilogueCache* cache = nullptr) const;
  void dispatch(const Instruction&, const Values&, std::vector<Tensor>& results) const;

  int64_t value_count_ = 0;
  std::vector<int64_t> inputs_, outputs_, constants_;
  std::vector<Tensor> constant_tensors_;
  std::vector<Instruction> instructions_;
  std::vector<std::vector<int64_t>> dies_after_;  // values whose last use is instruction i

  mutable std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<Plan>> plans_;
};

}  // namespace zeropoint
