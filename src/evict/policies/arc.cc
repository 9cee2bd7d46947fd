// ARC (Megiddo and Modha, FAST 2003): T1 holds what was seen once lately, T2 what was seen more often, B1 and B2 the
// ghosts of both. A hit in a ghost moves the target size p of T1. For objects of one size.
#include <algorithm>
#include <memory>

#include "evict/object_lists.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr uint32_t kT1 = 1;
constexpr uint32_t kT2 = 2;
constexpr uint32_t kB1 = 3;
constexpr uint32_t kB2 = 4;

class Arc final : public Replayed<Arc> {
 public:
  Arc(const Setup& setup, uint64_t object_size)
      : Replayed(setup.capacity), blocks_(setup.capacity / object_size), lists_(setup.num_objects, 4) {}

  bool Contains(uint32_t object) const override {
    const uint32_t list = lists_.ListOf(object);
    return list == kT1 || list == kT2;
  }
  uint64_t used_bytes() const override { return lists_.bytes(kT1) + lists_.bytes(kT2); }
  void OnHit(const Access& access) override { Move(access.object, kT2); }
  void OnMiss(const Access& access) override {
    if (blocks_ == 0) return;
    const auto b1 = static_cast<double>(lists_.count(kB1));
    const auto b2 = static_cast<double>(lists_.count(kB2));
    const uint32_t ghost = lists_.ListOf(access.object);
    if (ghost == kB1) {
      target_ = std::min(target_ + std::max(b2 / b1, 1.0), static_cast<double>(blocks_));
    } else if (ghost == kB2) {
      target_ = std::max(target_ - std::max(b1 / b2, 1.0), 0.0);
    } else {
      MakeRoomForNew();
      lists_.PushHead(kT1, access.object, access.size);
      return;
    }
    if (full()) Replace(ghost == kB2);
    Move(access.object, kT2);
  }
  void Erase(uint32_t object) override { lists_.Remove(object); }
  void Forget(uint32_t object) override {
    if (lists_.ListOf(object) != 0) lists_.Remove(object);  // a ghost
  }
  void Prefetch(uint32_t object) const { lists_.Prefetch(object); }

 private:
  bool full() const { return lists_.count(kT1) + lists_.count(kT2) >= blocks_; }

  void Move(uint32_t object, uint32_t list) {
    const uint64_t size = lists_.SizeOf(object);
    lists_.Remove(object);
    lists_.PushHead(list, object, size);
  }

  // Case IV of the paper.
  void MakeRoomForNew() {
    const uint64_t once = lists_.count(kT1) + lists_.count(kB1);
    const uint64_t all = once + lists_.count(kT2) + lists_.count(kB2);
    if (once >= blocks_) {
      if (lists_.count(kT1) < blocks_) {
        lists_.Remove(lists_.tail(kB1));
        if (full()) Replace(false);
      } else {
        const uint32_t victim = lists_.tail(kT1);
        lists_.Remove(victim);
        Evicted(victim);
      }
    } else if (all >= blocks_) {
      if (all >= 2 * blocks_) lists_.Remove(lists_.tail(kB2));
      if (full()) Replace(false);
    }
  }

  void Replace(bool hit_in_b2) {
    const auto t1 = static_cast<double>(lists_.count(kT1));
    const bool from_t1 = t1 >= 1 && (t1 > target_ || (hit_in_b2 && t1 == target_));
    const uint32_t victim = lists_.tail(from_t1 || lists_.empty(kT2) ? kT1 : kT2);
    Move(victim, lists_.ListOf(victim) == kT1 ? kB1 : kB2);
    Evicted(victim);
  }

  const uint64_t blocks_;
  double target_ = 0;  // p
  ObjectLists lists_;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeArc(Params&, const Setup& setup) {
  PITH_RETURN_IF_ERROR(CheckHasTrace("arc", setup));
  if (!setup.trace->uniform()) return Unsupported("arc knows objects of one size only, and this trace has several");
  return std::make_unique<Arc>(setup, std::max<uint64_t>(1, setup.trace->size[0]));
}

}  // namespace pith::evict
