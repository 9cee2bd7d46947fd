// What the store holds: lookups by blocks, news of the SSD tier, lists and counts.
#include <algorithm>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "store/store.h"

namespace pith::store {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kMostMatches = 4;
// That a context may save less than another object, and be taken all the same: it is smaller.
constexpr size_t kContextTokens = 2 * kBlockTokens;
constexpr size_t kMostLooks = 512;  // objects that are compared with a text, token by token
constexpr auto kRefreshInterval = std::chrono::seconds(1);
constexpr size_t kMostOnRemote = 64;  // objects on the server that are known at a time

// Tokens of the text that need not be read, of which `common` are the object's, too.
size_t Usable(const ObjectInfo& info, const Query& query, size_t common) {
  const size_t all = query.tokens.size();
  if (common == info.num_tokens() && (common < all || info.has_logits)) return common;
  if (query.whole_only || info.rewind_most <= 0 || all == 0) return 0;
  // At least one token is read, for its logits.
  const size_t wanted = std::min(common, all - 1);
  if (wanted < static_cast<size_t>(info.rewind_least)) return 0;
  return std::min(wanted, static_cast<size_t>(info.rewind_most));
}

}  // namespace

void Store::Look(const Query& query, const Chain& chain, Found& found) {
  size_t deepest = 0;
  while (deepest < chain.blocks.size() && through_.contains(chain.blocks[deepest])) ++deepest;
  found.shared_tokens = std::max(found.shared_tokens, deepest * kBlockTokens);
  std::unordered_set<const Entry*> looked;
  size_t best = 0;
  // Objects met first at depth i share less than a block more.
  const size_t slack = query.prefers_contexts ? kContextTokens : 0;
  for (size_t i = deepest; i > 0 && best < i * kBlockTokens + slack && looked.size() < kMostLooks; --i) {
    for (const Entry* const entry : through_.at(chain.blocks[i - 1])) {
      if (!entry->is_there() || !looked.insert(entry).second) continue;
      const std::vector<int32_t>& tokens = entry->info->tokens;
      const auto common = static_cast<size_t>(std::ranges::mismatch(tokens, query.tokens).in1 - tokens.begin());
      const size_t usable = Usable(*entry->info, query, common);
      if (usable == 0 || (query.whole_only && usable < query.tokens.size())) continue;
      const auto pinned = [&](int32_t count) { return std::min(static_cast<size_t>(count), usable); };
      if (query.num_pinned >= 0 && pinned(query.num_pinned) != pinned(entry->info->num_pinned)) continue;
      best = std::max(best, usable);
      found.matches.push_back({entry->info, usable, entry->tier()});
    }
  }
}

Found Store::Find(const Query& query) {
  Found found;
  for (const Sha256Digest& root : query.roots) {
    const Chain chain = MakeChain(root, query.tokens);
    const std::lock_guard lock(mutex_);
    Look(query, chain, found);
  }
  const auto worth = [&](const Match& match) {
    const bool preferred = query.prefers_contexts && !match.info->config.empty();
    return match.tokens + (preferred ? kContextTokens : 0);
  };
  // Of equals the one in RAM, then the smaller one.
  std::ranges::stable_sort(found.matches, [&](const Match& a, const Match& b) {
    if (worth(a) != worth(b)) return worth(a) > worth(b);
    if (a.tier != b.tier) return a.tier < b.tier;
    return a.info->payload_bytes < b.info->payload_bytes;
  });
  if (found.matches.size() > kMostMatches) found.matches.resize(kMostMatches);
  return found;
}

void Store::OnFound(const Place& place, RecordHeader header) {
  const Key key = header.info.key;
  std::optional<Place> older;
  {
    const std::lock_guard lock(mutex_);
    Entry* entry = EntryOf(key);
    if (entry != nullptr && entry->ssd) {
      if (entry->ssd->number == place.number) {  // a copy, whose making was interrupted
        ssd_->Forget(place);
        return;
      }
      if (entry->ssd->number > place.number) {
        older = place;
      } else {
        older = entry->ssd;
        superseded_.erase(key);
      }
    }
    if (entry == nullptr || older != place) {
      const bool same = entry != nullptr && !entry->ssd && entry->info->config == header.info.config;
      const bool is_queued = same && entry->queued;
      if (!same) entry = &Renew(std::make_shared<const ObjectInfo>(std::move(header.info)));
      superseded_.erase(key);
      entry->queued = true;  // so that it stays
      const bool admitted = Admit(Tier::kSsd, *entry, place.record_bytes);
      entry->queued = is_queued;
      if (admitted) SetPlace(*entry, place);
      else ssd_->Forget(place);
      DropIfGone(*entry);
    }
  }
  if (older) (void)ssd_->Erase(*older);
}

bool Store::OnMoved(const Key& key, const Place& from, const Place& to) {
  const std::lock_guard lock(mutex_);
  Entry* const entry = EntryOf(key);
  if (entry == nullptr || entry->ssd != from) return false;
  SetPlace(*entry, to);
  return true;
}

void Store::OnSegmentGone(uint64_t segment) {
  const std::lock_guard lock(mutex_);
  const auto found = by_segment_.find(segment);
  if (found == by_segment_.end()) return;
  const std::vector<Key> keys = std::move(found->second);
  by_segment_.erase(found);
  for (const Key& key : keys) {
    Entry* const entry = EntryOf(key);
    if (entry == nullptr || !entry->ssd || entry->ssd->segment != segment) continue;
    Leave(Tier::kSsd, *entry);
    DropIfGone(*entry);
  }
}

void Store::OnRemote(RecordHeader header) {
  const Key key = header.info.key;
  const RemotePlace place{header.number, header.info.payload_bytes, header.payload_crc};
  const std::lock_guard lock(mutex_);
  Entry* entry = EntryOf(key);
  if (entry != nullptr && (entry->ram != nullptr || entry->queued)) return;
  entry = &Renew(std::make_shared<const ObjectInfo>(std::move(header.info)));
  entry->remote = place;
  on_remote_.push_back(key);
  if (on_remote_.size() <= kMostOnRemote) return;
  if (Entry* const oldest = EntryOf(on_remote_.front()); oldest != nullptr && oldest != entry) {
    if (oldest->ram == nullptr) oldest->remote.reset();
    DropIfGone(*oldest);
  }
  on_remote_.pop_front();
}

void Store::Refresh(const Query& query) {
  if (ssd_ != nullptr) RefreshFolder();
  if (remote_ == nullptr) return;
  // Who finds nearly all of it here asks nobody.
  const Found here = Find(query);
  if (!here.matches.empty() && here.matches[0].tokens + kBlockTokens >= query.tokens.size()) return;
  for (const Sha256Digest& root : query.roots) {
    Result<std::vector<RecordHeader>> headers = remote_->Lookup(MakeChain(root, query.tokens));
    if (!headers) {
      CountError(headers.error().code == ErrorCode::kCorrupt ? "remote_corrupt" : "remote_io");
      return;
    }
    for (RecordHeader& header : *headers) OnRemote(std::move(header));
  }
}

void Store::RefreshFolder() {
  {
    const std::lock_guard lock(mutex_);
    const auto now = SteadyClock::now();
    if (now - refreshed_ < kRefreshInterval) return;
    refreshed_ = now;
  }
  ssd_->Refresh();
}

std::vector<ObjectInfoPtr> Store::List() {
  std::vector<ObjectInfoPtr> list;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries_) {
      if (entry->is_there()) list.push_back(entry->info);
    }
  }
  std::ranges::sort(list, [](const ObjectInfoPtr& a, const ObjectInfoPtr& b) {
    return std::tie(a->written_at, a->key) < std::tie(b->written_at, b->key);
  });
  return list;
}

std::vector<ObjectInfoPtr> Store::Verify(const std::function<bool(size_t done, size_t total)>& go_on) {
  std::vector<ObjectInfoPtr> damaged;
  if (ssd_ == nullptr) return damaged;
  std::vector<std::pair<ObjectInfoPtr, Place>> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries_) {
      if (entry->ssd) all.emplace_back(entry->info, *entry->ssd);
    }
  }
  const auto counter = std::make_shared<std::atomic<size_t>>(0);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!go_on(i, all.size())) break;
    const auto& [info, place] = all[i];
    const std::shared_ptr<Block> block = Block::Make(place.payload_bytes, counter);
    const Status status = block == nullptr ? Status(IoError("no memory")) : ssd_->Read(place, block->bytes());
    if (status || status.error().code == ErrorCode::kNotFound) continue;
    damaged.push_back(info);
    (void)Remove(info->key);
  }
  return damaged;
}

StoreStats Store::stats() {
  StoreStats stats;
  {
    const std::lock_guard lock(mutex_);
    stats = stats_;
    for (size_t tier = 0; tier < policies_.size() && policies_[tier] != nullptr; ++tier) {
      stats.tiers[tier].objects = policies_[tier]->num_objects();
      stats.tiers[tier].pinned_bytes = policies_[tier]->pinned_bytes();
    }
  }
  stats.tiers[0].capacity_bytes = options_.ram_bytes;
  stats.tiers[0].bytes = *ram_used_;
  if (ssd_ == nullptr) return stats;
  stats.tiers[1].capacity_bytes = options_.ssd_bytes;
  stats.tiers[1].bytes = ssd_->live_bytes();
  stats.ssd_file_bytes = ssd_->file_bytes();
  stats.ssd_segments = ssd_->num_segments();
  return stats;
}

void Store::CountLookup(size_t tokens, size_t hit_tokens, std::optional<Tier> tier, double saved_seconds) {
  const std::lock_guard lock(mutex_);
  ++stats_.lookups;
  stats_.lookup_tokens += tokens;
  stats_.hit_tokens += hit_tokens;
  stats_.saved_seconds += saved_seconds;
  if (!tier) {
    ++stats_.misses;
    return;
  }
  TierStats& of = stats_.tiers[static_cast<size_t>(*tier)];
  ++of.hits;
  of.hit_tokens += hit_tokens;
}

void Store::CountTooSlow() {
  const std::lock_guard lock(mutex_);
  ++stats_.too_slow;
}

void Store::CountError(const std::string& kind) {
  const std::lock_guard lock(mutex_);
  ++stats_.errors[kind];
}

}  // namespace pith::store
