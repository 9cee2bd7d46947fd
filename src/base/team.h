// A team of threads that run one function together, with barriers inside.
//
// The threads belong to somebody else (ggml's workers in production, a plain
// loop or std::thread in tests): pith never keeps a pool that fights them.
#ifndef PITH_BASE_TEAM_H_
#define PITH_BASE_TEAM_H_

#include <atomic>
#include <chrono>
#include <thread>

namespace pith {

// Waits for something that is about to happen: spins briefly, then yields, so that a team with fewer free cores than
// members still moves. Of a wait that has gone on for milliseconds (a scorer of a program's own on one thread, say) it
// sleeps parts, and leaves the core to threads that are not the team's, such as those of NumPy.
class Spinner {
 public:
  void Once() {
    if (++spins_ >= kSpins) {
      if (spins_ < kSpins + kYields) return std::this_thread::yield();
      return std::this_thread::sleep_for(kNap);
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();  // without immintrin.h, half of what most files took to compile
#endif
  }

 private:
  static constexpr int kSpins = 2000;
  static constexpr int kYields = 4000;  // some 2 ms where nobody else wants the core
  static constexpr std::chrono::microseconds kNap{50};
  int spins_ = 0;
};

// Sense-free spinning barrier.
class Barrier {
 public:
  void Wait(int num_threads) {
    if (num_threads == 1) return;
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.fetch_add(1, std::memory_order_acq_rel);
      return;
    }
    for (Spinner spinner; phase_.load(std::memory_order_acquire) == phase;) spinner.Once();
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

// One member's view of the team: thread `ith` of `nth`.
struct Team {
  int ith = 0;
  int nth = 1;
  Barrier* barrier = nullptr;  // may be null when nth == 1

  void Sync() const {
    if (nth > 1) barrier->Wait(nth);
  }

  // Phases, which all members run: each has ended for all of them before anybody goes on. What one of them does alone
  // ...
  template <typename Body>
  void One(const Body& body) const {
    if (ith == 0) body();
    Sync();
  }
  // ... and what all do, each its part.
  template <typename Body>
  void All(const Body& body) const {
    body();
    Sync();
  }
};

}  // namespace pith

#endif  // PITH_BASE_TEAM_H_
