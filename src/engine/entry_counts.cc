#include "engine/entry_counts.h"

#include <algorithm>
#include <span>
#include <utility>

namespace pith {
namespace {

std::span<const HeadCache> HeadsOf(const EngineCore& core, const Sequence& sequence) {
  return std::as_const(*core.cache).heads(sequence.cache_id);
}

}  // namespace

int EntriesBefore(const HeadCache& head, int32_t position) {
  // Those that were lowered stand first, in any order.
  const int first = head.num_lower_entries();
  int lowered = 0;
  for (int i = 0; i < first; ++i) lowered += PositionOf(head, i) < position;
  int begin = first, end = head.num_entries();
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    PositionOf(head, middle) < position ? begin = middle + 1 : end = middle;
  }
  return lowered + begin - first;
}

int64_t EntriesOf(const EngineCore& core, const Sequence& sequence, int layer) {
  int64_t entries = 0;
  for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, layer)) {
    entries += head.num_entries();
  }
  return entries;
}

int64_t GlobalEntriesOf(const EngineCore& core, const Sequence& sequence) {
  int64_t entries = 0;
  for (const int layer : core.layers.layers()) entries += EntriesOf(core, sequence, layer);
  return entries;
}

int64_t HeldOf(const EngineCore& core, const Sequence& sequence, int layer) {
  int64_t entries = EntriesOf(core, sequence, layer);
  if (!sequence.share.demotion.on) return entries;
  for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, layer)) {
    entries -= head.num_lower_entries();
  }
  return entries;
}

int64_t GlobalHeldOf(const EngineCore& core, const Sequence& sequence) {
  int64_t entries = 0;
  for (const int layer : core.layers.layers()) entries += HeldOf(core, sequence, layer);
  return entries;
}

int64_t EntriesWithin(const EngineCore& core, const Sequence& sequence, int32_t from, int32_t to) {
  int64_t inside = 0;
  for (const int layer : core.layers.layers()) {
    for (const HeadCache& head : std::as_const(*core.cache).heads(sequence.cache_id, layer)) {
      inside += EntriesBefore(head, to) - EntriesBefore(head, from);
    }
  }
  return inside;
}

double PerHead(const EngineCore& core, int64_t entries) {
  return static_cast<double>(entries) / static_cast<double>(std::max<int64_t>(core.layers.num_heads(), 1));
}

int KeepOf(const Sequence& sequence, double entries) {
  const SharePlan& share = sequence.share;
  return share.demotion.on ? share.demotion.HighEntries(entries) : share.keep_entries;
}

size_t BytesToExtend(const EngineCore& core, const Sequence& sequence, int num_rows) {
  size_t bytes = 0;
  for (const HeadCache& head : HeadsOf(core, sequence)) bytes += head.PagesToExtend(num_rows).bytes;
  return bytes;
}

size_t BytesToKeep(const EngineCore& core, const Sequence& sequence, int num_rows) {
  size_t low_page = 0, low_pages = 0, pages = 0, pages_before = 0;
  for (const HeadCache& head : HeadsOf(core, sequence)) {
    const auto entries = static_cast<size_t>(head.num_entries() + num_rows), low = entries / kPageEntries;
    const auto low_before = static_cast<size_t>(head.num_low_entries() / kPageEntries);
    low_page = std::max(low_page, head.low_layout()->planned_bytes());
    low_pages += low - std::min(low, low_before);
    pages += entries % kPageEntries != 0;
    pages_before += head.pages().size() - low_before;
  }
  const size_t page_cost = sequence.setup->flight.page_cost;
  return low_pages * (low_page + PagePool::kTableBytesPerPage + 2 * sizeof(std::byte*)) +
         (pages - std::min(pages, pages_before)) * page_cost;
}

}  // namespace pith
