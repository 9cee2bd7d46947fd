// What decides which objects a cache of limited bytes keeps.
//
// An evictor is the cache without its contents: it knows what is stored, and with every miss stores or refuses the
// object and names the victims. Objects are dense numbers below Setup::num_objects, so that all state lies in flat
// arrays that are allocated once.
//
// Threads: one at a time. Invariant: used_bytes() <= capacity between calls.
#ifndef PITH_EVICT_EVICTOR_H_
#define PITH_EVICT_EVICTOR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "evict/trace.h"

namespace pith::evict {

struct SidecarCounters;  // sidecar.h

struct Tally {
  uint64_t requests = 0;  // or blocks, in a trace of prompts
  uint64_t hits = 0;
  uint64_t hit_bytes = 0;
  uint64_t evictions = 0;
};

class Evictor {
 public:
  explicit Evictor(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}
  virtual ~Evictor() = default;

  virtual bool Contains(uint32_t object) const = 0;
  virtual uint64_t used_bytes() const = 0;
  // The object is stored and was asked for.
  virtual void OnHit(const Access& access) = 0;
  // It is not stored. Afterwards it is, or was refused; what had to go for it, Contains() no more.
  virtual void OnMiss(const Access& access) = 0;
  // Something else than the evictor removes a stored object (it expired).
  virtual void Erase(uint32_t object) = 0;
  // The number of an object that is not stored goes to another one: nothing that is remembered of it is true of that.
  virtual void Forget(uint32_t) {}

  // Of one that asks another process; else null. Its own.
  virtual const SidecarCounters* sidecar() const { return nullptr; }

  // All of the trace, as the specification of each kind says; with_ttl: objects expire.
  virtual void Replay(const Trace& trace, bool with_ttl, Tally& tally) = 0;

  uint64_t capacity() const { return capacity_; }
  // From now on. What is stored fits into it already; what an evictor keeps apart may go all the same.
  virtual void Resize(uint64_t capacity_bytes) { capacity_ = capacity_bytes; }
  uint64_t evictions() const { return evictions_; }
  // Victims are appended to it from now on; null: nowhere. Borrowed.
  void RecordVictims(std::vector<uint32_t>* victims) { victims_ = victims; }

 protected:
  void Evicted(uint32_t object) {
    ++evictions_;
    if (victims_ != nullptr) victims_->push_back(object);
  }
  uint64_t capacity_;

 private:
  uint64_t evictions_ = 0;
  std::vector<uint32_t>* victims_ = nullptr;
};

// Base of an evictor `Policy`, which must be final: its calls are then direct ones here, and millions of requests a
// second pass.
template <typename Policy>
class Replayed : public Evictor {
 public:
  using Evictor::Evictor;

  void Replay(const Trace& trace, bool with_ttl, Tally& tally) override {
    const uint64_t before = evictions();
    if (trace.has_prompts()) {
      ReplayPrompts(trace, tally);
    } else if (with_ttl && !trace.ttl.empty()) {
      ReplayExpiring(trace, tally);
    } else {
      ReplayObjects(trace, tally);
    }
    tally.evictions += evictions() - before;
  }

  // Policies whose state of one object is worth fetching early hide this.
  void Prefetch(uint32_t) const {}

 private:
  static constexpr size_t kAhead = 8;  // requests

  Policy& self() { return static_cast<Policy&>(*this); }

  bool Serve(const Access& access) {
    if (self().Contains(access.object)) {
      self().OnHit(access);
      return true;
    }
    self().OnMiss(access);
    return false;
  }

  void ReplayObjects(const Trace& trace, Tally& tally) {
    const size_t count = trace.num_accesses();
    uint64_t hits = 0;
    uint64_t hit_bytes = 0;
    for (size_t i = 0; i < count; ++i) {
      if (i + kAhead < count) self().Prefetch(trace.object[i + kAhead]);
      if (Serve(trace.At(i))) {
        ++hits;
        hit_bytes += trace.size[i];
      }
    }
    tally.requests += count;
    tally.hits += hits;
    tally.hit_bytes += hit_bytes;
  }

  void ReplayExpiring(const Trace& trace, Tally& tally) {
    std::vector<double> expires(trace.num_objects());
    for (size_t i = 0; i < trace.num_accesses(); ++i) {
      const Access access = trace.At(i);
      if (self().Contains(access.object)) {
        if (access.time <= expires[access.object]) {
          self().OnHit(access);
          ++tally.hits;
          tally.hit_bytes += access.size;
          continue;
        }
        self().Erase(access.object);
      }
      self().OnMiss(access);
      expires[access.object] = access.time + static_cast<double>(access.ttl);
    }
    tally.requests += trace.num_accesses();
  }

  // A hit is a block in the leading run of stored blocks; then all blocks are touched or stored, deepest first.
  void ReplayPrompts(const Trace& trace, Tally& tally) {
    for (size_t p = 0; p < trace.prompts.size(); ++p) {
      const uint32_t first = trace.prompts[p].first;
      const uint32_t end = trace.end_of(p);
      uint32_t start = end;
      while (start > first && self().Contains(trace.object[start - 1])) --start;
      tally.hits += end - start;
      for (uint32_t i = first; i < end; ++i) Serve(trace.AtPrompt(p, i));
    }
    tally.requests += trace.num_accesses();
    tally.hit_bytes = tally.hits;
  }
};

}  // namespace pith::evict

#endif  // PITH_EVICT_EVICTOR_H_
