// The ragged, budgeted cache: every (sequence, layer, kv head) holds its own
// number of entries, in pages.
//
//   sequence ── layer 0 ── kv head 0: [page][page][pa  ]   61 entries
//            │           └ kv head 1: [page][p   ]         40 entries
//            └─ layer 1 ── ...
//
// Entries of a head are in time order (but see below); page i holds entries i*P .. i*P + P-1. A head may keep its
// older whole pages in a smaller format, as KIVI does (arXiv:2402.02750): entries arrive in the sequence's
// own format, and Demote() converts pages that are full.
//
//   kv head 0: [q4 page][q4 page][f16 page][f1  ]
//               `---- low ----´
//
// Beside that, or instead, chosen entries go to a lower format (Lower()), whatever their time; these stand first:
//
//   kv head 1: [q2 page][q2 page][q4 page][f16 page][f1  ]       each part in time order, but for the first
//               `-- lower --´     `low´
//
// Lower pages may also hold some channels of keys alone (PrunedKeys), in the format of the pages that they come from.
// Then they are the head's oldest (Prune()), and which channels stay is chosen once (ChooseChannels()). Or they hold
// latents (cache/latents.h), made and read by the head's maps() and by the first of its other entries, which latents
// refer to by their order and which therefore stay.
//
// Pages of a coded low format (kernels/coded_pages.h) differ in size: each comes from the pool of its own.
//
// An entry's index says where it stands; TimeOrder() says in which order entries came.
//
// Formats and columns are the sequence's own; sequences of equal ones take their pages from one pool. Pages and
// tables are charged to the sequence's account.
//
// Forks share pages; whoever writes to a shared page first copies it, for its own account.
//
// Threads: different heads may be changed concurrently; sequences are created,
// forked and freed by one thread while no other touches the cache.
#ifndef PITH_CACHE_KV_CACHE_H_
#define PITH_CACHE_KV_CACHE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/byte_io.h"
#include "base/ledger.h"
#include "cache/coded_entries.h"
#include "cache/evicted_state.h"
#include "cache/latents.h"
#include "cache/page_pool.h"
#include "kernels/attention.h"
#include "kernels/page_layout.h"
#include "kernels/rotation.h"
#include "pith/types.h"

namespace pith {

class LatentPages;

// Where pages of one format come from, and what they look like.
struct PageStore {
  PagePool* pool = nullptr;
  const PageLayout* layout = nullptr;
  int recent = 0;  // the newest entries never go there
  const TurnTable* turns = nullptr;  // of the keys, for latents

  // What a page takes; of coded ones it says so itself.
  size_t BytesOf(const std::byte* page) const;
  // The pool of pages of so many bytes; `pool`, if they are all equal.
  PagePool* PoolFor(size_t bytes) const { return pool->sizes() != nullptr ? pool->sizes()->For(bytes) : pool; }
};

// What an extension would charge.
struct ExtensionCost {
  size_t num_pages = 0;  // fresh ones, with the copy of a shared last page
  size_t bytes = 0;      // of these, and of a page table that has to grow
};

// References by page.
using PageReferences = std::map<std::pair<const PagePool*, const std::byte*>, uint32_t>;

// The entries of one (sequence, layer, kv head).
class HeadCache {
 public:
  // account: of its sequence.
  HeadCache(PageStore entry, PageStore low, PageStore lower, MemoryAccount* account)
      : pool_(entry.pool),
        layout_(entry.layout),
        low_(low),
        lower_(lower),
        pages_(LedgerAllocator<std::byte*>(account)),
        channels_(LedgerAllocator<uint16_t>(account)),
        maps_(LedgerAllocator<uint16_t>(account)),
        state_(account) {}
  HeadCache(HeadCache&& other) noexcept;
  HeadCache(const HeadCache&) = delete;
  HeadCache& operator=(const HeadCache&) = delete;
  ~HeadCache() { Clear(); }

  int num_entries() const { return num_entries_; }
  // Of new entries.
  const PageLayout& layout() const { return *layout_; }
  const PageLayout& layout_of(int entry) const { return *KindOf(static_cast<size_t>(entry / kPageEntries)).layout; }
  std::span<std::byte* const> pages() const { return {pages_.data(), pages_.size()}; }
  // Describes the entries in order, in at most kMaxSegments segments. Returns how many.
  static constexpr int kMaxSegments = 3;
  int Describe(kernels::Segment* segments) const;

  // Of low pages, nullptr without a low format.
  const PageLayout* low_layout() const { return low_.layout; }
  const PageLayout* lower_layout() const { return lower_.layout; }
  // In whole pages of few bits: of the low format and of the lower one.
  int num_low_entries() const { return static_cast<int>(num_low_) * kPageEntries; }
  int num_lower_entries() const { return static_cast<int>(num_lower_) * kPageEntries; }
  // Lower pages hold some channels of keys alone; which ones, once they are chosen.
  bool prunes() const { return lower_.layout != nullptr && lower_.layout->key_dim < layout_->key_dim; }
  std::span<const uint16_t> key_channels() const { return {channels_.data(), channels_.size()}; }
  // There are latents, which no kernel reads: of num_lower_entries() entries.
  bool has_latents() const { return num_lower_ > 0 && lower_.layout->is_latent(); }
  // So many entries behind them, which stay; and what latents are made with, empty before the first ones.
  int num_references() const { return num_references_; }
  std::span<const uint16_t> maps() const { return {maps_.data(), maps_.size()}; }
  // Whole pages that Prune() leaves, or that Demote(0) would convert, after so many of the newest entries are gone.
  bool HasOldPages(int newest) const;
  // Indices of all entries as they came; empty where that is the order in which they stand.
  std::vector<int32_t> TimeOrder() const;
  // Of keys, values and their scales, and of state() once it knows of entries.
  double content_bytes() const;
  // Of entries that are gone; who drops them adds them.
  const EvictedState& state() const { return state_; }
  EvictedState& state() { return state_; }

  // Room in the page table, so that later growth does not allocate.
  Status ReserveTable(size_t num_pages);

  // Makes slots num_entries() .. num_entries() + count - 1 writable (copying a shared
  // last page). They do not exist until Commit. kOutOfBudget: nothing has changed but, perhaps, the table's room.
  Status Extend(int count);
  // What Extend(count) needs, so that a step can be refused before it begins.
  ExtensionCost PagesToExtend(int count) const;
  // Drops the newest entries, and slots that were never committed. kInvalidArgument: the first `num_entries` end
  // within a page of the low format; nothing has changed.
  Status Truncate(int num_entries);
  // [page, slot] of an entry or of a slot made by Extend.
  std::byte* page_of(int entry) { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  const std::byte* page_of(int entry) const { return pages_[static_cast<size_t>(entry / kPageEntries)]; }
  void Commit(int count) { num_entries_ += count; }

  // Converts whole pages to the low format, oldest first, but for the newest `residual` entries; without a low
  // format nothing happens. A page that nobody shares pays for its successor. kOutOfBudget: some pages may have been
  // converted, all entries are there.
  Status Demote(int residual);

  // These ascending entries go to the lower format, which the sequence must have, all but the newest of them that would
  // not fill a page. Pages that fall empty pay for those that are needed. kOutOfBudget: that is not enough; nothing has
  // changed. Latents need a lower format of them, no low one, and entries behind references; where the head has no
  // maps(), they are fitted to these entries.
  Status Lower(std::span<const int32_t> entries);

  // Maps for latents to come, of a head without any (AreMapsFor()). kOutOfBudget: the account does not hold them.
  Status SetMaps(std::span<const uint16_t> maps);

  // Of a head that has_latents(), for whoever reads all of them. References from the `first` on, keys before RoPE:
  // [count, D].
  void ReadReferences(int first, int count, float* rows) const;
  // A page of latents as entries in a page of layout(), columns apart. references: all of them; table: of maps();
  // scratch: LatentScratchFloats(), at a multiple of 64 bytes. Allocates nothing.
  size_t LatentScratchFloats() const;
  void ReadLatentPage(size_t page, const float* references, const float* table, float* scratch, std::byte* to) const;

  // Of a head that prunes() and holds no lower page: the channels that keys keep, ascending, as many as the layout of
  // lower pages says. kOutOfBudget: the table does not hold them.
  Status ChooseChannels(std::span<const uint16_t> channels);

  // Once channels are chosen: whole pages lose the others, oldest first, but for the newest entries that keep theirs. A
  // page that nobody shares pays for its successor. kOutOfBudget: some pages may be pruned, all entries are there.
  Status Prune();

  // Keeps only the entries with these ascending indices; pages that fall empty are freed.
  // Survivors in low pages whose keys are in groups are grouped anew on a grid on which their error does not add
  // up (kernels/group_codec.h), but for pages that stay as they are; an incomplete last group goes to the front
  // of the 16-bit entries or is completed with them.
  // Pages that fall empty pay for those that are needed, as copies of shared ones are. kOutOfBudget: that is not
  // enough; nothing has changed.
  Status Keep(std::span<const int32_t> kept);

  // Frees whole pages at the front whose entries are all older than `position`.
  // Returns the number of entries dropped. O(1) per page: nothing is moved.
  int DropPagesBefore(int32_t position);

  // Shares all pages with `other`, which must be empty and of the same layout.
  Status ForkInto(HeadCache& other) const;

  void Clear();

  // Reads into contiguous arrays: positions [n], keys [n, D], values [n, Dv], a column [n]. Of positions and columns
  // also as many as the array holds from `first` on, which begins a page.
  void ReadPositions(std::span<int32_t> positions) const;
  void ReadKeys(float* keys) const;
  void ReadValues(float* values) const;
  // The keys, or values, of these ascending entries, [entries, D] and [entries, Dv].
  void ReadKeysOf(std::span<const int32_t> entries, float* keys) const;
  void ReadValuesOf(std::span<const int32_t> entries, float* values) const;
  void ReadColumn(int column, std::span<float> values) const;
  // Copies the entry's page if it is shared, before columns are written in place. kOutOfBudget if that is
  // impossible.
  Status MakeWritable(int entry) { return Unshare(static_cast<size_t>(entry / kPageEntries)); }
  // Columns of a shared page may not be written: kOutOfBudget if a copy was needed and impossible.
  Status WriteColumn(int column, std::span<const float> values);
  // As WriteColumn, of numbers that follow from the entries alone, which forks may therefore share: no page is copied.
  void WriteSharedColumn(int column, std::span<const float> values);
  // New keys [n, D] and values [n, Dv] for these ascending entries; positions and columns stay. f16 pages
  // only. kOutOfBudget: a shared page could not be copied; entries of earlier pages are rewritten already.
  Status Rewrite(std::span<const int32_t> entries, const float* keys, const float* values);

  Status Verify() const;
  void CountReferences(PageReferences* references) const;

  // As bytes (src/cache/cache_file.cc), coded where there is a coder, which has counted before. Restore: into an empty
  // head, of a sequence that ends before `end_position`; after an error the head is to be freed. kCorrupt,
  // kOutOfBudget.
  void CountCodes(LayerCoder& coder) const;
  void Save(ByteWriter& writer, LayerCoder* coder = nullptr) const;
  Status Restore(ByteReader& reader, int32_t end_position, LayerCoder* coder = nullptr);

 private:
  friend class KvCache;
  MemoryAccount* account() const { return pages_.get_allocator().account(); }
  // Adds to an exchange what ChangeLow() and ChangeLower() give up and take.
  void OfferLow(PageStore low, PageExchange* exchange) const { Offer(num_lower_, num_low_, low_, low, exchange); }
  void OfferLower(PageStore lower, PageExchange* exchange) const { Offer(0, num_lower_, lower_, lower, exchange); }
  // Converts the low pages to another format, to pages taken from the settled exchange, and demotes to it from now
  // on; to the format of new entries: there are no low pages any more.
  void ChangeLow(PageStore low, PageExchange* exchange);
  void ChangeLower(PageStore lower, PageExchange* exchange);
  void Offer(size_t first, size_t end, PageStore from, PageStore to, PageExchange* exchange) const;
  void Convert(size_t first, size_t end, PageStore from, PageStore to, PageExchange* exchange);
  template <class Visit>
  void ForEachPage(size_t num_entries, const Visit& visit) const;
  template <class Read>
  void ReadRowsOf(std::span<const int32_t> entries, size_t dim, const Read& read, float* rows) const;
  void ReadPageKeys(int entry, int count, LatentPages& latents, float* keys) const;
  void ReadPageValues(int entry, int count, LatentPages& latents, float* values) const;
  // [entries, D], keys before RoPE.
  std::vector<float> ReadVectorsOf(std::span<const int32_t> entries) const;
  void UnturnRow(int32_t position, float* row) const;
  // Entries as pages of latents one behind the other, with references among these others.
  Result<std::vector<std::byte>> MakeLatents(std::span<const int32_t> entries, std::span<const int32_t> references);
  Status RestoreLatents(ByteReader& reader);
  Status VerifyLatents() const;
  // Of all pages of the same part.
  PageStore KindOf(size_t page) const {
    return page < num_lower_ ? lower_ : page < num_low_ ? low_ : PageStore{pool_, layout_};
  }
  // With the pool that a page is from.
  PageStore StoreOf(size_t page) const {
    PageStore store = KindOf(page);
    if (store.layout->format.coded()) store.pool = store.PoolFor(store.BytesOf(pages_[page]));
    return store;
  }
  Status Unshare(size_t page_index);
  // The page's contents go to `fresh`, which takes its place in the table.
  void CopyTo(std::byte* fresh, size_t page_index);
  // Extend(count) writes to a page that others read.
  bool SharesLastPage(int count) const;
  size_t GrownTable(size_t num_pages) const;
  // An entry where it lies.
  struct Source {
    const PageLayout* layout;
    const std::byte* page;
    int slot;
  };
  std::vector<Source> SourcesOf(size_t page) const;  // all entries of a full page
  // All entries of one page, in their places.
  static bool IsWholePage(std::span<const Source> sources);
  // Writes `sources` to the first slots of a page. keys: scratch, [D][P] floats.
  void FillPage(const PageLayout& layout, std::byte* page, std::span<const Source> sources,
                std::vector<float>& keys) const;
  // Writes `sources` to a coded page in `page`, of layout.page_bytes. Returns how many of these it takes.
  size_t FillCoded(const PageLayout& layout, std::byte* page, std::span<const Source> sources) const;
  // The pool of a page to be filled with these; of a coded one its content, to know its size.
  PagePool* StageCoded(PageStore store, std::span<const Source> sources, std::vector<std::byte>& page) const;
  // What stands where: entries by their indices now, of each format.
  struct Parts {
    std::vector<int32_t> lower, low, entry;
    std::vector<int32_t> all() const;
    bool entries_move_back = false;  // some of `entry` go to a later page than theirs
  };
  // Fills the last page of each format of few bits with entries of the next one, or empties it into that.
  void Complete(Parts& parts) const;
  // Pages of latents that join the lower ones are left undefined.
  Status Arrange(const Parts& parts);
  size_t LargestPageBytes() const;  // of any of its formats
  Status RestoreChannels(ByteReader& reader);
  Status RestoreParts(ByteReader& reader, LayerCoder* coder);
  template <class Visit>
  void ForEachPart(const CodedForm* form, const Visit& visit) const;
  // Of an empty head, which gets pages in the lower and the low format with undefined content; coded ones are of the
  // least size.
  Status ExtendLow(size_t num_lower, size_t num_low);
  Status RestoreCoded(ByteReader& reader, std::byte*& page, PageStore store);

  PagePool* pool_;
  const PageLayout* layout_;
  PageStore low_, lower_;
  size_t num_low_ = 0;    // the first pages, all full
  size_t num_lower_ = 0;  // the first of these, in the lower format
  LedgerVector<std::byte*> pages_;
  LedgerVector<uint16_t> channels_;  // of keys in lower pages
  LedgerVector<uint16_t> maps_;      // of latents
  int num_references_ = 0;
  EvictedState state_;
  int num_entries_ = 0;
};

// A layer of the model.
struct CacheLayer {
  int num_kv_heads = 0;  // 0: this layer has no cache of its own
  int key_dim = 0;
  int value_dim = 0;
  bool global = false;   // recipes act on it, so that its entries have the sequence's columns
  const Rotation* rotation = nullptr;  // of its keys, which the cache copies; null: none that can be undone
};

// What lower pages leave out of keys.
struct PrunedKeys {
  double share = 0;  // of the channels (ChannelsLeft()); 0: nothing
  int recent = 0;    // the newest entries of a head keep all

  friend bool operator==(const PrunedKeys&, const PrunedKeys&) = default;
};

// How a sequence stores its entries.
struct SequenceLayout {
  PageFormat entry = {};               // in which entries arrive
  int num_columns = 0;                 // of each entry of a global layer
  std::optional<PageFormat> low = {};  // of full pages, if another
  std::optional<PageFormat> lower = {};  // of entries that are chosen, if there are to be any
  PrunedKeys pruned = {};              // in global layers, whose old entries then are these
  int state_rank = 0;                  // of states of entries that are gone, in global layers; 0: there are none

  PageFormat full() const { return low.value_or(entry); }  // of full pages
  friend bool operator==(const SequenceLayout&, const SequenceLayout&) = default;
};

class KvCache {
 public:
  // The ledger outlives the cache. Nothing is charged yet.
  static std::unique_ptr<KvCache> Create(Ledger* ledger, std::vector<CacheLayer> layers);

  // An empty sequence whose pages and tables `account` pays for; the account outlives it. kOutOfBudget: it does not
  // hold the sequence's tables. kIo: no address space for pages of this layout. kInvalidArgument: keys of entries are
  // not in 16 bits, and full pages shall be converted.
  Result<int> NewSequence(const SequenceLayout& layout, MemoryAccount* account);
  // One that shares all pages, of the same layout. What it writes from now on is its own account's.
  Result<int> Fork(int sequence, MemoryAccount* account);
  void Free(int sequence);

  // What Demote() converts this sequence's pages to from now on. Pages that are in another low format are converted;
  // to the entries' own format: there will be no low pages. kOutOfBudget, kIo, kInvalidArgument (as for
  // NewSequence()): nothing has changed.
  Status SetLow(int sequence, PageFormat format);

  // The same of what Lower() converts to, or Prune() where keys lose channels. kInvalidArgument, too: there are such
  // entries, and none or other ones are to be.
  Status SetLower(int sequence, std::optional<PageFormat> format, PrunedKeys pruned = {});

  const SequenceLayout& layout(int sequence) const { return sequences_.at(sequence).layout; }
  HeadCache& head(int sequence, int layer, int kv_head) {
    return sequences_.at(sequence).heads[first_head_[static_cast<size_t>(layer)] + static_cast<size_t>(kv_head)];
  }
  const HeadCache& head(int sequence, int layer, int kv_head) const {
    return sequences_.at(sequence).heads[first_head_[static_cast<size_t>(layer)] + static_cast<size_t>(kv_head)];
  }
  // Of a layer; none where it has no cache of its own.
  std::span<const HeadCache> heads(int sequence, int layer) const { return HeadsOf(heads(sequence), layer); }
  std::span<HeadCache> heads(int sequence, int layer) { return HeadsOf(heads(sequence), layer); }
  // Of all layers, in order.
  std::span<const HeadCache> heads(int sequence) const { return sequences_.at(sequence).heads; }
  std::span<HeadCache> heads(int sequence) { return sequences_.at(sequence).heads; }

  // All heads of a sequence as bytes, and back into a new one of the same layout. form: coded, which moves keys and
  // values; the same on the way back. kInvalidArgument: of a cache with other layers, or a sequence of another layout.
  void Save(int sequence, ByteWriter& writer, const std::optional<CodedForm>& form = {}) const;
  Status Restore(int sequence, ByteReader& reader, int32_t end_position, const std::optional<CodedForm>& form = {});

  const std::vector<CacheLayer>& layers() const { return layers_; }
  size_t num_heads() const { return first_head_.back(); }  // over all layers
  // What free pages still keep resident (page_pool.h).
  size_t idle_bytes() const { return arena_.idle_bytes(); }

  // First broken invariant, or ok: entries, references, and that each account is charged the pages it owns.
  // O(pages): tests and debug builds.
  Status Verify() const;

  // Bytes of one head's bookkeeping, tables apart.
  static constexpr size_t kHeadBytes = sizeof(HeadCache);

 private:
  KvCache(Ledger* ledger, std::vector<CacheLayer> layers);

  // Pages of one format, number of columns and share of channels.
  struct PageClass {
    PageFormat format;
    int num_columns = 0;
    double pruned = 0;
    std::vector<PageLayout> layouts;  // [layers]
    std::unique_ptr<PagePool> equal;  // of the largest layer's page size; null: no layer has entries
    std::unique_ptr<SizedPools> sized;  // instead, for a coded format

    PagePool* pool() const { return sized != nullptr ? sized->largest() : equal.get(); }
    PageStore store(size_t layer) const { return {pool(), &layouts[layer]}; }
  };
  using Heads = LedgerVector<HeadCache>;
  struct Sequence {
    Sequence(const SequenceLayout& its_layout, Heads its_heads) : layout(its_layout), heads(std::move(its_heads)) {}
    MemoryAccount* account() const { return heads.get_allocator().account(); }

    SequenceLayout layout;
    Heads heads;  // [num_heads()]
  };

  template <class Head>
  std::span<Head> HeadsOf(std::span<Head> all, int layer) const {
    const auto l = static_cast<size_t>(layer);
    return all.subspan(first_head_[l], first_head_[l + 1] - first_head_[l]);
  }
  Result<const PageClass*> FindClass(PageFormat format, int num_columns, double pruned = 0);
  // Lower pages of a layer; none: it has no such.
  PageStore LowerStore(const PageClass* lower, PrunedKeys pruned, size_t layer) const;
  // visit(layer, head) for all heads of a sequence.
  template <class Visit>
  void ForEachHead(Sequence& sequence, const Visit& visit);
  std::vector<const PagePool*> Pools() const;
  Status VerifyAccounts() const;

  Ledger* const ledger_;
  const std::vector<CacheLayer> layers_;
  std::vector<size_t> first_head_;  // [layers + 1]
  std::vector<std::shared_ptr<const TurnTable>> turns_;  // [layers], which layers share
  PageArena arena_;
  std::vector<std::unique_ptr<PageClass>> classes_;
  std::map<int, Sequence> sequences_;
  int next_sequence_ = 0;
};

}  // namespace pith

#endif  // PITH_CACHE_KV_CACHE_H_
