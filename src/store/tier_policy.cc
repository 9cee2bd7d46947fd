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

double TierPolicy::Now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

evict::Access TierPolicy::At(uint32_t object, uint64_t bytes) {
  const uint32_t moment = moment_++;
  return {.position = moment,
          .object = object,
          .size = bytes,
          .time = Now(),
          .ttl = std::numeric_limits<float>::infinity(),
          .rtt = std::numeric_limits<float>::quiet_NaN(),
          .moment = moment,
          .next = evict::kNever,
          .prompt = nullptr,
          .depth = 0,
          .chain = 1};
}

void TierPolicy::Hit(uint32_t object) {
  if (evictor_ != nullptr && Contains(object) && !pins_.contains(object)) {
    evictor_->OnHit(At(object, sizes_[object]));
  }
}

void TierPolicy::Forget(uint32_t object) {
  used_ -= sizes_[object];
  sizes_[object] = 0;
  --count_;
}

void TierPolicy::Follow(uint32_t object, const std::function<void()>& step, std::vector<uint32_t>& victims) {
  std::vector<uint32_t> gone;
  evictor_->RecordVictims(&gone);
  step();
  evictor_->RecordVictims(nullptr);
  for (const uint32_t victim : gone) {
    if (victim == object || !Contains(victim)) continue;
    Forget(victim);
    victims.push_back(victim);
  }
}

bool TierPolicy::Offer(uint32_t object, uint64_t bytes, std::vector<uint32_t>& victims) {
  Follow(
      object, [&] { evictor_->OnMiss(At(object, bytes)); }, victims);
  return evictor_->Contains(object);
}

// The evictor knows neither the object nor its bytes from now on, or again.
void TierPolicy::Leave(uint32_t object) {
  if (pins_.erase(object) > 0) {
    pinned_bytes_ -= sizes_[object];
    evictor_->Resize(capacity_ - pinned_bytes_);
  } else if (evictor_ != nullptr) {
    evictor_->Erase(object);
  }
}

void TierPolicy::ReleaseOver(std::vector<uint32_t>& victims) {
  const double now = Now();
  std::vector<uint32_t> over;
  for (const auto& [object, until] : pins_) {
    if (until <= now) over.push_back(object);
  }
  for (const uint32_t object : over) {
    Leave(object);
    if (Offer(object, sizes_[object], victims)) continue;
    Forget(object);
    victims.push_back(object);
  }
}

bool TierPolicy::Admit(uint32_t object, uint64_t bytes, std::vector<uint32_t>& victims) {
  ReleaseOver(victims);
  if (Contains(object)) Erase(object);
  if (bytes > capacity_) return false;
  if (evictor_ == nullptr ? used_ + bytes > capacity_ : !Offer(object, bytes, victims)) return false;
  sizes_[object] = bytes;
  used_ += bytes;
  ++count_;
  return true;
}

void TierPolicy::Erase(uint32_t object) {
  if (!Contains(object)) return;
  Leave(object);
  Forget(object);
}

bool TierPolicy::Pin(uint32_t object, double seconds, std::vector<uint32_t>& victims) {
  if (!Contains(object)) return false;
  if (evictor_ == nullptr) return true;  // nothing goes for others
  const double until = Now() + seconds;
  if (const auto pinned = pins_.find(object); pinned != pins_.end()) {
    pinned->second = std::max(pinned->second, until);
    return true;
  }
  if (pinned_bytes_ + sizes_[object] > capacity_ / 2) return false;
  evictor_->Erase(object);
  pins_[object] = until;
  pinned_bytes_ += sizes_[object];
  Follow(
      object, [&] { evictor_->Resize(capacity_ - pinned_bytes_); }, victims);
  return true;
}

}  // namespace pith::store
