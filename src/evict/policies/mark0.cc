// Mark0 (evict/one_bit.h): an object whose bit is 1 goes, by lot; where there is none, an unmarked one, by lot. All
// marks are cleared when all objects have one.
#include <memory>
#include <utility>

#include "evict/object_groups.h"
#include "evict/one_bit.h"

namespace pith::evict {
namespace {

class Mark0 final : public Replayed<Mark0> {
 public:
  Mark0(const Setup& setup, std::vector<uint8_t> bits, uint64_t seed)
      : Replayed(setup.capacity), bits_(std::move(bits)), random_(seed), groups_(setup.num_objects),
        size_(setup.num_objects) {}

  bool Contains(uint32_t object) const override { return groups_.GroupOf(object) != groups_.kNone; }
  uint64_t used_bytes() const override { return used_; }
  // A 1 may lose its mark: it goes before any mark is looked at.
  void OnHit(const Access& access) override {
    groups_.Put(access.object, bits_[access.position] != 0 ? kOnes : kMarked);
  }
  void OnMiss(const Access& access) override {
    if (access.size > capacity_) return;
    while (used_ + access.size > capacity_) EvictOne();
    size_[access.object] = access.size;
    used_ += access.size;
    OnHit(access);
  }
  void Erase(uint32_t object) override {
    groups_.Remove(object);
    used_ -= size_[object];
  }

 private:
  enum : size_t { kOnes, kMarked, kUnmarked, kNumGroups };

  void EvictOne() {
    if (groups_.empty(kOnes) && groups_.empty(kUnmarked)) groups_.Swap(kMarked, kUnmarked);
    const uint32_t victim = groups_.Draw(groups_.empty(kOnes) ? kUnmarked : kOnes, random_);
    Erase(victim);
    Evicted(victim);
  }

  const std::vector<uint8_t> bits_;  // by access
  Random random_;
  ObjectGroups<kNumGroups> groups_;
  std::vector<uint64_t> size_;  // by object
  uint64_t used_ = 0;
};

}  // namespace

std::unique_ptr<Evictor> MakeMark0WithBits(const Setup& setup, std::vector<uint8_t> bits, uint64_t seed) {
  return std::make_unique<Mark0>(setup, std::move(bits), seed);
}

Result<std::unique_ptr<Evictor>> MakeMark0(Params& params, const Setup& setup) {
  PITH_ASSIGN_OR_RETURN(OneBitParams read, ReadOneBitParams(params, setup, /*phase_bits=*/false));
  return WithGuard(MakeMark0WithBits(setup, std::move(read.bits), read.seed), read, setup);
}

}  // namespace pith::evict
