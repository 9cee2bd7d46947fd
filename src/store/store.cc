#include "store/store.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/stopwatch.h"

namespace pith::store {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::milliseconds(200);       // for room that is being written out
constexpr auto kSsdRest = std::chrono::seconds(60);              // after a failure to write
constexpr double kSpeedShare = 0.2;                              // of a new measurement in the moving average

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string KindOf(const Error& error) {
  switch (error.code) {
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kNotFound: return "gone";
    case ErrorCode::kOutOfBudget: return "full";
    default: return "io";
  }
}

}  // namespace

const char* TierName(Tier tier) { return tier == Tier::kRam ? "ram" : tier == Tier::kSsd ? "ssd" : "remote"; }

void Latencies::Add(double seconds) {
  ++counts[static_cast<size_t>(std::ranges::lower_bound(kBounds, seconds) - kBounds.begin())];
  sum += seconds;
}

Result<std::shared_ptr<Store>> Store::Open(const StoreOptions& options) {
  std::shared_ptr<Store> store(new Store(options));
  PITH_RETURN_IF_ERROR(store->Init());
  return store;
}

Status Store::Init() {
  // The rest is for objects on their way to a reader that the evictor refuses.
  PITH_ASSIGN_OR_RETURN(policies_[0],
                        TierPolicy::Make(options_.places ? "" : options_.evictor, options_.ram_bytes / 8 * 7));
  if (!options_.remote.empty()) {
    PITH_ASSIGN_OR_RETURN(remote_, RemoteTier::Open({.url = options_.remote}));
    writer_ = std::thread([this] { RunWriter(); });
  }
  if (options_.folder.empty()) return {};
  const SsdTier::Listener listener{
      .found =
          [this](const Place& place, RecordHeader header) {
            if (ssd_ == nullptr) initial_.emplace_back(place, std::move(header));
            else OnFound(place, std::move(header));
          },
      .moved = [this](const Key& key, const Place& from, const Place& to) { return OnMoved(key, from, to); },
      .gone = [this](uint64_t segment) { OnSegmentGone(segment); }};
  PITH_ASSIGN_OR_RETURN(ssd_, SsdTier::Open({.folder = options_.folder,
                                             .limit_bytes = options_.ssd_bytes,
                                             .segment_bytes = options_.segment_bytes,
                                             .files = options_.files},
                                            listener));
  PITH_ASSIGN_OR_RETURN(policies_[1], TierPolicy::Make(options_.evictor, ssd_->most_live_bytes()));
  std::ranges::sort(initial_, {}, [](const auto& found) { return found.first.number; });
  for (auto& [place, header] : initial_) OnFound(place, std::move(header));
  initial_ = {};
  refreshed_ = SteadyClock::now();
  writer_ = std::thread([this] { RunWriter(); });
  return {};
}

Store::~Store() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  wake_.notify_all();
  if (writer_.joinable()) writer_.join();
}

uint64_t Store::most_object_bytes() const {
  return std::max<uint64_t>(ram_capacity(), ssd_ != nullptr ? options_.ssd_bytes / 4 : 0);
}

Store::Entry* Store::EntryOf(const Key& key) {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : found->second.get();
}

// An object that comes back has the number that it had, by which evictors remember it.
uint32_t Store::TakeId(const Key& key) {
  if (const auto found = ids_.find(key); found != ids_.end()) return found->second;
  uint32_t id = 0;
  if (key_of_id_.size() < kMostObjects) {
    id = static_cast<uint32_t>(key_of_id_.size());
    key_of_id_.push_back(key);
  } else {
    while (EntryOf(old_ids_.front()) != nullptr) {
      old_ids_.push_back(old_ids_.front());
      old_ids_.pop_front();
    }
    id = ids_.at(old_ids_.front());
    ids_.erase(old_ids_.front());
    old_ids_.pop_front();
    key_of_id_[id] = key;
  }
  ids_[key] = id;
  old_ids_.push_back(key);
  return id;
}

Store::Entry& Store::Renew(ObjectInfoPtr info) {
  const Key key = info->key;
  std::unique_ptr<Entry>& slot = entries_[key];
  if (slot == nullptr) {
    slot = std::make_unique<Entry>();
    slot->id = TakeId(key);
    slot->blocks = MakeChain(info->root, info->tokens).blocks;
    for (const Key& block : slot->blocks) through_[block].push_back(slot.get());
  } else {
    policy(Tier::kRam)->Erase(slot->id);  // which may expect what is still being loaded
    slot->ram.reset();
    // The older record goes once the newer one is on the disk.
    if (slot->ssd) superseded_[key] = *slot->ssd;
    if (ssd_ != nullptr) policy(Tier::kSsd)->Erase(slot->id);
    slot->ssd.reset();
    slot->remote.reset();
  }
  slot->info = std::move(info);
  slot->version = next_version_++;
  slot->queued = false;
  return *slot;
}

void Store::DropIfGone(Entry& entry) {
  if (entry.is_there() || entry.queued) return;
  for (const Key& block : entry.blocks) {
    const auto found = through_.find(block);
    std::erase(found->second, &entry);
    if (found->second.empty()) through_.erase(found);
  }
  const Key key = entry.info->key;
  entries_.erase(key);
}

bool Store::Admit(Tier tier, Entry& entry, uint64_t bytes) {
  std::vector<uint32_t> victims;
  const bool admitted = policy(tier)->Admit(entry.id, bytes, victims);
  DropVictims(tier, victims, entry);
  if (admitted) (void)PinIn(tier, entry);
  return admitted;
}

void Store::Lose(Tier tier, Entry& entry) {
  if (tier == Tier::kRam) {
    entry.ram.reset();
    entry.remote.reset();  // a lookup finds it
  } else if (entry.ssd) {
    ssd_->Forget(*entry.ssd);
    entry.ssd.reset();
  }
}

void Store::Leave(Tier tier, Entry& entry) {
  if (policy(tier) == nullptr) return;
  policy(tier)->Erase(entry.id);
  Lose(tier, entry);
}

void Store::DropVictims(Tier tier, const std::vector<uint32_t>& victims, const Entry& but) {
  for (const uint32_t victim : victims) {
    ++stats_.tiers[static_cast<size_t>(tier)].evictions;
    Entry* const gone = EntryOf(victim);
    if (gone == nullptr) continue;
    Lose(tier, *gone);
    if (gone != &but) DropIfGone(*gone);
  }
}

bool Store::PinIn(Tier tier, const Entry& entry) {
  const auto pin = pins_.find(entry.info->key);
  if (pin == pins_.end() || policy(tier) == nullptr) return false;
  const double seconds = std::chrono::duration<double>(pin->second - SteadyClock::now()).count();
  if (seconds <= 0) {
    pins_.erase(pin);
    return false;
  }
  std::vector<uint32_t> victims;
  const bool pinned = policy(tier)->Pin(entry.id, seconds, victims);
  DropVictims(tier, victims, entry);
  return pinned;
}

bool Store::Pin(const Key& key, double seconds) {
  const std::lock_guard lock(mutex_);
  const auto now = SteadyClock::now();
  std::erase_if(pins_, [&](const auto& pin) { return pin.second <= now; });
  const Entry* const entry = EntryOf(key);
  if (entry == nullptr) return false;
  const auto until = now + std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(seconds));
  auto& pin = pins_[key];
  pin = std::max(pin, until);
  const bool in_ram = PinIn(Tier::kRam, *entry);
  const bool on_ssd = PinIn(Tier::kSsd, *entry);
  return in_ram || on_ssd;
}

void Store::SetPlace(Entry& entry, const Place& place) {
  entry.ssd = place;
  by_segment_[place.segment].push_back(entry.info->key);
}

std::shared_ptr<Block> Store::MakeBlock(Lock& lock, size_t bytes, bool beyond) {
  const size_t resident = Block::ResidentBytes(bytes);
  const auto has_room = [&] { return *ram_used_ + resident <= options_.ram_bytes; };
  if (!beyond && !written_.wait_for(lock, kPatience, has_room)) {
    ++stats_.errors["no_memory"];
    return nullptr;
  }
  std::shared_ptr<Block> block = Block::Make(bytes, ram_used_);
  if (block == nullptr) ++stats_.errors["no_memory"];
  return block;
}

bool Store::PutInRam(const ObjectInfoPtr& info, std::span<const std::byte> payload, bool* queued) {
  const size_t resident = Block::ResidentBytes(payload.size());
  Lock lock(mutex_);
  if (options_.places || resident > ram_capacity()) return false;
  Entry* entry = &Renew(info);
  const uint64_t version = entry->version;
  entry->queued = true;  // so that it stays while the lock is not held
  const bool admitted = Admit(Tier::kRam, *entry, resident);
  const std::shared_ptr<Block> block = admitted ? MakeBlock(lock, payload.size(), false) : nullptr;
  entry = EntryOf(info->key);
  if (block == nullptr || entry == nullptr || entry->version != version) {
    if (entry != nullptr && entry->version == version) {
      Leave(Tier::kRam, *entry);
      entry->queued = false;
      DropIfGone(*entry);
    }
    return false;
  }
  lock.unlock();
  std::ranges::copy(payload, block->bytes().begin());
  lock.lock();
  entry = EntryOf(info->key);
  if (entry == nullptr || entry->version != version) return true;  // another one of the same key came
  // It may have been evicted meanwhile.
  if (policy(Tier::kRam)->Contains(entry->id)) entry->ram = block;
  *queued = entry->queued = ssd_ != nullptr || remote_ != nullptr;
  if (*queued) queue_.push_back({info, block, version});
  else DropIfGone(*entry);
  return true;
}

bool Store::Put(ObjectInfo info, std::span<const std::byte> payload) {
  const Stopwatch watch;
  info.key = MakeChain(info.root, info.tokens).whole;
  info.payload_bytes = payload.size();
  info.written_at = UnixSeconds();
  const auto shared = std::make_shared<const ObjectInfo>(std::move(info));
  bool queued = false;
  if (PutInRam(shared, payload, &queued)) {
    if (queued) wake_.notify_all();
    const std::lock_guard lock(mutex_);
    ++stats_.tiers[0].puts;
    stats_.tiers[0].put_seconds.Add(watch.seconds());
    return true;
  }
  if (ssd_ == nullptr && remote_ == nullptr) {
    CountError("full");
    return false;
  }
  // Past RAM.
  Pending pending{.info = shared, .block = nullptr, .version = 0};
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = Renew(shared);
    entry.queued = true;
    pending.version = entry.version;
  }
  const bool written = Write(pending, payload).has_value();
  written_.notify_all();
  return written;
}

Status Store::WriteRemote(const Pending& pending, std::span<const std::byte> payload) {
  const Stopwatch watch;
  {
    const std::lock_guard lock(mutex_);
    const Entry* const entry = EntryOf(pending.info->key);
    if (entry == nullptr || entry->version != pending.version) return {};
  }
  const Result<RemotePlace> place = remote_->Write(*pending.info, payload);
  const std::lock_guard lock(mutex_);
  Entry* const entry = EntryOf(pending.info->key);
  if (entry != nullptr && entry->version == pending.version) {
    entry->queued = false;
    if (place && entry->ram != nullptr) entry->remote = *place;
    DropIfGone(*entry);
  }
  if (!place) {
    ++stats_.errors["remote_" + KindOf(place.error())];
    return tl::unexpected<Error>(place.error());
  }
  TierStats& tier = stats_.tiers[static_cast<size_t>(Tier::kRemote)];
  ++tier.puts;
  tier.put_seconds.Add(watch.seconds());
  return {};
}

// An error is counted here.
Status Store::Write(const Pending& pending, std::span<const std::byte> payload) {
  if (remote_ != nullptr) return WriteRemote(pending, payload);
  const Stopwatch watch;
  const Key& key = pending.info->key;
  const uint64_t bytes = AlignRecord(payload.size()) + kRecordAlignment + AlignRecord(4 * pending.info->num_tokens());
  const auto give_up = [&](const std::string& kind, bool rests) {
    const std::lock_guard lock(mutex_);
    ++stats_.errors[kind];
    if (rests) ssd_rests_until_ = SteadyClock::now() + kSsdRest;
    Entry* const entry = EntryOf(key);
    if (entry == nullptr || entry->version != pending.version) return;
    if (!entry->ssd) policy(Tier::kSsd)->Erase(entry->id);
    entry->queued = false;
    if (const auto older = superseded_.find(key); older != superseded_.end()) {
      ssd_->Forget(older->second);
      superseded_.erase(older);
    }
    DropIfGone(*entry);
  };
  {
    Lock lock(mutex_);
    Entry* const entry = EntryOf(key);
    if (entry == nullptr || entry->version != pending.version) return {};  // nobody wants it any more
    if (entry->ssd) {  // another process wrote the same
      entry->queued = false;
      return {};
    }
    const bool rests = SteadyClock::now() < ssd_rests_until_;
    if (rests || !Admit(Tier::kSsd, *entry, bytes)) {
      lock.unlock();
      give_up(rests ? "unwritten" : "full", false);
      return OutOfBudget("it is not written");
    }
  }
  const Result<Place> place = ssd_->Append(*pending.info, payload);
  if (!place) {
    give_up(KindOf(place.error()), place.error().code == ErrorCode::kIo);
    return tl::unexpected<Error>(place.error());
  }
  std::optional<Place> older;
  bool wanted = false;
  {
    const std::lock_guard lock(mutex_);
    Entry* const entry = EntryOf(key);
    wanted = entry != nullptr && entry->version == pending.version && policy(Tier::kSsd)->Contains(entry->id);
    if (entry != nullptr && entry->version == pending.version) {
      entry->queued = false;
      if (wanted) SetPlace(*entry, *place);
      if (const auto found = superseded_.find(key); found != superseded_.end()) {
        older = found->second;
        superseded_.erase(found);
      }
      DropIfGone(*entry);
    }
    ++stats_.tiers[1].puts;
    stats_.tiers[1].put_seconds.Add(watch.seconds());
  }
  if (older) (void)ssd_->Erase(*older);
  if (!wanted) (void)ssd_->Erase(*place);
  return {};
}

void Store::RunWriter() {
  Lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stops_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Pending pending = std::move(queue_.front());
    queue_.pop_front();
    ++num_writing_;
    lock.unlock();
    (void)Write(pending, pending.block->bytes());
    pending = {};
    lock.lock();
    --num_writing_;
    written_.notify_all();
  }
}

std::optional<Loaded> Store::Load(const Key& key, bool promotes) {
  const Stopwatch watch;
  Lock lock(mutex_);
  Entry* entry = EntryOf(key);
  if (entry == nullptr || !entry->is_there()) return std::nullopt;
  if (ssd_ != nullptr) policy(Tier::kSsd)->Hit(entry->id);
  if (entry->ram != nullptr) {
    policy(Tier::kRam)->Hit(entry->id);
    Loaded loaded{entry->info, entry->ram, Tier::kRam, watch.seconds()};
    stats_.tiers[0].get_seconds.Add(loaded.seconds);
    return loaded;
  }
  const ObjectInfoPtr info = entry->info;
  const std::optional<Place> place = entry->ssd;
  const RemotePlace remote = entry->remote.value_or(RemotePlace());
  const uint64_t version = entry->version;
  const size_t bytes = info->payload_bytes;
  const size_t resident = Block::ResidentBytes(bytes);
  const bool passes = !promotes || resident > ram_capacity();  // larger than the tier
  const bool promoted = !passes && Admit(Tier::kRam, *entry, resident);
  if (options_.places && promotes && !promoted) return std::nullopt;
  const std::shared_ptr<Block> block = MakeBlock(lock, bytes, passes);
  lock.unlock();
  Status status = block == nullptr ? Status(OutOfBudget("no memory"))
                  : place            ? ssd_->Read(*place, block->bytes())
                                     : remote_->Read(key, remote, block->bytes());
  lock.lock();
  entry = EntryOf(key);
  const bool same = entry != nullptr && entry->version == version;
  if (!status) {
    if (block != nullptr) ++stats_.errors[(place ? "" : "remote_") + KindOf(status.error())];
    if (same && promoted) Leave(Tier::kRam, *entry);
    if (same && block != nullptr && place && entry->ssd == place) Leave(Tier::kSsd, *entry);
    if (same && !place) entry->remote.reset();
    if (same) DropIfGone(*entry);
    return std::nullopt;
  }
  Loaded loaded{info, block, place ? Tier::kSsd : Tier::kRemote, watch.seconds()};
  TierStats& tier = stats_.tiers[static_cast<size_t>(loaded.tier)];
  if (same && promoted && policy(Tier::kRam)->Contains(entry->id)) {
    entry->ram = block;
    ++tier.promotions;
  }
  tier.get_seconds.Add(loaded.seconds);
  const double speed = static_cast<double>(bytes) / std::max(loaded.seconds, 1e-9);
  tier.bytes_per_second += tier.bytes_per_second > 0 ? kSpeedShare * (speed - tier.bytes_per_second) : speed;
  return loaded;
}

bool Store::Contains(const Key& key) {
  const std::lock_guard lock(mutex_);
  return EntryOf(key) != nullptr;
}

bool Store::MoveToRam(const Key& key) {
  const std::optional<Loaded> loaded = Load(key, true);
  const std::lock_guard lock(mutex_);
  const Entry* const entry = EntryOf(key);
  return loaded && entry != nullptr && entry->ram != nullptr;
}

bool Store::Remove(const Key& key) {
  std::vector<Place> places;
  {
    const std::lock_guard lock(mutex_);
    Entry* const entry = EntryOf(key);
    if (entry == nullptr) return false;
    if (entry->ssd) places.push_back(*entry->ssd);
    if (const auto older = superseded_.find(key); older != superseded_.end()) {
      places.push_back(older->second);
      superseded_.erase(older);
    }
    Leave(Tier::kRam, *entry);
    Leave(Tier::kSsd, *entry);
    entry->remote.reset();
    entry->queued = false;
    ++entry->version;  // what is being written of it is not wanted
    DropIfGone(*entry);
  }
  for (const Place& place : places) {
    if (!ssd_->Erase(place)) CountError("io");
  }
  if (remote_ != nullptr && !remote_->Erase(key)) CountError("remote_io");
  return true;
}

Status Store::Sync() {
  Lock lock(mutex_);
  written_.wait(lock, [this] { return queue_.empty() && num_writing_ == 0; });
  if (SteadyClock::now() < ssd_rests_until_) return IoError("the store's folder could not be written");
  return {};
}

Result<uint64_t> Store::Compact(double share) {
  return ssd_ == nullptr ? Result<uint64_t>(0) : ssd_->Compact(share);
}

}  // namespace pith::store
