#include "session/stored_prefixes.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "base/stopwatch.h"
#include "session/token_sequence.h"

namespace pith {
namespace {

// Until something was measured.
constexpr double kRamBytesPerSecond = 4e9;
constexpr double kSsdBytesPerSecond = 5e8;
constexpr double kRestoreBytesPerSecond = 3e8;
constexpr double kSpeedShare = 0.2;  // of a new measurement in the moving average
// A prefix that is pinned as a whole, a system prompt, is not pushed out of a tier for so long after it was used.
constexpr double kPinSeconds = 30 * 60;
// Before a place at which a text is cut.
constexpr size_t kLeastPiece = 64;

// Tokens t in [least, most] can be gone back to; {0, 0}: none.
std::pair<int32_t, int32_t> RewindRange(const Engine& engine, SequenceId sequence, int num_tokens) {
  const int most = num_tokens > 1 ? engine.RewindTarget(sequence, num_tokens - 1) : 0;
  if (most <= 0) return {0, 0};
  int low = 0, high = num_tokens - 1;  // none is possible at low, high is
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (engine.RewindTarget(sequence, middle) > 0 ? high : low) = middle;
  }
  return {std::min(high, most), most};
}

bool IsPinnedWhole(const store::ObjectInfo& info) {
  return info.num_pinned > 0 && static_cast<size_t>(info.num_pinned) == info.num_tokens();
}

}  // namespace

bool CanAlwaysGoBack(const ModelInfo& info, const Recipe& recipe) {
  const Policy* const policy = recipe.policy.get();
  const bool drops = policy != nullptr && (!policy->keeps_everything() || policy->prune() != nullptr);
  return !drops && !info.hybrid && info.window == 0;
}

std::string StoredFormat(const Engine& engine) {
  const std::optional<CodedForm>& saved = engine.options().saved;
  const std::string name = engine.stats().format.Name();
  return saved ? name + " " + saved->Name() : name;
}

ReadingKey KeyOfEngine(const Engine& engine) {
  const EngineOptions& options = engine.options();
  return {.recipe = options.recipe.text,
          .format = StoredFormat(engine),
          .compress = "",
          .budget_bytes = engine.stats().budget_bytes,
          .tenant = ""};
}

StoredPrefixes::StoredPrefixes(std::shared_ptr<store::Store> store, const HostModel& model)
    : store_(std::move(store)),
      model_(model.fingerprint() == 0 ? std::string() : fmt::format("{:016x}", model.fingerprint())),
      description_(model.info().description) {}

StoredPrefixes::Roots StoredPrefixes::RootsOf(const ReadingKey& key) const {
  const std::string format = fmt::format("{}|{}|{}", key.format, key.recipe, key.compress);
  store::KeySpace space{.model = model_, .format = format, .salt = key.tenant};
  const Sha256Digest whole = space.Root();
  space.format += fmt::format("|budget={}", key.budget_bytes);
  return {whole, space.Root()};
}

// Loading against computing, both as they were measured.
bool StoredPrefixes::Pays(const store::Match& match) const {
  const auto bytes = static_cast<double>(match.info->payload_bytes);
  const double share = static_cast<double>(match.tokens) / static_cast<double>(match.info->num_tokens());
  return bytes / LoadBytesPerSecond(match.tier) < match.info->compute_seconds * share;
}

double StoredPrefixes::LoadBytesPerSecond(store::Tier tier) const {
  const double measured = store_->stats().tiers[static_cast<size_t>(tier)].bytes_per_second;
  const double assumed = tier == store::Tier::kRam ? kRamBytesPerSecond : kSsdBytesPerSecond;
  const double reads = measured > 0 ? measured : assumed;
  const double restores = restore_bytes_per_second_ > 0 ? restore_bytes_per_second_ : kRestoreBytesPerSecond;
  return 1 / (1 / reads + 1 / restores);
}

bool StoredPrefixes::PlaceNext(Engine& engine) {
  return placer_ != nullptr && placer_->PlaceNext(engine, {.ram = LoadBytesPerSecond(store::Tier::kRam),
                                                           .ssd = LoadBytesPerSecond(store::Tier::kSsd)});
}

void StoredPrefixes::Warm() {
  if (placer_ != nullptr) placer_->Warm();
}

std::optional<StoredPrefixes::Taken> StoredPrefixes::Take(const ReadingKey& key, std::span<const int32_t> text,
                                                          size_t num_pinned, size_t at_least, const Adopt& adopt) {
  const auto misses = [&] {
    store_->CountLookup(text.size(), 0, std::nullopt, 0);
    return std::nullopt;
  };
  if (model_.empty()) return misses();
  const Roots roots = RootsOf(key);
  const std::array<Sha256Digest, 2> both = {roots.whole, roots.dropped};
  const store::Query query{.roots = both,
                           .tokens = text,
                           .num_pinned = static_cast<int32_t>(num_pinned),
                           .whole_only = !key.compress.empty(),
                           .prefers_contexts = places()};
  store_->Refresh(query);
  for (const store::Match& match : store_->Find(query).matches) {
    if (match.tokens <= at_least || match.tokens < kLeastTokens) break;
    if (!Pays(match)) {
      store_->CountTooSlow();
      continue;
    }
    const Stopwatch watch;
    const std::optional<store::Loaded> loaded = store_->Load(match.info->key);
    if (!loaded) continue;
    const Stopwatch restoring;
    const Result<size_t> tokens = adopt(loaded->payload->bytes(), match.tokens);
    if (!tokens || *tokens == 0) {
      store_->CountError(tokens ? "unusable" : "restore");
      continue;
    }
    const double speed =
        static_cast<double>(match.info->payload_bytes) / std::max(restoring.seconds(), 1e-9);
    restore_bytes_per_second_ +=
        restore_bytes_per_second_ > 0 ? kSpeedShare * (speed - restore_bytes_per_second_) : speed;
    const double share = static_cast<double>(*tokens) / static_cast<double>(match.info->num_tokens());
    const Taken taken{.tokens = *tokens,
                      .has_logits = *tokens == text.size(),
                      .went_back = *tokens < match.info->num_tokens(),
                      .tier = loaded->tier,
                      .load_seconds = watch.seconds(),
                      .compute_seconds = match.info->compute_seconds * share};
    store_->CountLookup(text.size(), *tokens, loaded->tier, taken.compute_seconds - taken.load_seconds);
    if (IsPinnedWhole(*match.info)) (void)store_->Pin(match.info->key, kPinSeconds);
    if (placer_ != nullptr && !match.info->config.empty() && !taken.went_back) {
      placer_->NoteUse(match.info->key, text.subspan(*tokens));
    }
    return taken;
  }
  return misses();
}

std::optional<StoredPrefixes::Taken> StoredPrefixes::TakeInto(EngineSequence& sequence, const ReadingKey& key,
                                                              std::span<const int32_t> text, size_t num_pinned) {
  const auto adopt = [&](std::span<const std::byte> saved, size_t tokens) -> Result<size_t> {
    PITH_ASSIGN_OR_RETURN(const EngineSequence::Restored restored, sequence.RestoreFromMemory(saved));
    const std::vector<int32_t>& read = restored.note.tokens;
    const bool is_it = read.size() == static_cast<size_t>(sequence.num_tokens()) && read.size() >= tokens &&
                       std::ranges::equal(std::span(read).first(tokens), text.first(tokens));
    if (is_it && read.size() == tokens && (tokens < text.size() || restored.has_logits)) return tokens;
    if (is_it) {
      const Result<int> kept = sequence.GoBack(static_cast<int>(std::min(tokens, text.size() - 1)));
      if (kept && *kept > 0) return static_cast<size_t>(*kept);
    }
    PITH_RETURN_IF_ERROR(sequence.Reset());
    return 0;
  };
  return Take(key, text, num_pinned, 0, adopt);
}

bool StoredPrefixes::Keep(Engine& engine, SequenceId sequence, const ReadingKey& key, std::span<const int32_t> text,
                          size_t num_pinned, double compute_seconds, bool is_context) {
  if (model_.empty() || text.size() < kLeastTokens ||
      engine.num_tokens(sequence) != static_cast<int>(text.size())) {
    return false;
  }
  const Roots roots = RootsOf(key);
  const SequenceStats stats = engine.stats(sequence);
  store::ObjectInfo info;
  info.root = stats.entries == stats.entries_seen ? roots.whole : roots.dropped;
  if (store_->Contains(store::MakeChain(info.root, text).whole)) return false;
  if (stats.used_bytes > 2 * store_->most_object_bytes()) {
    store_->CountError("full");
    return false;
  }
  const Result<std::vector<std::byte>> saved =
      engine.SaveToMemory(sequence, {.tokens = {text.begin(), text.end()}, .text = {}});
  if (!saved) {
    store_->CountError("save");
    return false;
  }
  info.tokens.assign(text.begin(), text.end());
  info.num_pinned = static_cast<int32_t>(num_pinned);
  info.has_logits = !engine.logits(sequence).empty();
  if (key.compress.empty()) {
    std::tie(info.rewind_least, info.rewind_most) = RewindRange(engine, sequence, static_cast<int>(text.size()));
  }
  info.compute_seconds = compute_seconds;
  if (is_context && placer_ != nullptr) info.config = kContextMark;
  info.label = fmt::format("{}, {} in {}{}", description_, key.recipe, key.format,
                           key.compress.empty() ? "" : ", " + key.compress);
  const int32_t least = info.rewind_least, most = info.rewind_most;
  const Sha256Digest root = info.root;
  const store::Found before = store_->Find({.roots = std::span(&root, 1), .tokens = text});
  const bool is_pinned = IsPinnedWhole(info);
  if (!store_->Put(std::move(info), *saved)) return false;
  if (is_pinned) (void)store_->Pin(store::MakeChain(root, text).whole, kPinSeconds);
  for (const store::Match& match : before.matches) {
    const auto count = static_cast<int32_t>(match.info->num_tokens());
    const bool begins = match.info->num_tokens() < text.size() && match.tokens == match.info->num_tokens();
    // Contexts stay for themselves: they shrink where a longer text would not.
    const bool is_one = !match.info->config.empty();
    if (begins && !is_one && count >= least && count <= most) (void)store_->Remove(match.info->key);
  }
  return true;
}

size_t StoredPrefixes::NextCut(const ReadingKey& key, std::span<const int32_t> text, size_t num_pinned, size_t from) {
  if (model_.empty() || !key.compress.empty()) return 0;
  const Roots roots = RootsOf(key);
  const std::array<Sha256Digest, 2> both = {roots.whole, roots.dropped};
  size_t cut = 0;
  for (const size_t at : {num_pinned, store_->Find({.roots = both, .tokens = text}).shared_tokens}) {
    if (at < from + kLeastPiece || at >= text.size()) continue;
    if (cut == 0 || at < cut) cut = at;
  }
  return cut;
}

}  // namespace pith
