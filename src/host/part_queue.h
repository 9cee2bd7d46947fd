// Parts of one node's work, taken by the threads that share it.
#ifndef PITH_HOST_PART_QUEUE_H_
#define PITH_HOST_PART_QUEUE_H_

#include <atomic>
#include <cstdint>

namespace pith {

class PartQueue {
 public:
  // 0, 1, 2, ...
  int64_t Take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // Called by each of num_threads threads when it takes no more: the last one begins anew, since libllama may run a
  // graph again without asking about its nodes.
  void Leave(int num_threads) {
    if (num_left_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_threads) return;
    num_left_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> next_ = 0;
  std::atomic<int> num_left_ = 0;
};

}  // namespace pith

#endif  // PITH_HOST_PART_QUEUE_H_
