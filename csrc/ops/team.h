// Threads that stay together over many short steps: one parallel region and barriers between the steps, where a
// region per step would cost more than the step.
#pragma once
#include "threads.h"

namespace zeropoint {

// Members run the same function with another rank. It must not throw, and must pass the same barriers everywhere.
class Team {
 public:
  // Runs f(rank, size, team) on up to `threads` threads. Whoever arrives waits shortly for the others: where they do
  // not come (a busy pool, a nested region), the first to give up works alone, so nobody ever waits for a task that
  // has not started.
  template <class F>
  static void run(int64_t threads, const F& f) {
    Team team;
    if (threads <= 1) {
      f(0, 1, team);
      return;
    }
    ++SharedWork::seen().teams;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const int rank = team.joined_.fetch_add(1);
      team.present_.fetch_add(end - begin);
      gathered([&] { return team.present_.load() >= threads || team.state_.load() != kGathering; });
      // The first to decide decides for all; the last may come while another gives up.
      const int wanted = team.present_.load() == threads ? kTogether : kAlone;
      int decision = kGathering;
      const bool first = team.state_.compare_exchange_strong(decision, wanted);
      if ((first ? wanted : decision) == kTogether) {
        team.size_ = team.joined_.load();
        f(rank, team.size_.load(), team);
      } else if (first) {
        f(0, 1, team);
      }
    });
  }

  // Returns when all members have called it; what they wrote before is visible after.
  void barrier() {
    const int size = size_.load(std::memory_order_relaxed);
    if (size == 1) return;
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int64_t turn = 0; round_.load(std::memory_order_acquire) == round; ++turn) spin(turn, 400);
  }

 private:
  Team() = default;
  enum State { kGathering, kTogether, kAlone };

  std::atomic<int> joined_{0}, state_{kGathering}, size_{1};
  std::atomic<int64_t> present_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

}  // namespace zeropoint
