// How work is shared among torch's threads: `parallel` for one operator; a Crew, which keeps the threads awake from one
// operator to the next, where starting them anew would cost more than many an operator takes.
#pragma once
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>

#include "../torch_stable.h"

namespace zeropoint {

// One turn of waiting for another thread, awake for the first `awake` of them.
inline void spin(int64_t turn, int64_t awake) {
  if (turn >= awake) return std::this_thread::yield();
#ifdef ZEROPOINT_X86
  __builtin_ia32_pause();
#endif
}

// Waits for threads that a parallel region may not have started (a busy pool, a nested region), but not for long.
// Whether it is `ready`.
template <class F>
bool gathered(const F& ready) {
  const auto patience = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
  for (int64_t turn = 0; !ready(); ++turn)
    if (turn % 64 == 63) {
      if (std::chrono::steady_clock::now() > patience) return false;
      std::this_thread::yield();
    }
  return true;
}

// What the operators on this thread asked for so far, for the engine: how often work was worth sharing, and how often a
// Team was called (team.h), which needs torch's threads for itself.
struct SharedWork {
  int64_t shared = 0, teams = 0;
  static SharedWork& seen() {
    static thread_local SharedWork work;
    return work;
  }
};

// Threads that wait, spinning, for parts of the work of the one that holds them. A part that its thread has not begun
// when the holder is done with its own is the holder's: nobody waits for a thread that the system has put to sleep.
class Crew {
 public:
  // Runs f() on this thread, with up to `threads` - 1 others at hand for `parallel`; without them where there are more
  // threads in crews than cores, as then who spins keeps others from working.
  template <class F>
  static void hold(int64_t threads, const F& f) {
    const Counted counted(threads);
    if (counted.too_many) return f();
    Crew crew(threads);
    const auto holder = std::this_thread::get_id();
    std::exception_ptr error;
    bool ran = false;
    const auto work = [&] {
      ran = true;
      try {
        f();
      } catch (...) {
        error = std::current_exception();
      }
    };
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      if (std::this_thread::get_id() != holder) return crew.serve(begin);
      if (end - begin < threads) {  // else there is nobody
        crew.state_.store(kOpen);
        current() = &crew;
      }
      work();
      current() = nullptr;
      crew.state_.store(kClosed, std::memory_order_release);
    });
    if (!ran) work();  // the holder took no part
    if (error) std::rethrow_exception(error);
  }

  // The crew that this thread holds, or null.
  static Crew*& current() {
    static thread_local Crew* crew = nullptr;
    return crew;
  }

  // f(part) for the parts [0, parts), each once, parts <= size().
  template <class F>
  void run(int64_t parts, const F& f) {
    call_ = [](const void* context, int64_t part) { (*static_cast<const F*>(context))(part); };
    context_ = &f;
    finished_.store(0, std::memory_order_relaxed);
    ++round_;
    posted_.store(round_ << 16 | static_cast<uint64_t>(parts), std::memory_order_release);
    current() = nullptr;  // what f shares is its own affair
    attempt(0);
    int64_t others = 0;
    for (int64_t part = 1; part < parts; ++part) {
      if (claim(part, round_))
        attempt(part);
      else
        ++others;
    }
    for (int64_t turn = 0; finished_.load(std::memory_order_acquire) < others; ++turn) spin(turn, kAwake);
    current() = this;
    if (failed_.load(std::memory_order_relaxed)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  int64_t size() const { return size_; }

 private:
  struct Counted {
    static std::atomic<int64_t>& all() {
      static std::atomic<int64_t> count{0};
      return count;
    }
    const int64_t own;
    const bool too_many;
    explicit Counted(int64_t threads) : own(threads), too_many(all().fetch_add(threads) + threads > cores()) {}
    static int64_t cores() {
      static const auto count = static_cast<int64_t>(std::thread::hardware_concurrency());
      return count;
    }
    ~Counted() { all().fetch_sub(own); }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
  };

  static constexpr int64_t kAwake = 4000;
  enum State { kGathering, kOpen, kClosed };
  struct alignas(64) Claim {
    std::atomic<uint64_t> round{0};
  };

  explicit Crew(int64_t threads) : size_(threads), claims_(new Claim[static_cast<size_t>(threads)]) {}

  // Whoever claims a part of a round runs it; the round is not over before. Rounds only grow, and all parts of a round
  // that is over are claimed, so that who comes late claims nothing.
  bool claim(int64_t part, uint64_t round) {
    std::atomic<uint64_t>& claimed = claims_[static_cast<size_t>(part)].round;
    uint64_t before = claimed.load(std::memory_order_acquire);
    return before < round && claimed.compare_exchange_strong(before, round, std::memory_order_acq_rel);
  }

  void attempt(int64_t part) {
    try {
      call_(context_, part);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  void serve(int64_t rank) {
    // A holder that does not come, as its thread takes no part, is not waited for.
    if (!gathered([&] { return state_.load() != kGathering; })) return;
    uint64_t seen = 0;
    for (int64_t turn = 0;; ++turn) {
      const uint64_t posted = posted_.load(std::memory_order_acquire);
      if (posted != seen) {
        seen = posted;
        turn = 0;
        if (rank < static_cast<int64_t>(posted & 0xFFFF) && claim(rank, posted >> 16)) {
          attempt(rank);
          finished_.fetch_add(1, std::memory_order_release);
        }
      } else if (state_.load(std::memory_order_acquire) == kClosed) {
        return;
      } else {
        spin(turn, kAwake);
      }
    }
  }

  const int64_t size_;
  std::unique_ptr<Claim[]> claims_;
  uint64_t round_ = 0;
  void (*call_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
  std::exception_ptr error_;  // of the first part that failed
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint64_t> posted_{0};  // round and its parts
  alignas(64) std::atomic<int64_t> finished_{0};
  alignas(64) std::atomic<int> state_{kGathering};
};

// Runs f(begin, end) over [0, n) on torch's threads; `cost` is the work of one item in multiply-adds or
// bytes, and pieces below `kGrain` of it are not worth waking a thread for.
template <class F>
void parallel(int64_t n, int64_t cost, const F& f) {
  constexpr int64_t kGrain = 32768;
  const int64_t grain = cost > 0 ? std::max<int64_t>(1, kGrain / cost) : 1;
  if (n <= grain) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  ++SharedWork::seen().shared;
  Crew* crew = Crew::current();
  if (!crew) return torch::stable::parallel_for(0, n, grain, f);
  const int64_t parts = std::min(crew->size(), (n + grain - 1) / grain);
  crew->run(parts, [&](int64_t part) { f(n * part / parts, n * (part + 1) / parts); });
}

}  // namespace zeropoint
