// What a tier keeps within its bytes: an evictor by name (src/evict), or none, where somebody else places objects.
//
// Threads: one at a time. Invariant: used_bytes() <= capacity between calls.
#ifndef PITH_STORE_TIER_POLICY_H_
#define PITH_STORE_TIER_POLICY_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "evict/evictor.h"
#include "pith/types.h"

namespace pith::store {

// Objects of all tiers have numbers below this.
inline constexpr uint32_t kMostObjects = 1 << 16;

class TierPolicy {
 public:
  // evictor: empty: what does not fit is refused. kInvalidArgument, kUnsupported: MakeEvictor()'s.
  static Result<std::unique_ptr<TierPolicy>> Make(const std::string& evictor, uint64_t capacity);

  bool Contains(uint32_t object) const { return sizes_[object] > 0; }
  void Hit(uint32_t object);
  // Stores an object of so many bytes, more than 0. False: it is refused. `victims`: what went for it, either way.
  bool Admit(uint32_t object, uint64_t bytes, std::vector<uint32_t>& victims);
  void Erase(uint32_t object);

  // The stored object stays for so long, whatever else comes, or until it is erased; again: for longer. Pinned objects
  // take half of the capacity at most: false, it is not pinned. `victims`: what goes for it (of caches in parts).
  bool Pin(uint32_t object, double seconds, std::vector<uint32_t>& victims);
  uint64_t pinned_bytes() const { return pinned_bytes_; }

  uint64_t used_bytes() const { return used_; }
  uint64_t capacity() const { return capacity_; }
  size_t num_objects() const { return count_; }

 private:
  TierPolicy(std::unique_ptr<evict::Evictor> evictor, uint64_t capacity)
      : evictor_(std::move(evictor)), capacity_(capacity), sizes_(kMostObjects, 0) {}
  double Now() const;  // s
  evict::Access At(uint32_t object, uint64_t bytes);
  void Forget(uint32_t object);
  // What the evictor gives up in `step`, which is about `object`, is forgotten and told.
  void Follow(uint32_t object, const std::function<void()>& step, std::vector<uint32_t>& victims);
  // The evictor stores the object. False: it refuses.
  bool Offer(uint32_t object, uint64_t bytes, std::vector<uint32_t>& victims);
  void ReleaseOver(std::vector<uint32_t>& victims);
  void Leave(uint32_t object);

  std::unique_ptr<evict::Evictor> evictor_;  // null: none
  uint64_t capacity_;
  uint64_t used_ = 0;
  size_t count_ = 0;
  uint32_t moment_ = 0;
  std::vector<uint64_t> sizes_;  // by object; 0: not here
  // Objects of which the evictor does not know, and until when (s); its capacity is so much less.
  std::map<uint32_t, double> pins_;
  uint64_t pinned_bytes_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace pith::store

#endif  // PITH_STORE_TIER_POLICY_H_
