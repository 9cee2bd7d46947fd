// Prefixes that outlive the sequences, and the process, that have read them.
//
//   Put -> RAM (a hard limit, an evictor) -- a thread writes behind --> SSD (segments in a folder, a limit, an evictor)
//                                                            or --> a server of keys and values (remote_tier.h)
//   Find: the objects that a text can go on from, by the keys of its blocks; Load: from RAM, or from there into RAM
//
// The store may lose what it was given. It never gives other bytes than those, and what goes wrong is a miss that is
// counted: Put() and Load() fail no request.
//
// Threads: any.
#ifndef PITH_STORE_STORE_H_
#define PITH_STORE_STORE_H_

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "pith/types.h"
#include "store/object.h"
#include "store/remote_tier.h"
#include "store/ssd_tier.h"
#include "store/tier_policy.h"

namespace pith::store {

enum class Tier : uint8_t { kRam, kSsd, kRemote };
inline constexpr size_t kNumTiers = 3;
const char* TierName(Tier tier);  // "ram"

struct StoreOptions {
  size_t ram_bytes = 0;         // of objects in memory, those on their way to the disk or to a reader included
  std::string folder;           // empty: no SSD tier
  uint64_t ssd_bytes = 0;
  std::string remote = "";      // URL of a server; empty: none. Not beside a folder
  std::string evictor = "lru";  // of both tiers (src/evict)
  bool places = false;          // RAM holds what MoveToRam() puts there, and nothing else
  double quality_loss = 0.03;   // for whoever places: what a context may lose of its quality
  uint64_t segment_bytes = 0;   // 0: from the limit
  Files* files = &Files::Real();
};

// What a text can go on from.
struct Match {
  ObjectInfoPtr info;
  size_t tokens = 0;  // of the text that need not be read, as far as the store can tell
  Tier tier = Tier::kRam;
};

struct Query {
  std::span<const Sha256Digest> roots;  // spaces whose objects would do
  std::span<const int32_t> tokens;
  // >= 0: whoever dropped entries must have pinned the same of the tokens in common.
  int32_t num_pinned = -1;
  bool whole_only = false;  // only an object of all tokens with its logits
  bool prefers_contexts = false;  // those with a configuration, even if they save a little less
};

struct Found {
  std::vector<Match> matches;  // those that save most first
  // Whole blocks of the text that some object begins with, too, whether or not it can be used: where texts part.
  size_t shared_tokens = 0;
};

struct Loaded {
  ObjectInfoPtr info;
  BlockPtr payload;  // stays as long as it is held
  Tier tier = Tier::kRam;
  double seconds = 0;
};

struct Latencies {  // a histogram
  static constexpr std::array<double, 10> kBounds = {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5};
  std::array<uint64_t, kBounds.size() + 1> counts{};
  double sum = 0;
  void Add(double seconds);
};

struct TierStats {
  uint64_t capacity_bytes = 0, bytes = 0;
  uint64_t objects = 0, pinned_bytes = 0;
  uint64_t hits = 0, hit_tokens = 0;
  uint64_t puts = 0, evictions = 0, promotions = 0;
  double bytes_per_second = 0;  // read, a moving average; 0: nothing was
  Latencies get_seconds, put_seconds;
};

struct StoreStats {
  std::array<TierStats, kNumTiers> tiers;
  uint64_t lookups = 0, lookup_tokens = 0, misses = 0, hit_tokens = 0;
  uint64_t too_slow = 0;        // found, but computing is faster
  double saved_seconds = 0;     // of computing, less loading; estimated
  uint64_t ssd_file_bytes = 0, ssd_segments = 0;
  std::map<std::string, uint64_t> errors;  // by kind
};

class Store {
 public:
  // kInvalidArgument, kUnsupported: the options; kIo: the folder cannot be had.
  static Result<std::shared_ptr<Store>> Open(const StoreOptions& options);
  // Writes what is not on the disk yet.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  Found Find(const Query& query);
  // Nothing: it is gone, or damaged, or there is no memory for it.
  std::optional<Loaded> Load(const Key& key) { return Load(key, !options_.places); }
  // Fills in key, payload_bytes and written_at. Takes the place of an object of the same key. False: it is not stored.
  // Waits up to kPutSeconds for room that is being written out.
  bool Put(ObjectInfo info, std::span<const std::byte> payload);
  bool Contains(const Key& key);
  // For whoever places objects. They come to the disk alone (Put()). False: memory has no room.
  bool MoveToRam(const Key& key);
  // Others do not push it out of a tier for so many seconds, within half of the tier. Of this process; the object may
  // come to another tier meanwhile. False: it is in none, or there is no room for more that stays.
  bool Pin(const Key& key, double seconds);
  // False: there is none. From the folder, too, for every process.
  bool Remove(const Key& key);
  // What is in RAM alone is on the disk when it returns. The first error.
  Status Sync();
  // Of segments whose live share is below `share`; bytes that became free.
  Result<uint64_t> Compact(double share);
  // Reads all objects on the disk and drops those that are damaged, which it returns. stop: asked between objects.
  std::vector<ObjectInfoPtr> Verify(const std::function<bool(size_t done, size_t total)>& go_on);
  // What other processes have written: to the folder, looked at once a second at most; to the server, as far as the
  // text could go on from it.
  void Refresh(const Query& query);

  // All that is in memory or in the folder, the oldest first.
  std::vector<ObjectInfoPtr> List();
  StoreStats stats();
  bool has_ssd() const { return ssd_ != nullptr; }
  uint64_t most_object_bytes() const;
  uint64_t ram_capacity() const { return policy(Tier::kRam)->capacity(); }
  uint64_t ssd_capacity() const { return ssd_ != nullptr ? policy(Tier::kSsd)->capacity() : 0; }
  const StoreOptions& options() const { return options_; }

  // For whoever loads: how a lookup ended. tier: of a hit.
  void CountLookup(size_t tokens, size_t hit_tokens, std::optional<Tier> tier, double saved_seconds);
  void CountTooSlow();
  void CountError(const std::string& kind);

 private:
  struct Entry {
    ObjectInfoPtr info;
    std::vector<Key> blocks;  // by which it is found
    uint32_t id = 0;
    uint64_t version = 0;     // of its contents
    BlockPtr ram;
    std::optional<Place> ssd;
    std::optional<RemotePlace> remote;
    bool queued = false;  // to be written
    bool is_there() const { return ram != nullptr || ssd.has_value() || remote.has_value(); }
    Tier tier() const { return ram != nullptr ? Tier::kRam : ssd ? Tier::kSsd : Tier::kRemote; }
  };
  // To be written: what an entry held when it was queued.
  struct Pending {
    ObjectInfoPtr info;
    BlockPtr block;
    uint64_t version = 0;
  };
  using EntryMap = std::unordered_map<Key, std::unique_ptr<Entry>, KeyHash>;

  explicit Store(const StoreOptions& options) : options_(options) {}
  Status Init();

  using Lock = std::unique_lock<std::mutex>;

  TierPolicy* policy(Tier tier) const { return policies_[static_cast<size_t>(tier)].get(); }

  // With mutex_ held.
  Entry* EntryOf(const Key& key);
  Entry* EntryOf(uint32_t id) { return EntryOf(key_of_id_[id]); }
  // Of this content from now on; its bytes are elsewhere.
  Entry& Renew(ObjectInfoPtr info);
  void DropIfGone(Entry& entry);
  uint32_t TakeId(const Key& key);
  // In RAM or on the SSD. The entry may come into the tier: what goes for it is dropped.
  bool Admit(Tier tier, Entry& entry, uint64_t bytes);
  // It is not there any more, as the tier's policy says or shall know.
  void Lose(Tier tier, Entry& entry);
  void Leave(Tier tier, Entry& entry);
  void DropVictims(Tier tier, const std::vector<uint32_t>& victims, const Entry& but);
  // Where it is pinned, in the tier that it has come to.
  bool PinIn(Tier tier, const Entry& entry);
  void SetPlace(Entry& entry, const Place& place);
  void Look(const Query& query, const Chain& chain, Found& found);
  void RefreshFolder();
  // An object on the server, known from now on, as long as few others are.
  void OnRemote(RecordHeader header);
  // Memory within the limit, where need be once the thread has written something out. Null: there is none.
  std::shared_ptr<Block> MakeBlock(Lock& lock, size_t bytes, bool beyond);

  // The listener of the SSD tier.
  void OnFound(const Place& place, RecordHeader header);
  bool OnMoved(const Key& key, const Place& from, const Place& to);
  void OnSegmentGone(uint64_t segment);

  // Without it.
  std::optional<Loaded> Load(const Key& key, bool promotes);
  bool PutInRam(const ObjectInfoPtr& info, std::span<const std::byte> payload, bool* queued);
  Status Write(const Pending& pending, std::span<const std::byte> payload);
  Status WriteRemote(const Pending& pending, std::span<const std::byte> payload);
  void RunWriter();

  const StoreOptions options_;
  std::shared_ptr<std::atomic<size_t>> ram_used_ = std::make_shared<std::atomic<size_t>>(0);
  std::unique_ptr<SsdTier> ssd_;
  std::unique_ptr<RemoteTier> remote_;

  std::mutex mutex_;
  std::condition_variable wake_, written_;
  EntryMap entries_;
  std::unordered_map<Key, std::vector<Entry*>, KeyHash> through_;  // objects by each of their whole blocks
  std::unordered_map<uint64_t, std::vector<Key>> by_segment_;      // may name what has moved since
  std::map<Key, Place> superseded_;                                // older records of keys that are being written
  std::vector<std::pair<Place, RecordHeader>> initial_;            // found while the folder is opened
  std::unordered_map<Key, uint32_t, KeyHash> ids_;                 // of objects that are here or were
  std::deque<Key> old_ids_;                                        // in the order in which they were given
  std::vector<Key> key_of_id_;
  std::deque<Key> on_remote_;  // known to be on the server; may name what is no more
  std::array<std::unique_ptr<TierPolicy>, 2> policies_;        // of RAM and, where there is a folder, the SSD
  std::map<Key, std::chrono::steady_clock::time_point> pins_;  // until when
  std::deque<Pending> queue_;
  size_t num_writing_ = 0;
  uint64_t next_version_ = 1;
  bool stops_ = false;
  std::chrono::steady_clock::time_point ssd_rests_until_{}, refreshed_{};
  StoreStats stats_;
  std::thread writer_;
};

}  // namespace pith::store

#endif  // PITH_STORE_STORE_H_
