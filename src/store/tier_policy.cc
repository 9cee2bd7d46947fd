#include "store/tier_policy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evict/registry.h"

namespace pith::store {
namespace {

// Those that need to know neither the future nor one size of all objects.
constexpr std::array<std::string_view, 9> kOnline = {"lru",   "gdsf",     "s3fifo", "sieve", "lfu",
                                                     "lhd",   "wtinylfu", "fifo",   "gdsf-admit"};

}  // namespace

Result<std::unique_ptr<TierPolicy>> TierPolicy::Make(const std::string& evictor, uint64_t capacity) {
  std::unique_ptr<evict::Evictor> made;
  if (!evictor.empty()) {
    const std::string_view name = std::string_view(evictor).substr(0, evictor.find(':'));
    if (std::ranges::find(kOnline, name) == kOnline.end()) {
      return InvalidArgument(fmt::format("a store has no evictor \"{}\"; choose from {}", name,
                                         fmt::join(kOnline, ", ")));
    }
    PITH_ASSIGN_OR_RETURN(made, evict::MakeEvictor(evictor, {.capacity = capacity, .num_objects = kMostObjects}));
  }
  return std::unique_ptr<TierPolicy>(new TierPolicy(std::move(made), capacity));
}

evict::Access TierPolicy::At(uint32_t object, uint64_t bytes) {
  const uint32_t moment = moment_++;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return {.position = moment,
          .object = object,
          .size = bytes,
          .time = seconds,
          .ttl = std::numeric_limits<float>::infinity(),
          .rtt = std::numeric_limits<float>::quiet_NaN(),
          .moment = moment,
          .next = evict::kNever,
          .prompt = nullptr,
          .depth = 0,
          .chain = 1};
}

void TierPolicy::Hit(uint32_t object) {
  if (evictor_ != nullptr && Contains(object)) evictor_->OnHit(At(object, sizes_[object]));
}

void TierPolicy::Forget(uint32_t object) {
  used_ -= sizes_[object];
  sizes_[object] = 0;
  --count_;
}

bool TierPolicy::Admit(uint32_t object, uint64_t bytes, std::vector<uint32_t>& victims) {
  if (Contains(object)) Erase(object);
  if (bytes > capacity_) return false;
  if (evictor_ == nullptr) {
    if (used_ + bytes > capacity_) return false;
  } else {
    std::vector<uint32_t> gone;
    evictor_->RecordVictims(&gone);
    evictor_->OnMiss(At(object, bytes));
    evictor_->RecordVictims(nullptr);
    for (const uint32_t victim : gone) {
      if (victim == object || !Contains(victim)) continue;
      Forget(victim);
      victims.push_back(victim);
    }
    if (!evictor_->Contains(object)) return false;
  }
  sizes_[object] = bytes;
  used_ += bytes;
  ++count_;
  return true;
}

void TierPolicy::Erase(uint32_t object) {
  if (!Contains(object)) return;
  if (evictor_ != nullptr) evictor_->Erase(object);
  Forget(object);
}

}  // namespace pith::store
