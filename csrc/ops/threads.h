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

// Threads that wait, spinning, for shares of the work of the one that holds them. What a thread has not begun of its
// share when another is done is the other's: nobody waits for a thread that the system has put to sleep.
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

  // f(share, piece) for the pieces [0, pieces) of the shares [0, shares), each once; shares <= size(), and both at most
  // kMost. A thread takes the pieces of its own share in order, then what is left of the others', so that threads that
  // the system slows down hold up nobody for longer than a piece.
  static constexpr int64_t kMost = 0xFFFF;
  template <class F>
  void run(int64_t shares, int64_t pieces, const F& f) {
    call_ = [](const void* context, int64_t share, int64_t piece) { (*static_cast<const F*>(context))(share, piece); };
    context_ = &f;
    finished_.store(0, std::memory_order_relaxed);
    const Round round{++rounds_, shares, pieces};
    posted_.store(round.packed(), std::memory_order_release);
    current() = nullptr;  // what f shares is its own affair
    int64_t others = shares * pieces;
    take(round, 0, [&](int64_t taken) { others -= taken; });
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
  // A number, shares and pieces, as 32, 16 and 16 bits. Numbers start at 1.
  struct Round {
    uint64_t number;
    int64_t shares, pieces;
    uint64_t packed() const {
      return number << 32 | static_cast<uint64_t>(shares) << 16 | static_cast<uint64_t>(pieces);
    }
    static Round of(uint64_t packed) {
      return {packed >> 32, static_cast<int64_t>(packed >> 16 & kMost), static_cast<int64_t>(packed & kMost)};
    }
  };
  // The last round that came to a share, and how many of its pieces are claimed.
  struct alignas(64) Claims {
    std::atomic<uint64_t> made{0};
  };

  explicit Crew(int64_t threads) : size_(threads), claims_(new Claims[static_cast<size_t>(threads)]) {}

  // The next piece of a share, or -1 where none is left. Whoever claims a piece of a round runs it; the round is not
  // over before. Rounds only grow, and all pieces of a round that is over are claimed, so that who comes late claims
  // nothing.
  int64_t claim(const Round& round, int64_t share) {
    std::atomic<uint64_t>& made = claims_[static_cast<size_t>(share)].made;
    uint64_t before = made.load(std::memory_order_acquire);
    for (;;) {
      const uint64_t number = before >> 32;
      const int64_t piece = number == round.number ? static_cast<int64_t>(before & 0xFFFFFFFF) : 0;
      if (number > round.number || piece == round.pieces) return -1;
      const uint64_t after = round.number << 32 | static_cast<uint64_t>(piece + 1);
      if (made.compare_exchange_weak(before, after, std::memory_order_acq_rel)) return piece;
    }
  }

  // Runs pieces of a round until all are claimed; tells `done` how many they were, share by share.
  template <class F>
  void take(const Round& round, int64_t rank, const F& done) {
    for (int64_t i = 0; i < round.shares; ++i) {
      const int64_t share = (rank + i) % round.shares;
      int64_t taken = 0;
      for (int64_t piece; (piece = claim(round, share)) >= 0; ++taken) {
        try {
          call_(context_, share, piece);
        } catch (...) {
          if (!failed_.exchange(true)) error_ = std::current_exception();
        }
      }
      if (taken) done(taken);
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
        take(Round::of(posted), rank, [&](int64_t taken) { finished_.fetch_add(taken, std::memory_order_release); });
      } else if (state_.load(std::memory_order_acquire) == kClosed) {
        return;
      } else {
        spin(turn, kAwake);
      }
    }
  }

  const int64_t size_;
  std::unique_ptr<Claims[]> claims_;
  uint64_t rounds_ = 0;
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* context_ = nullptr;
  std::exception_ptr error_;  // of the first piece that failed
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint64_t> posted_{0};  // the Round
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
  const int64_t shares = std::min(crew->size(), (n + grain - 1) / grain);
  // Long enough that what a piece costs by itself, some tenths of a microsecond, is lost in it.
  constexpr int64_t kPiece = 4, kPieces = 16;
  const int64_t pieces = std::clamp<int64_t>(n / (kPiece * grain * shares), 1, kPieces), all = shares * pieces;
  crew->run(shares, pieces, [&](int64_t share, int64_t piece) {
    const int64_t at = share * pieces + piece;
    f(n * at / all, n * (at + 1) / all);
  });
}

}  // namespace zeropoint
