// What is fixed once the shapes of the inputs are: integers, views, and where each intermediate value lives.
//
// A plan is made from one run in which every value has memory of its own while it is alive. Values that native
// operators compute are then placed in one block, where those that are not alive together share bytes; views of them
// are made once. What ATen computes, and what leaves the program, is allocated anew in every run.
#pragma once
#include "../ops/threads.h"
#include "program.h"

namespace zeropoint {

// The memory of one run, with the tensors that lie in it. Runs at the same time have one each.
struct Frame {
  std::unique_ptr<uint8_t[]> memory;
  Values values;                      // constants, placed values and their views; the rest is filled in by the run
  std::vector<EpilogueCache> caches;  // by instruction
};

// What a run shows of its values. They need not stay alive for it.
class Recording {
 public:
  explicit Recording(const Program&);

  // Instruction i was just executed; its arguments are still there.
  void note(const Program&, size_t i, const Values&);

  struct Seen {
    bool native = false;  // by an operator that takes a place for it
    size_t root = 0;      // the value that it is a view of; itself if of none
    std::vector<int64_t> sizes, strides;
    ScalarType dtype = ScalarType::Byte;
    int64_t elements = 0;
  };
  std::vector<Seen> values;
  // Totals before each instruction, and after the last.
  std::vector<SharedWork> work{SharedWork::seen()};
};

class Plan {
 public:
  // `recording` of a run whose instructions have all been executed, with these integers.
  Plan(const Program&, const Recording& recording, std::vector<int64_t> integers);

  std::unique_ptr<Frame> acquire(const Program&);
  void release(std::unique_ptr<Frame>);

  // What is left to do for instruction i in a run.
  bool done_once(size_t i) const { return done_once_[i]; }
  bool placed(size_t value) const { return placement_[value].offset >= 0; }
  // Whether the value's tensor stays in the frame from run to run.
  bool kept(size_t value) const { return kept_[value]; }
  int64_t bytes() const { return bytes_ * frames_made_; }
  // Where the instructions end that, from i on, are best run by a Crew; i itself where there are none.
  size_t crew_until(size_t i) const { return crew_until_[i]; }

 private:
  struct Placement {
    int64_t offset = -1;
    std::vector<int64_t> sizes, strides;
    ScalarType dtype = ScalarType::Byte;
  };
  std::unique_ptr<Frame> make_frame(const Program&) const;
  void find_crews(const Program&, const Recording&);

  std::vector<Placement> placement_;
  std::vector<bool> done_once_, kept_;
  std::vector<size_t> crew_until_;
  std::vector<int64_t> integers_;
  int64_t bytes_ = 0;
  std::atomic<int64_t> frames_made_{0};
  std::mutex mutex_;
  std::vector<std::unique_ptr<Frame>> free_;
};

}  // namespace zeropoint
