// A trace of requests in memory, in the form in which evictors replay it.
//
// Two kinds. In a trace of objects each request asks for one object. In a trace of prompts each asks for a chain of
// blocks of size 1; the chain's accesses stand deepest first, the order in which blocks are touched (so that tails are
// evicted before what they hang on).
#ifndef PITH_EVICT_TRACE_H_
#define PITH_EVICT_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pith/types.h"

namespace pith::evict {

// Next access of what is never asked for again.
inline constexpr uint32_t kNever = UINT32_MAX;

struct Prompt {
  uint32_t first = 0;  // of its accesses, which end where the next prompt's begin
  uint32_t input_tokens = 0;
  uint32_t output_tokens = 0;
  double time = 0;  // s
};

// One access, as evictors see it.
struct Access {
  uint32_t position;  // in the trace
  uint32_t object;    // dense number
  uint64_t size;      // bytes; 1 for blocks
  double time;        // s
  float ttl;          // s it may be served after it was stored; infinite where the trace has none
  float rtt;          // us that the origin took; NaN where the trace has none
  uint32_t moment;    // number of the request: position, or the number of the prompt
  uint32_t next;      // moment of this object's next request, or kNever; for Belady and for training alone
  const Prompt* prompt;  // null for objects
  uint32_t depth;        // of the block in its prompt, 0 at the start
  uint32_t chain;        // blocks of the prompt
  const uint32_t* blocks = nullptr;  // all `chain` of them, deepest first; null: unknown
};

class Trace {
 public:
  // By access. ttl and rtt are empty where no request has one.
  std::vector<uint32_t> object;
  std::vector<uint64_t> size;
  std::vector<double> time;
  std::vector<float> ttl;
  std::vector<float> rtt;
  std::vector<uint32_t> next;
  // By object: the number, or the hash of the name, that the file gives it.
  std::vector<uint64_t> ids;
  std::vector<Prompt> prompts;  // empty for objects

  size_t num_accesses() const { return object.size(); }
  size_t num_objects() const { return ids.size(); }
  bool has_prompts() const { return !prompts.empty(); }
  size_t num_requests() const { return has_prompts() ? prompts.size() : num_accesses(); }
  uint32_t end_of(size_t prompt) const {
    return prompt + 1 < prompts.size() ? prompts[prompt + 1].first : static_cast<uint32_t>(object.size());
  }
  // Whether all sizes are equal.
  bool uniform() const { return uniform_; }
  // Sums over accesses and over objects (at the size of their last request).
  uint64_t total_bytes() const { return total_bytes_; }
  uint64_t footprint_bytes() const { return footprint_bytes_; }

  // Fills `next` and the sums, once the columns are complete. kCorrupt: no requests; kUnsupported: more than 2^32 - 2.
  Status Finish();

  Access At(size_t i) const {
    return {static_cast<uint32_t>(i), object[i], size[i], time[i], ttl.empty() ? kNoTtl : ttl[i],
            rtt.empty() ? kNoRtt : rtt[i], static_cast<uint32_t>(i), next[i], nullptr, 0, 1, nullptr};
  }
  // Access i of prompt p.
  Access AtPrompt(size_t p, size_t i) const {
    Access access = At(i);
    access.moment = static_cast<uint32_t>(p);
    access.prompt = &prompts[p];
    access.chain = end_of(p) - prompts[p].first;
    access.depth = end_of(p) - 1 - static_cast<uint32_t>(i);
    access.blocks = &object[prompts[p].first];
    return access;
  }

  // Access i, for whoever goes through all of a trace of either kind: `prompt` is 0 to begin with, and follows.
  Access AtNext(size_t i, size_t& prompt) const {
    if (!has_prompts()) return At(i);
    while (i >= end_of(prompt)) ++prompt;
    return AtPrompt(prompt, i);
  }

  static constexpr float kNoTtl = __builtin_inff();
  static constexpr float kNoRtt = __builtin_nanf("");

 private:
  bool uniform_ = true;
  uint64_t total_bytes_ = 0;
  uint64_t footprint_bytes_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_TRACE_H_
