// What evictors share that keep all objects in a heap and evict the smallest key.
#ifndef PITH_EVICT_HEAP_EVICTOR_H_
#define PITH_EVICT_HEAP_EVICTOR_H_

#include <cstdint>
#include <vector>

#include "evict/object_heap.h"
#include "evict/registry.h"

namespace pith::evict {

// Policy: Key KeyFor(const Access&, bool hit), called on each hit and each object that is stored;
// void Gone(uint32_t object, const Key&, bool evicted).
template <typename Policy, typename Key>
class HeapEvictor : public Replayed<Policy> {
 public:
  // admit: the object is stored first, so that it may be the victim.
  HeapEvictor(const Setup& setup, bool admit)
      : Replayed<Policy>(setup.capacity), heap_(setup.num_objects), size_(setup.num_objects), admit_(admit) {}

  bool Contains(uint32_t object) const override { return heap_.Contains(object); }
  uint64_t used_bytes() const override { return used_; }
  void OnHit(const Access& access) override { heap_.Set(access.object, self().KeyFor(access, true)); }
  void OnMiss(const Access& access) override {
    if (access.size > this->capacity_) return;
    if (!admit_) MakeRoom(access.size);
    heap_.Set(access.object, self().KeyFor(access, false));
    size_[access.object] = access.size;
    used_ += access.size;
    if (admit_) MakeRoom(0);
  }
  void Erase(uint32_t object) override { Leave(object, false); }

 protected:
  const ObjectHeap<Key>& heap() const { return heap_; }

 private:
  Policy& self() { return static_cast<Policy&>(*this); }

  void MakeRoom(uint64_t bytes) {
    while (used_ + bytes > this->capacity_) {
      const uint32_t victim = heap_.top();
      Leave(victim, true);
      this->Evicted(victim);
    }
  }

  void Leave(uint32_t object, bool evicted) {
    const Key key = heap_.KeyOf(object);
    heap_.Remove(object);
    used_ -= size_[object];
    self().Gone(object, key, evicted);
  }

  ObjectHeap<Key> heap_;
  std::vector<uint64_t> size_;  // by object
  uint64_t used_ = 0;
  bool admit_;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_HEAP_EVICTOR_H_
