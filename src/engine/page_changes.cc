#include "engine/page_changes.h"

#include <algorithm>

#include "engine/demotion.h"
#include "engine/entry_counts.h"

namespace pith {

Result<bool> ChangeSomePages(EngineCore& core, const Sequence& source, const Sequence& target, int64_t most_entries,
                             PageChanges& changes) {
  const int count = core.layers.count(), num_layers = static_cast<int>(core.info->layers.size());
  int64_t seen = 0;
  // How many layers come next, of those from `from` on; 0 where the piece is over.
  const auto next = [&](int from, int end, const auto& layer_of) {
    int to = from;
    for (; to < end && seen < most_entries; ++to) seen += EntriesOf(core, target, layer_of(to));
    return to - from;
  };
  const auto global = [&core](int i) { return core.layers.LayerOf(i); };
  const auto itself = [](int i) { return i; };
  if (changes.prune != nullptr && changes.num_judged < count) {
    const int more = next(changes.num_judged, count, global);
    ChooseChannels(core, source, target, *changes.prune, changes.num_judged, more, changes.channels);
    changes.num_judged += more;
    if (changes.num_judged < count) return false;
  }
  if (changes.format && changes.num_converted < num_layers) {
    if (changes.num_converted == 0 && !(core.cache->layout(target.cache_id).low == *changes.format))
      PITH_RETURN_IF_ERROR(core.cache->SetLow(target.cache_id, *changes.format));
    const int more = next(changes.num_converted, num_layers, itself);
    PITH_RETURN_IF_ERROR(DemoteLayers(core, target, changes.num_converted, more));
    changes.num_converted += more;
    if (changes.num_converted < num_layers) return false;
  }
  if (changes.prune != nullptr && changes.num_pruned < count) {
    if (changes.num_pruned == 0) PITH_RETURN_IF_ERROR(BeginPruning(core, target, *changes.prune, changes.channels));
    const int more = next(changes.num_pruned, count, global);
    PITH_RETURN_IF_ERROR(PruneKeys(core, target, changes.num_pruned, more));
    changes.num_pruned += more;
    if (changes.num_pruned < count) return false;
  }
  return true;
}

}  // namespace pith
