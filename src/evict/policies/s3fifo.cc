// S3-FIFO (Yang et al., SOSP 2023): a small queue of a tenth of the bytes, a main queue of the rest, and ghosts of what
// left small. Two hits in small lead to main; main gives its oldest another round for each hit, at most three.
//
// An object that is not smaller than the small queue is not stored. s3fifo-cold is libCacheSim 0.3.5: until the very
// first eviction, new objects go to main when small is full.
#include <algorithm>
#include <memory>
#include <vector>

#include "evict/object_lists.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr uint32_t kSmall = 1;
constexpr uint32_t kMain = 2;
constexpr uint32_t kGhost = 3;
constexpr uint32_t kHitsToMain = 2;

class S3Fifo final : public Replayed<S3Fifo> {
 public:
  S3Fifo(const Setup& setup, bool cold)
      : Replayed(setup.capacity), cold_(cold), lists_(setup.num_objects, 3), hits_(setup.num_objects) {
    Divide();
  }

  bool Contains(uint32_t object) const override {
    const uint32_t list = lists_.ListOf(object);
    return list == kSmall || list == kMain;
  }
  uint64_t used_bytes() const override { return lists_.bytes(kSmall) + lists_.bytes(kMain); }
  void OnHit(const Access& access) override { ++hits_[access.object]; }
  void OnMiss(const Access& access) override {
    const bool was_ghost = lists_.ListOf(access.object) == kGhost;
    if (was_ghost) lists_.Remove(access.object);
    if (access.size >= small_bytes_) return;
    while (used_bytes() + access.size > capacity_) EvictOne();
    const bool fill_main = cold_ && evictions() == 0 && lists_.bytes(kSmall) >= small_bytes_;
    lists_.PushHead(was_ghost || fill_main ? kMain : kSmall, access.object, access.size);
    hits_[access.object] = 0;
  }
  void Erase(uint32_t object) override { lists_.Remove(object); }
  void Forget(uint32_t object) override {
    if (lists_.ListOf(object) != 0) lists_.Remove(object);  // a ghost
  }
  void Prefetch(uint32_t object) const { lists_.Prefetch(object); }
  void Resize(uint64_t capacity_bytes) override {
    capacity_ = capacity_bytes;
    Divide();
  }

 private:
  void Divide() {
    small_bytes_ = capacity_ / 10;
    main_bytes_ = capacity_ - small_bytes_;
    ghost_bytes_ = capacity_ / 10 * 9 + capacity_ % 10 * 9 / 10;
  }

  // May end without a victim, when all of small went to main.
  void EvictOne() {
    if (lists_.bytes(kMain) > main_bytes_ || lists_.empty(kSmall)) {
      EvictFromMain();
    } else {
      EvictFromSmall();
    }
  }

  void EvictFromMain() {
    for (;;) {
      const uint32_t oldest = lists_.tail(kMain);
      uint32_t& hits = hits_[oldest];
      if (hits == 0) {
        lists_.Remove(oldest);
        Evicted(oldest);
        return;
      }
      hits = std::min(hits, 3u) - 1;
      lists_.MoveToHead(oldest);
    }
  }

  void EvictFromSmall() {
    while (!lists_.empty(kSmall)) {
      const uint32_t oldest = lists_.tail(kSmall);
      const uint64_t size = lists_.SizeOf(oldest);
      lists_.Remove(oldest);
      if (hits_[oldest] >= kHitsToMain) {
        lists_.PushHead(kMain, oldest, size);
        hits_[oldest] = 0;
        continue;
      }
      while (lists_.bytes(kGhost) + size > ghost_bytes_ && !lists_.empty(kGhost)) lists_.Remove(lists_.tail(kGhost));
      if (size <= ghost_bytes_) lists_.PushHead(kGhost, oldest, size);
      Evicted(oldest);
      return;
    }
  }

  uint64_t small_bytes_ = 0;
  uint64_t main_bytes_ = 0;
  uint64_t ghost_bytes_ = 0;
  const bool cold_;
  ObjectLists lists_;
  std::vector<uint32_t> hits_;  // by object, since it came to its queue
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeS3Fifo(Params&, const Setup& setup) {
  return std::make_unique<S3Fifo>(setup, false);
}
Result<std::unique_ptr<Evictor>> MakeS3FifoCold(Params&, const Setup& setup) {
  return std::make_unique<S3Fifo>(setup, true);
}

}  // namespace pith::evict
