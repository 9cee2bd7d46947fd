// SIEVE (Zhang et al., NSDI 2024): one queue, new objects at the head, a hit sets a bit. The hand goes from tail to
// head and around, clears set bits and evicts the first object without one; it stays on that one's neighbour.
#include <memory>
#include <vector>

#include "evict/object_lists.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr uint32_t kQueue = 1;

class Sieve final : public Replayed<Sieve> {
 public:
  explicit Sieve(const Setup& setup)
      : Replayed(setup.capacity), lists_(setup.num_objects, 1), visited_(setup.num_objects) {}

  bool Contains(uint32_t object) const override { return lists_.ListOf(object) != 0; }
  uint64_t used_bytes() const override { return lists_.bytes(kQueue); }
  void OnHit(const Access& access) override { visited_[access.object] = 1; }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) return;
    while (used_bytes() + access.size > capacity_) EvictOne();
    lists_.PushHead(kQueue, access.object, access.size);
    visited_[access.object] = 0;
  }
  void Erase(uint32_t object) override {
    if (hand_ == object) hand_ = lists_.TowardsHead(object);
    lists_.Remove(object);
  }
  void Prefetch(uint32_t object) const { lists_.Prefetch(object); }

 private:
  void EvictOne() {
    uint32_t at = hand_ == kNoObject ? lists_.tail(kQueue) : hand_;
    while (visited_[at] != 0) {
      visited_[at] = 0;
      at = lists_.TowardsHead(at);
      if (at == kNoObject) at = lists_.tail(kQueue);
    }
    hand_ = lists_.TowardsHead(at);
    lists_.Remove(at);
    Evicted(at);
  }

  ObjectLists lists_;
  std::vector<uint8_t> visited_;
  uint32_t hand_ = kNoObject;  // kNoObject: at the tail
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeSieve(Params&, const Setup& setup) { return std::make_unique<Sieve>(setup); }

}  // namespace pith::evict
