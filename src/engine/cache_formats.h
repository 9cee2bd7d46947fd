// In which formats a cache holds its entries, and what entries take in them.
#ifndef PITH_ENGINE_CACHE_FORMATS_H_
#define PITH_ENGINE_CACHE_FORMATS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ledger.h"
#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "host/model.h"
#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

struct PruneOptions;

struct CacheFormats {
  PageFormat entry;                       // in which entries arrive
  std::optional<PageFormat> converted;    // that pages are converted to when they are full; none: they stay
  std::optional<PageFormat> chosen = {};  // that entries go to which a recipe chooses (act=demote)

  PageFormat full() const { return converted.value_or(entry); }  // of full pages
  bool operator==(const CacheFormats&) const = default;
};

// The formats of a cache that shall be in `format`: keys in groups need whole pages, so entries arrive in f16.
CacheFormats FormatsOf(PageFormat format);

// Bytes that keys and values of one token take in `format`, scales included, over all layers.
double TokenBytes(const ModelInfo& info, PageFormat format);

// Entries that a share of the bytes of `mean` f16 entries holds in `format`. has_rests: entries of an incomplete
// page are still f16.
double EntriesInBytes(const ModelInfo& info, PageFormat format, bool has_rests, double mean, double share);

// What a key and a value of the layers that recipes act on take in `format`, over what they take with all channels.
double PrunedCost(const ModelInfo& info, PageFormat format, double share);

// Of `mean` entries those that `bytes` hold once old pages have lost channels of their keys, where an entry of such a
// page, of another one, and of one that is not full costs so much.
struct PrunedCosts {
  double pruned = 1, whole = 1, rest = 1;
};
double EntriesPruned(const PruneOptions& prune, const PrunedCosts& costs, double mean, double bytes);

// Bytes of a sequence's keys and values in these layers, over those of num_tokens entries a head in f16.
double ContentShare(const KvCache& cache, int cache_id, std::span<const int> layers, int32_t num_tokens);

// The ledger's part of the statistics.
void ReadLedger(const Ledger& ledger, KvStats& stats);

}  // namespace pith

#endif  // PITH_ENGINE_CACHE_FORMATS_H_
