// An evictor for requests as they come: objects have keys of 16 bytes, and nobody knows how many there will be.
//
// Beside the evictor it keeps a table of keys. A key that has not been asked for for longest, and is not stored, gives
// its number to a new one; what the evictor remembered of it is forgotten.
//
// Threads: one at a time. After Create no request allocates memory, but for one in four thousand million.
#ifndef PITH_EVICT_LIVE_CACHE_H_
#define PITH_EVICT_LIVE_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evict/object_lists.h"
#include "evict/registry.h"

namespace pith::evict {

using LiveKey = std::array<uint64_t, 2>;

struct LiveRequest {
  LiveKey key{};
  uint64_t size = 0;  // bytes
  double time = 0;    // s
  float ttl = Trace::kNoTtl;  // s from now on
  float rtt = Trace::kNoRtt;  // us
  // It came from the origin, whether or not an older one was stored.
  bool fetched = false;
};

class LiveCache {
 public:
  struct Options {
    std::string policy;         // as MakeEvictor takes it
    uint64_t capacity = 0;      // bytes
    uint32_t most_objects = 0;  // keys that are known at a time, stored or not; at least 2
    // Requests are numbered in 32 bits: after so many a new evictor takes over what is stored.
    uint32_t renew_after = 4'000'000'000;
  };

  // kInvalidArgument, kUnsupported: as MakeEvictor says.
  static Result<std::unique_ptr<LiveCache>> Create(const Options& options);

  // Whether it was stored. Before the next request, NextVictim gives what must go: the object itself where it is not to
  // be stored.
  bool Request(const LiveRequest& request);
  std::optional<LiveKey> NextVictim();

  bool Contains(const LiveKey& key) const;
  // Something else has removed it.
  void Erase(const LiveKey& key);

  uint64_t used_bytes() const { return evictor_->used_bytes(); }
  const SidecarCounters* sidecar() const { return evictor_->sidecar(); }

 private:
  static constexpr uint32_t kStored = 1;
  static constexpr uint32_t kGone = 2;  // in the order of their last requests, as kStored is

  LiveCache(const Options& options, std::unique_ptr<Evictor> evictor);

  size_t BucketOf(const LiveKey& key) const;
  uint32_t Find(const LiveKey& key) const;
  uint32_t NumberFor(const LiveKey& key);
  void Unlink(uint32_t number);
  Access Next(uint32_t number, const LiveRequest& request);
  void Leave(uint32_t number);
  void TakeVictims(uint32_t asked_for, uint64_t size);
  void Renew();

  const Options options_;
  std::unique_ptr<Evictor> evictor_;
  ObjectLists lists_;
  std::vector<LiveKey> keys_;      // by number
  std::vector<uint32_t> buckets_;  // the first number of each
  std::vector<uint32_t> chain_;    // by number: the next in its bucket
  uint32_t numbers_ = 0;           // that were given
  uint32_t requests_ = 0;
  // Of this request: evicted by the evictor, and told by NextVictim.
  std::vector<uint32_t> evicted_;
  std::vector<LiveKey> victims_;
  size_t told_ = 0;  // of victims_
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LIVE_CACHE_H_
