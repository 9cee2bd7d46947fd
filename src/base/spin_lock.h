// A lock for a few instructions: a word of memory, no system call.
#ifndef PITH_BASE_SPIN_LOCK_H_
#define PITH_BASE_SPIN_LOCK_H_

#include <atomic>
#include <thread>

namespace pith {

// For std::lock_guard. Not recursive.
class SpinLock {
 public:
  void lock() {
    while (held_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() { held_.clear(std::memory_order_release); }

 private:
  std::atomic_flag held_ = ATOMIC_FLAG_INIT;
};

}  // namespace pith

#endif  // PITH_BASE_SPIN_LOCK_H_
