// The largest size x distance to the next use goes, where never again counts as 2^40 requests; of equals, the smallest
// id. Strong, not optimal. Every eviction looks at all stored objects that will be used again.
#include <memory>
#include <vector>

#include "evict/object_heap.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr unsigned __int128 kNeverDistance = static_cast<unsigned __int128>(1) << 40;

// Largest first.
struct DeadKey {
  uint64_t size = 0;
  uint64_t id = 0;
  bool operator<(const DeadKey& other) const { return size != other.size ? size > other.size : id < other.id; }
};

class BeladySize final : public Replayed<BeladySize> {
 public:
  explicit BeladySize(const Setup& setup)
      : Replayed(setup.capacity), trace_(*setup.trace), dead_(setup.num_objects), place_(setup.num_objects, kNoObject),
        size_(setup.num_objects) {
    live_.reserve(setup.num_objects);
  }

  bool Contains(uint32_t object) const override { return place_[object] != kNoObject || dead_.Contains(object); }
  uint64_t used_bytes() const override { return used_; }
  void OnHit(const Access& access) override {
    Leave(access.object);
    Store(access.object, access.next, size_[access.object]);
  }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) return;
    while (used_ + access.size > capacity_) {
      const uint32_t victim = Worst(access.moment);
      Leave(victim);
      Evicted(victim);
    }
    Store(access.object, access.next, access.size);
  }
  void Erase(uint32_t object) override { Leave(object); }

 private:
  struct Live {
    uint64_t size;
    uint32_t next;
    uint32_t object;
  };

  void Store(uint32_t object, uint32_t next, uint64_t size) {
    size_[object] = size;
    used_ += size;
    if (next == kNever) {
      dead_.Set(object, {size, trace_.ids[object]});
    } else {
      place_[object] = static_cast<uint32_t>(live_.size());
      live_.push_back({size, next, object});
    }
  }

  void Leave(uint32_t object) {
    used_ -= size_[object];
    const uint32_t at = place_[object];
    if (at == kNoObject) {
      dead_.Remove(object);
      return;
    }
    place_[live_.back().object] = at;
    live_[at] = live_.back();
    live_.pop_back();
    place_[object] = kNoObject;
  }

  uint32_t Worst(uint32_t now) const {
    unsigned __int128 most = 0;
    uint32_t worst = kNoObject;
    const auto better = [&](unsigned __int128 value, uint32_t object) {
      if (worst != kNoObject && (value < most || (value == most && trace_.ids[object] > trace_.ids[worst]))) return;
      most = value;
      worst = object;
    };
    if (!dead_.empty()) better(dead_.top_key().size * kNeverDistance, dead_.top());
    for (const Live& live : live_) {
      better(static_cast<unsigned __int128>(live.size) * (live.next - now), live.object);
    }
    return worst;
  }

  const Trace& trace_;
  ObjectHeap<DeadKey> dead_;     // never used again
  std::vector<Live> live_;
  std::vector<uint32_t> place_;  // by object: its index in live_
  std::vector<uint64_t> size_;   // by object
  uint64_t used_ = 0;
};

}  // namespace

Result<std::unique_ptr<Evictor>> MakeBeladySize(Params&, const Setup& setup) {
  PITH_RETURN_IF_ERROR(CheckHasTrace("belady-size", setup));
  return std::make_unique<BeladySize>(setup);
}

}  // namespace pith::evict
