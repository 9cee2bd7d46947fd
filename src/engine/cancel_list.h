// Sequences that somebody wants to stop. Any thread.
#ifndef PITH_ENGINE_CANCEL_LIST_H_
#define PITH_ENGINE_CANCEL_LIST_H_

#include <atomic>
#include <mutex>
#include <set>

#include "engine/engine.h"

namespace pith {

class CancelList {
 public:
  void Add(SequenceId id) {
    const std::lock_guard lock(mutex_);
    ids_.insert(id);
    any_.store(true, std::memory_order_release);
  }
  void Remove(SequenceId id) {
    const std::lock_guard lock(mutex_);
    ids_.erase(id);
    any_.store(!ids_.empty(), std::memory_order_release);
  }
  // Of those for which has(id) is false: they are there no more.
  template <typename Has>
  void RemoveGone(const Has& has) {
    if (!any()) return;
    const std::lock_guard lock(mutex_);
    std::erase_if(ids_, [&](SequenceId id) { return !has(id); });
    any_.store(!ids_.empty(), std::memory_order_release);
  }
  // Takes no lock: it is asked between all nodes of a graph.
  bool any() const { return any_.load(std::memory_order_acquire); }
  bool Contains(SequenceId id) const {
    if (!any()) return false;
    const std::lock_guard lock(mutex_);
    return ids_.contains(id);
  }

 private:
  mutable std::mutex mutex_;
  std::set<SequenceId> ids_;  // by mutex_
  std::atomic<bool> any_{false};
};

}  // namespace pith

#endif  // PITH_ENGINE_CANCEL_LIST_H_
