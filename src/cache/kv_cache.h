// The ragged, budgeted cache: every (sequence, layer, kv head) holds its own
// number of entries, in pages of one pool.
//
//   sequence ── layer 0 ── kv head 0: [page][page][pa  ]   61 entries
//            │           └ kv head 1: [page][p   ]         40 entries
//            └─ layer 1 ── ...
//
// Entries of a head are in time order; page i holds entries i*P .. i*P + P-1.
// Forks share pages; whoever writes to a shared page first copies it.
//
// Threads: different heads may be changed concurrently; sequences are created,
// forked and freed by one thread while no other touches the cache.
#ifndef PITH_CACHE_KV_CACHE_H_
#define PITH_CACHE_KV_CACHE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/ledger.h"
#include "cache/page_pool.h"
#include "kernels/attention.h"
#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

// The entries of one (sequence, layer, kv head) in one storage format.
class HeadCache {
 public:
  HeadCache(PagePool* pool, const PageLayout* layout, Ledger* ledger)
      : pool_(pool), layout_(layout), pages_(LedgerAllocator<std::byte*>(ledger)) {}
  HeadCache(HeadCache&& other) noexcept;
  HeadCache(const HeadCache&) = delete;
  HeadCache& operator=(const HeadCache&) = delete;
  ~HeadCache() { Clear(); }

  int num_entries() const { return num_entries_; }
  const PageLayout& layout() const { return *layout_; }
  std::span<std::byte* const> pages() const { return {pages_.data(), pages_.size()}; }
  kernels::Segment segment() const {
    return {.layout = layout_, .pages = pages_.data(), .num_entries = num_entries_};
  }

  // Room in the page table, so that later growth does not allocate.
  Status ReserveTable(size_t num_pages);

  // Makes slots num_entries() .. num_entries() + count - 1 writable (copying a shared
  // last page). They do not exist until Commit. kOutOfBudget: nothing has changed.
  Status Extend(int count);
  // [page, slot] of an entry or of a slot made by Extend.
  std::byte* page_of(int entry) { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  const std::byte* page_of(int entry) const { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  void Commit(int count) { num_entries_ += count; }

  // Keeps only the entries with these ascending indices; pages that fall empty are freed.
  // kOutOfBudget: a shared page would have to be copied and none is left; nothing has changed.
  Status Keep(std::span<const int32_t> kept);

  // Frees whole pages at the front whose entries are all older than `position`.
  // Returns the number of entries dropped. O(1) per page: nothing is moved.
  int DropPagesBefore(int32_t position);

  // Shares all pages with `other`, which must be empty and of the same layout.
  Status ForkInto(HeadCache& other) const;

  void Clear();

  // Reads into contiguous arrays: positions [n], keys [n, D], values [n, Dv], a column [n].
  void ReadPositions(std::span<int32_t> positions) const;
  void ReadKeys(float* keys) const;
  void ReadValues(float* values) const;
  void ReadColumn(int column, std::span<float> values) const;
  // Columns of a shared page may not be written: kOutOfBudget if a copy was needed and impossible.
  Status WriteColumn(int column, std::span<const float> values);
  // New keys [n, D] and values [n, Dv] for these ascending entries; positions and columns stay. f16 pages
  // only. kOutOfBudget: a shared page could not be copied; entries of earlier pages are rewritten already.
  Status Rewrite(std::span<const int32_t> entries, const float* keys, const float* values);

  Status Verify() const;

 private:
  Status Unshare(size_t page_index);

  PagePool* pool_;
  const PageLayout* layout_;
  LedgerVector<std::byte*> pages_;
  int num_entries_ = 0;
};

// What a layer's cache looks like.
struct CacheLayer {
  int num_kv_heads = 0;  // 0: this layer has no cache of its own
  PageLayout layout;
};

class KvCache {
 public:
  // num_pages pages of the largest layer's page size.
  static Result<std::unique_ptr<KvCache>> Create(Ledger* ledger, std::vector<CacheLayer> layers, size_t num_pages);

  Result<int> NewSequence();
  Result<int> Fork(int sequence);
  void Free(int sequence);

  HeadCache& head(int sequence, int layer, int kv_head) {
    return sequences_.at(sequence)[first_head_[static_cast<size_t>(layer)] + static_cast<size_t>(kv_head)];
  }
  const HeadCache& head(int sequence, int layer, int kv_head) const {
    return sequences_.at(sequence)[first_head_[static_cast<size_t>(layer)] + static_cast<size_t>(kv_head)];
  }
  std::span<const HeadCache> heads(int sequence, int layer) const {
    return {&head(sequence, layer, 0), static_cast<size_t>(layers_[static_cast<size_t>(layer)].num_kv_heads)};
  }
  std::span<HeadCache> heads(int sequence, int layer) {
    return {&head(sequence, layer, 0), static_cast<size_t>(layers_[static_cast<size_t>(layer)].num_kv_heads)};
  }

  const std::vector<CacheLayer>& layers() const { return layers_; }
  size_t num_heads() const { return first_head_.back(); }  // over all layers
  PagePool& pool() { return *pool_; }
  const PagePool& pool() const { return *pool_; }

  // First broken invariant, or ok. O(pages): tests and debug builds.
  Status Verify() const;

  // Bytes of one head's bookkeeping, tables apart.
  static constexpr size_t kHeadBytes = sizeof(HeadCache);

 private:
  KvCache(Ledger* ledger, std::vector<CacheLayer> layers);

  using Heads = LedgerVector<HeadCache>;
  Ledger* const ledger_;
  const std::vector<CacheLayer> layers_;
  std::vector<size_t> first_head_;  // [layers + 1]
  std::unique_ptr<PagePool> pool_;
  std::map<int, Heads> sequences_;
  int next_sequence_ = 0;
};

}  // namespace pith

#endif  // PITH_CACHE_KV_CACHE_H_
