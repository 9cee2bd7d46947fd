// LRU: the object that was asked for longest ago goes.
#include <memory>

#include "evict/object_lists.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr uint32_t kQueue = 1;

class Lru final : public Replayed<Lru> {
 public:
  explicit Lru(const Setup& setup) : Replayed(setup.capacity), lists_(setup.num_objects, 1) {}

  bool Contains(uint32_t object) const override { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const override { return lists_.bytes(kQueue); }
  void OnHit(const Access& access) override { lists_.MoveToHead(access.object); }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) return;
    while (used_bytes() + access.size > capacity_) {
      const uint32_t victim = lists_.tail(kQueue);
      lists_.Remove(victim);
      Evicted(victim);
    }
    lists_.PushHead(kQueue, access.object, access.size);
  }
  void Erase(uint32_t object) override { lists_.Remove(object); }
  void Prefetch(uint32_t object) const { lists_.Prefetch(object); }

 private:
  ObjectLists lists_;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeLru(Params&, const Setup& setup) { return std::make_unique<Lru>(setup); }

}  // namespace pith::evict
