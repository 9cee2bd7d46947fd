// Prefixes: sequences that have read a text and may be taken up by a prompt that begins with it.
//
// Threads: owned by the engine's thread.
#ifndef PITH_SERVER_PREFIXES_H_
#define PITH_SERVER_PREFIXES_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace pith::server {

// What two texts must have in common beside their tokens to share a cache.
struct PrefixKey {
  std::string tenant;
  std::string recipe;
  size_t kv_budget_bytes = 0;  // that was asked for; 0: none
  std::string compress = {};   // how whole prompts are compressed; empty: the recipe works by blocks

  std::string topic = {};  // of turns=epicache; empty: nothing was dropped for lack of bytes

  bool operator==(const PrefixKey&) const = default;
};

struct Prefix {
  SequenceId sequence = -1;
  std::vector<int32_t> tokens;    // that it has read
  size_t num_prompt_tokens = 0;   // of them, read in blocks of a prompt, from the first on
  size_t num_pinned = 0;          // at the front
  PrefixKey key;
  std::string cache_key;          // of the request that left it
  bool has_pieces = false;        // that it has taken over and not read: for requests alone that take such
  bool checkpoint = false;        // made for others: it stays when it is taken up
  int slot = -1;                  // in which it was read
  size_t bytes = 0;
  bool stored = false;            // a store of prefixes has it, or does not want it
  double priority = 0;            // the store's own
};

// Tokens that two texts begin with.
size_t CommonTokens(std::span<const int32_t> a, std::span<const int32_t> b);

// A fork of `source`, which keeps what it was promised; the fork begins with as little as possible. Where the bytes do
// not hold both there is none, and the source is what it was.
Result<SequenceId> ForkBeside(Engine& engine, SequenceId source);

// Kept prefixes, and which of them goes first: GreedyDual-Size (Cao and Irani, 1997) with the tokens that would have to
// be read again as cost and the bytes that it holds as size. Among equals it is LRU.
class PrefixStore {
 public:
  // Which one to take up: `rate` says how many tokens of a prefix would be saved (0: it cannot be used); the most wins,
  // then one of the same cache_key, the same slot, the newest. -1: none.
  template <typename Rate>
  int Find(const std::string& cache_key, int slot, const Rate& rate) const {
    int best = -1;
    size_t best_rate = 0;
    int best_hints = -1;
    for (size_t i = 0; i < prefixes_.size(); ++i) {
      const Prefix& prefix = prefixes_[i];
      const size_t value = rate(prefix);
      const int hints = (!cache_key.empty() && prefix.cache_key == cache_key ? 2 : 0) +
                        (slot >= 0 && prefix.slot == slot ? 1 : 0);
      if (value == 0 || value < best_rate || (value == best_rate && hints < best_hints)) continue;
      best = static_cast<int>(i), best_rate = value, best_hints = hints;
    }
    return best;
  }

  void Add(Prefix prefix);
  void MarkStored(size_t index) { prefixes_[index].stored = true; }
  // It was of use again.
  void Touch(int index);
  // Removes it; its sequence is the caller's.
  Prefix Take(int index);
  // Takes the one that is worth least.
  std::optional<Prefix> TakeVictim();

  std::span<const Prefix> prefixes() const { return prefixes_; }
  size_t size() const { return prefixes_.size(); }

 private:
  double PriorityOf(const Prefix& prefix) const;

  std::vector<Prefix> prefixes_;  // the oldest first
  double clock_ = 0;              // priority of the last one that went
};

}  // namespace pith::server

#endif  // PITH_SERVER_PREFIXES_H_
