// The ragged, budgeted cache: every (sequence, layer, kv head) holds its own
// number of entries, in pages of one pool.
//
//   sequence ── layer 0 ── kv head 0: [page][page][pa  ]   61 entries
//            │           └ kv head 1: [page][p   ]         40 entries
//            └─ layer 1 ── ...
//
// Entries of a head are in time order; page i holds entries i*P .. i*P + P-1. A head may keep its
// older whole pages in a smaller format, as KIVI does (arXiv:2402.02750): entries arrive in the cache's
// own format, and Demote() converts pages that are full.
//
//   kv head 0: [q4 page][q4 page][f16 page][f1  ]
//               `---- low ----´
//
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

#include "base/byte_io.h"
#include "base/ledger.h"
#include "cache/page_pool.h"
#include "kernels/attention.h"
#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

// Where pages of one format come from, and what they look like.
struct PageStore {
  PagePool* pool = nullptr;
  const PageLayout* layout = nullptr;
};

// The entries of one (sequence, layer, kv head).
class HeadCache {
 public:
  HeadCache(PagePool* pool, const PageLayout* layout, Ledger* ledger)
      : pool_(pool), layout_(layout), pages_(LedgerAllocator<std::byte*>(ledger)) {}
  HeadCache(HeadCache&& other) noexcept;
  HeadCache(const HeadCache&) = delete;
  HeadCache& operator=(const HeadCache&) = delete;
  ~HeadCache() { Clear(); }

  int num_entries() const { return num_entries_; }
  // Of new entries.
  const PageLayout& layout() const { return *layout_; }
  const PageLayout& layout_of(int entry) const { return *StoreOf(static_cast<size_t>(entry / kPageEntries)).layout; }
  std::span<std::byte* const> pages() const { return {pages_.data(), pages_.size()}; }
  // Describes the entries in order, in at most kMaxSegments segments. Returns how many.
  static constexpr int kMaxSegments = 2;
  int Describe(kernels::Segment* segments) const;

  // Of low pages, nullptr without SetLow().
  const PageLayout* low_layout() const { return low_.layout; }
  int num_low_entries() const { return static_cast<int>(num_low_) * kPageEntries; }
  // Of keys, values and their scales.
  double content_bytes() const;

  // Room in the page table, so that later growth does not allocate.
  Status ReserveTable(size_t num_pages);

  // Makes slots num_entries() .. num_entries() + count - 1 writable (copying a shared
  // last page). They do not exist until Commit. kOutOfBudget: nothing has changed.
  Status Extend(int count);
  // [page, slot] of an entry or of a slot made by Extend.
  std::byte* page_of(int entry) { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  const std::byte* page_of(int entry) const { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  void Commit(int count) { num_entries_ += count; }

  // Pages that Demote() makes from now on. Only while there are none, or the same again.
  void SetLow(PageStore low);
  // Converts whole pages to the low format, oldest first, but for the newest `residual` entries; without a low
  // format nothing happens. kOutOfBudget: some pages may have been converted, all entries are there.
  Status Demote(int residual);

  // Keeps only the entries with these ascending indices; pages that fall empty are freed.
  // Survivors in low pages whose keys are in groups are grouped anew on a grid on which their error does not add
  // up (kernels/group_codec.h), but for pages that stay as they are; an incomplete last group goes to the front
  // of the 16-bit entries or is completed with them.
  // kOutOfBudget: a shared page would have to be copied and none is left; nothing has changed.
  Status Keep(std::span<const int32_t> kept);

  // Frees whole pages at the front whose entries are all older than `position`.
  // Returns the number of entries dropped. O(1) per page: nothing is moved.
  int DropPagesBefore(int32_t position);

  // Shares all pages with `other`, which must be empty and of the same layout.
  Status ForkInto(HeadCache& other) const;

  void Clear();

  // Reads into contiguous arrays: positions [n], keys [n, D], values [n, Dv], a column [n]. Of positions and columns also
  // as many as the array holds from `first` on, which begins a page.
  void ReadPositions(std::span<int32_t> positions) const;
  void ReadKeys(float* keys) const;
  void ReadValues(float* values) const;
  // The values of these ascending entries, [entries, Dv].
  void ReadValuesOf(std::span<const int32_t> entries, float* values) const;
  void ReadColumn(int column, std::span<float> values) const;
  // Copies the entry's page if it is shared, before columns are written in place. kOutOfBudget if that is impossible.
  Status MakeWritable(int entry) { return Unshare(static_cast<size_t>(entry / kPageEntries)); }
  // Columns of a shared page may not be written: kOutOfBudget if a copy was needed and impossible.
  Status WriteColumn(int column, std::span<const float> values);
  // As WriteColumn, of numbers that follow from the entries alone, which forks may therefore share: no page is copied.
  void WriteSharedColumn(int column, std::span<const float> values);
  // New keys [n, D] and values [n, Dv] for these ascending entries; positions and columns stay. f16 pages
  // only. kOutOfBudget: a shared page could not be copied; entries of earlier pages are rewritten already.
  Status Rewrite(std::span<const int32_t> entries, const float* keys, const float* values);

  Status Verify() const;

  // As bytes (src/cache/cache_file.cc). Restore: into an empty head, of a sequence that ends before `end_position`;
  // after an error the head is to be freed. kCorrupt, kOutOfBudget.
  void Save(ByteWriter& writer) const;
  Status Restore(ByteReader& reader, int32_t end_position);

 private:
  template <class Visit>
  void ForEachPage(size_t num_entries, const Visit& visit) const;
  PageStore StoreOf(size_t page) const { return page < num_low_ ? low_ : PageStore{pool_, layout_}; }
  Status Unshare(size_t page_index);
  Status Regroup(std::span<const int32_t> kept, size_t first_page, size_t num_low);
  // Of an empty head, which gets pages in the low format with undefined content.
  Status ExtendLow(size_t num_pages);

  PagePool* pool_;
  const PageLayout* layout_;
  PageStore low_;
  size_t num_low_ = 0;  // the first pages, all full
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

  // Pages for heads that are demoted to `format`, at most num_pages of the largest layer's size.
  Status AddFormat(PageFormat format, size_t num_pages);
  // What Demote() converts this sequence's pages to. The format was added.
  void SetLow(int sequence, PageFormat format);

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

  // All heads of a sequence as bytes, and back into a new one. kInvalidArgument: of a cache with other layers.
  void Save(int sequence, ByteWriter& writer) const;
  Status Restore(int sequence, ByteReader& reader, int32_t end_position);

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
  struct LowFormat {
    PageFormat format;
    std::vector<PageLayout> layouts;  // [layers]
    std::unique_ptr<PagePool> pool;
  };
  std::vector<std::unique_ptr<LowFormat>> low_formats_;
  std::map<int, Heads> sequences_;
  int next_sequence_ = 0;
};

}  // namespace pith

#endif  // PITH_CACHE_KV_CACHE_H_
