#include "evict/live_cache.h"

#include <bit>
#include <utility>

namespace pith::evict {

Result<std::unique_ptr<LiveCache>> LiveCache::Create(const Options& options) {
  if (options.most_objects < 2) return InvalidArgument("a cache needs room for the keys of two objects");
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Evictor> evictor,
                        MakeEvictor(options.policy, {options.capacity, options.most_objects, nullptr}));
  return std::unique_ptr<LiveCache>(new LiveCache(options, std::move(evictor)));
}

LiveCache::LiveCache(const Options& options, std::unique_ptr<Evictor> evictor)
    : options_(options), evictor_(std::move(evictor)), lists_(options.most_objects, 2), keys_(options.most_objects),
      buckets_(std::bit_ceil(size_t{options.most_objects}), kNoObject), chain_(options.most_objects, kNoObject) {
  evicted_.reserve(options.most_objects);
  // All that are stored, the new one, and one whose number it takes.
  victims_.reserve(size_t{options.most_objects} + 2);
  evictor_->RecordVictims(&evicted_);
}

// Keys are digests already; both halves count, so that keys that share one still spread.
size_t LiveCache::BucketOf(const LiveKey& key) const {
  const uint64_t mixed = (key[0] ^ std::rotl(key[1], 32)) * 0x9e3779b97f4a7c15u;
  return static_cast<size_t>(mixed >> 32) & (buckets_.size() - 1);
}

uint32_t LiveCache::Find(const LiveKey& key) const {
  uint32_t at = buckets_[BucketOf(key)];
  while (at != kNoObject && keys_[at] != key) at = chain_[at];
  return at;
}

void LiveCache::Unlink(uint32_t number) {
  uint32_t* at = &buckets_[BucketOf(keys_[number])];
  while (*at != number) at = &chain_[*at];
  *at = chain_[number];
}

// The key's own, or one that it gets now.
uint32_t LiveCache::NumberFor(const LiveKey& key) {
  if (const uint32_t known = Find(key); known != kNoObject) return known;
  uint32_t number = numbers_;
  if (numbers_ < options_.most_objects) {
    ++numbers_;
  } else {
    if (lists_.empty(kGone)) {
      // More objects are stored than numbers were planned for.
      const uint32_t oldest = lists_.tail(kStored);
      evictor_->Erase(oldest);
      Leave(oldest);
    }
    number = lists_.tail(kGone);
    lists_.Remove(number);
    evictor_->Forget(number);
    Unlink(number);
  }
  keys_[number] = key;
  uint32_t& first = buckets_[BucketOf(key)];
  chain_[number] = first;
  first = number;
  return number;
}

Access LiveCache::Next(uint32_t number, const LiveRequest& request) {
  const uint32_t position = requests_++;
  return {position, number,   request.size, request.time, request.ttl, request.rtt,
          position, kNever, nullptr,      0,            1,           nullptr};
}

void LiveCache::Leave(uint32_t number) {
  if (lists_.ListOf(number) != 0) lists_.Remove(number);
  lists_.PushHead(kGone, number, 0);
  victims_.push_back(keys_[number]);
}

void LiveCache::TakeVictims(uint32_t asked_for, uint64_t size) {
  for (const uint32_t number : evicted_) {
    if (number != asked_for) Leave(number);
  }
  evicted_.clear();
  if (!evictor_->Contains(asked_for)) {
    Leave(asked_for);
    return;
  }
  if (lists_.ListOf(asked_for) != 0) lists_.Remove(asked_for);
  lists_.PushHead(kStored, asked_for, size);
}

bool LiveCache::Request(const LiveRequest& request) {
  victims_.clear();
  told_ = 0;
  if (requests_ >= options_.renew_after) Renew();
  const uint32_t number = NumberFor(request.key);
  const bool stored = evictor_->Contains(number);
  const bool same = stored && !request.fetched && lists_.SizeOf(number) == request.size;
  if (stored && !same) evictor_->Erase(number);
  const Access access = Next(number, request);
  same ? evictor_->OnHit(access) : evictor_->OnMiss(access);
  TakeVictims(number, request.size);
  return stored && !request.fetched;
}

std::optional<LiveKey> LiveCache::NextVictim() {
  while (told_ < victims_.size()) {
    const LiveKey& key = victims_[told_++];
    if (!Contains(key)) return key;
  }
  return std::nullopt;
}

bool LiveCache::Contains(const LiveKey& key) const {
  const uint32_t number = Find(key);
  return number != kNoObject && evictor_->Contains(number);
}

void LiveCache::Erase(const LiveKey& key) {
  const uint32_t number = Find(key);
  if (number == kNoObject || !evictor_->Contains(number)) return;
  evictor_->Erase(number);
  lists_.Remove(number);
  lists_.PushHead(kGone, number, 0);
}

// What it stores is asked for again, oldest first. Where no other evictor can be made now, this one goes on.
void LiveCache::Renew() {
  requests_ = 0;
  auto evictor = MakeEvictor(options_.policy, {options_.capacity, options_.most_objects, nullptr});
  if (!evictor) return;
  evictor_ = std::move(*evictor);
  evictor_->RecordVictims(&evicted_);
  const uint64_t stored = lists_.count(kStored);
  for (uint64_t i = 0; i < stored; ++i) {
    const uint32_t number = lists_.tail(kStored);
    LiveRequest request;
    request.size = lists_.SizeOf(number);
    evictor_->OnMiss(Next(number, request));
    TakeVictims(number, request.size);
  }
}

}  // namespace pith::evict
