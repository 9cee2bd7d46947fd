// Loops that the team of the calling thread shares.
//
// Code between two syncs that thread 0 runs alone becomes Lead(team, body): while body runs on thread 0, the other
// members take part in its ParallelFor loops, and in those within them. Whoever writes such a loop need not know of a
// team; without one it is a plain loop.
#ifndef PITH_BASE_PARALLEL_H_
#define PITH_BASE_PARALLEL_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <mutex>

#include "base/team.h"

namespace pith {

class SharedLoops {
 public:
  // All members. Returns when body has, with all members in step.
  template <typename Body>
  void Lead(const Team& team, const Body& body) {
    if (team.nth == 1) return body();
    current_ = this;
    if (team.ith == 0) {
      body();
      leads_.store(false, std::memory_order_release);
    } else {
      TakeTurnsUntil([this] { return !leads_.load(std::memory_order_acquire); });
    }
    current_ = nullptr;
    team.Sync();
    leads_.store(true, std::memory_order_relaxed);
    team.Sync();
  }

  // The loops of the calling thread's team, null where none is led.
  static SharedLoops* current() { return current_; }

  // Takes part itself until all of it is done; while others finish theirs, in other loops.
  void Run(size_t count, const std::function<void(size_t)>& task) {
    Loop loop{.task = &task, .count = count};
    {
      const std::lock_guard lock(mutex_);
      loop.outer = innermost_;
      innermost_ = &loop;
      waiting_.fetch_add(count, std::memory_order_relaxed);
    }
    TakeTurnsUntil([&] { return loop.done.load(std::memory_order_acquire) == count; });
    const std::lock_guard lock(mutex_);
    for (Loop** at = &innermost_; *at != nullptr; at = &(*at)->outer) {
      if (*at != &loop) continue;
      *at = loop.outer;
      break;
    }
  }

 private:
  struct Loop {
    const std::function<void(size_t)>* task;
    size_t count;
    size_t next = 0;  // by mutex_
    std::atomic<size_t> done{0};
    Loop* outer = nullptr;  // by mutex_
  };

  template <typename Done>
  void TakeTurnsUntil(const Done& done) {
    for (Spinner spinner; !done();) {
      if (TakeTurn()) spinner = Spinner();
      else spinner.Once();
    }
  }

  // One task of the innermost loop that has any left. False if none has.
  bool TakeTurn() {
    if (waiting_.load(std::memory_order_relaxed) == 0) return false;
    Loop* loop = nullptr;
    size_t i = 0;
    {
      const std::lock_guard lock(mutex_);
      for (loop = innermost_; loop != nullptr && loop->next == loop->count;) loop = loop->outer;
      if (loop == nullptr) return false;
      i = loop->next++;
      waiting_.fetch_sub(1, std::memory_order_relaxed);
    }
    (*loop->task)(i);
    loop->done.fetch_add(1, std::memory_order_release);  // the last use of it: whoever waits for this may end it
    return true;
  }

  static inline thread_local SharedLoops* current_ = nullptr;
  std::mutex mutex_;
  Loop* innermost_ = nullptr;
  std::atomic<size_t> waiting_{0};  // tasks that nobody has taken; changes under mutex_
  std::atomic<bool> leads_{true};
};

// task(i) for each i below count, in any order, on any member. task must not throw.
template <typename Task>
void ParallelFor(size_t count, const Task& task) {
  SharedLoops* loops = SharedLoops::current();
  if (loops != nullptr && count > 1) return loops->Run(count, std::ref(task));
  for (size_t i = 0; i < count; ++i) task(i);
}

// The same with stretches [begin, end) of at most `size`.
template <typename Task>
void ParallelStretches(size_t count, size_t size, const Task& task) {
  ParallelFor((count + size - 1) / size,
              [&](size_t i) { task(i * size, count < (i + 1) * size ? count : (i + 1) * size); });
}

}  // namespace pith

#endif  // PITH_BASE_PARALLEL_H_
