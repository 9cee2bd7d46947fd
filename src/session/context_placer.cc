#include "session/context_placer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/json_text.h"

namespace pith {
namespace {

// Of a tier, left for what a compressed cache holds beside its entries.
constexpr double kTierShare = 0.95;

// Freed with this object.
class Borrowed {
 public:
  Borrowed(Engine& engine, SequenceId id) : engine_(&engine), id_(id) {}
  ~Borrowed() { engine_->Free(id_); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  SequenceId id() const { return id_; }

 private:
  Engine* engine_;
  SequenceId id_;
};

Result<RestoredSequence> RestoreBeside(Engine& engine, std::span<const std::byte> saved) {
  SequenceOptions options = engine.options();
  options.floor_bytes = 1;
  options.ceiling_bytes = engine.stats().budget_bytes;
  return engine.RestoreFromMemory(saved, options);
}

int32_t Likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

}  // namespace

Result<std::unique_ptr<ContextPlacer>> ContextPlacer::Make(std::shared_ptr<store::Store> store,
                                                           PlacerOptions options) {
  std::vector<Recipe> methods;
  for (const std::string& text : options.methods) {
    PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(text));
    methods.push_back(std::move(recipe));
  }
  return std::unique_ptr<ContextPlacer>(
      new ContextPlacer(std::move(store), std::move(options), std::move(methods)));
}

// "context", or "context {...}" once it has a place. One that is whole and was profiled for other methods has none yet.
bool ContextPlacer::ReadConfig(const std::string& text, Context& context) const {
  const std::string_view mark = kContextMark;
  if (!text.starts_with(mark)) return false;
  if (text.size() == mark.size()) return true;
  const nlohmann::json json = JsonOf(text.substr(mark.size()));
  if (!json.is_object()) return false;
  for (const char* name : {"bytes", "method", "ratio", "tier", "quality", "methods", "ratios"}) {
    if (!json.contains(name)) return false;
  }
  const auto numbers = [](const nlohmann::json& list) {
    return list.is_array() && std::ranges::all_of(list, [](const nlohmann::json& one) { return one.is_number(); });
  };
  if (!json["bytes"].is_number() || !json["method"].is_number_integer() || !json["ratio"].is_number_integer() ||
      !json["tier"].is_number_integer() || !numbers(json["quality"]) || !numbers(json["ratios"])) {
    return false;
  }
  if (json["methods"] != nlohmann::json(options_.methods) || json["ratios"] != nlohmann::json(options_.ratios)) {
    return json["ratio"] == 0;
  }
  context.full_bytes = json["bytes"].get<double>();
  context.at = {json["method"].get<int>(), json["ratio"].get<int>(), json["tier"].get<int>()};
  context.quality = json["quality"].get<std::vector<double>>();
  const auto num_methods = static_cast<int>(options_.methods.size());
  const auto num_ratios = static_cast<int>(options_.ratios.size());
  return context.quality.size() == options_.methods.size() * options_.ratios.size() && context.at.method >= -1 &&
         context.at.method < num_methods && context.at.ratio >= 0 && context.at.ratio < num_ratios &&
         context.at.tier >= 0 && context.at.tier <= 1;
}

std::string ContextPlacer::WriteConfig(const Context& context) const {
  const nlohmann::json json = {{"bytes", context.full_bytes},        {"method", context.at.method},
                               {"ratio", context.at.ratio},          {"tier", context.at.tier},
                               {"quality", context.quality},         {"methods", options_.methods},
                               {"ratios", options_.ratios}};
  return std::string(kContextMark) + " " + JsonText(json);
}

std::vector<ContextPlacer::Context> ContextPlacer::Contexts() const {
  std::vector<Context> contexts;
  for (store::ObjectInfoPtr& info : store_->List()) {
    Context context;
    if (!ReadConfig(info->config, context)) continue;
    if (context.quality.empty()) context.full_bytes = static_cast<double>(info->payload_bytes);
    if (const auto uses = uses_.find(info->key); uses != uses_.end()) {
      context.frequency = std::max(CountOf(uses->second), 1.0);
      if (!context.quality.empty() && !uses->second.quality.empty()) context.quality = uses->second.quality;
    }
    context.info = std::move(info);
    contexts.push_back(std::move(context));
  }
  return contexts;
}

double ContextPlacer::CountOf(const Uses& uses) const {
  const double age = std::chrono::duration<double>(Clock::now() - uses.last).count();
  return uses.count * std::exp2(-age / options_.half_life_seconds);
}

void ContextPlacer::NoteUse(const store::Key& key, std::span<const int32_t> rest) {
  Uses& uses = uses_[key];
  uses.count = CountOf(uses) + 1;
  uses.last = Clock::now();
  if (rest.size() < options_.probe_tokens) return;  // too little to be a question
  uses.probes.emplace_back(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(options_.probe_tokens));
  if (uses.probes.size() > options_.num_probes) uses.probes.erase(uses.probes.begin());
  ++uses.fresh;
}

void ContextPlacer::Warm() {
  for (const Context& context : Contexts()) {
    if (!context.quality.empty() && context.at.tier == 0) (void)store_->MoveToRam(context.info->key);
  }
}

Result<std::vector<float>> ContextPlacer::AnswerLogits(Engine& engine, SequenceId sequence,
                                                       std::span<const int32_t> probe,
                                                       std::vector<int32_t>& answer) const {
  if (answer.empty()) {
    PITH_ASSIGN_OR_RETURN(const SequenceId id, engine.Fork(sequence));
    const Borrowed fork(engine, id);
    PITH_RETURN_IF_ERROR(engine.Prefill(fork.id(), probe));
    for (size_t i = 0; i < options_.answer_tokens; ++i) {
      if (i > 0) PITH_RETURN_IF_ERROR(engine.Decode(fork.id(), answer.back()));
      answer.push_back(Likeliest(engine.logits(fork.id())));
    }
  }
  std::vector<int32_t> text(probe.begin(), probe.end());
  text.insert(text.end(), answer.begin(), answer.end() - 1);
  PITH_ASSIGN_OR_RETURN(const SequenceId id, engine.Fork(sequence));
  const Borrowed fork(engine, id);
  engine.SetEviction(fork.id(), false);
  std::vector<float> logits;
  PITH_RETURN_IF_ERROR(engine.Prefill(fork.id(), text, false, &logits));
  const size_t vocab = logits.size() / text.size();
  return std::vector<float>(logits.begin() + static_cast<std::ptrdiff_t>((probe.size() - 1) * vocab), logits.end());
}

Result<std::vector<double>> ContextPlacer::Profile(Engine& engine, SequenceId sequence, std::span<const int32_t> text,
                                                   const std::vector<std::vector<int32_t>>& real) {
  const size_t num_ratios = options_.ratios.size(), length = options_.probe_tokens;
  const auto vocab = static_cast<size_t>(engine.model().info().num_vocab);
  std::vector<std::vector<int32_t>> answers(options_.num_probes);
  std::vector<std::vector<float>> full;
  std::vector<std::span<const int32_t>> probes;
  for (size_t p = 0; p < options_.num_probes; ++p) {
    const size_t at = (text.size() - std::min(text.size(), length)) * (2 * p + 1) / (2 * options_.num_probes);
    probes.push_back(p < real.size() ? std::span<const int32_t>(real[p])
                                     : text.subspan(at, std::min(length, text.size())));
    PITH_ASSIGN_OR_RETURN(std::vector<float> logits, AnswerLogits(engine, sequence, probes[p], answers[p]));
    full.push_back(std::move(logits));
  }
  std::vector<double> quality(methods_.size() * num_ratios, 1);
  for (size_t m = 0; m < methods_.size(); ++m) {
    for (size_t r = 1; r < num_ratios; ++r) {
      PITH_ASSIGN_OR_RETURN(const SequenceId id, engine.Fork(sequence));
      const Borrowed fork(engine, id);
      const Result<double> kept = engine.Compress(fork.id(), methods_[m], 1 - options_.ratios[r]);
      // A method that does not go with the engine's format is never chosen.
      if (!kept && (kept.error().code == ErrorCode::kInvalidArgument || kept.error().code == ErrorCode::kUnsupported)) {
        quality[m * num_ratios + r] = 0;
        continue;
      }
      if (!kept) return tl::unexpected<Error>(kept.error());
      double sum = 0;
      for (size_t p = 0; p < probes.size(); ++p) {
        PITH_ASSIGN_OR_RETURN(const std::vector<float> logits, AnswerLogits(engine, fork.id(), probes[p], answers[p]));
        sum += std::exp(-store::MeanDivergence(full[p], logits, vocab));
      }
      quality[m * num_ratios + r] = sum / static_cast<double>(probes.size());
    }
  }
  return quality;
}

Result<std::vector<double>> ContextPlacer::ProfileStored(Engine& engine, const Context& context) {
  const auto loaded = store_->Load(context.info->key);
  if (!loaded) return NotFound("the context is gone");
  PITH_ASSIGN_OR_RETURN(const RestoredSequence restored, RestoreBeside(engine, loaded->payload->bytes()));
  const Borrowed sequence(engine, restored.sequence);
  const auto uses = uses_.find(context.info->key);
  return Profile(engine, sequence.id(), context.info->tokens,
                 uses != uses_.end() ? uses->second.probes : std::vector<std::vector<int32_t>>());
}

Status ContextPlacer::Carry(Engine& engine, const Context& context, const store::Configuration& to) {
  auto loaded = store_->Load(context.info->key);
  if (!loaded) return NotFound("the context is gone");
  store::ObjectInfo info = *context.info;
  Context after = context;
  after.at = to;
  info.config = WriteConfig(after);
  std::span<const std::byte> payload = loaded->payload->bytes();
  std::vector<std::byte> compressed;
  if (to.ratio != context.at.ratio) {
    PITH_ASSIGN_OR_RETURN(const RestoredSequence restored, RestoreBeside(engine, payload));
    const Borrowed sequence(engine, restored.sequence);
    // Shares are of the whole cache; Compress() asks for one of the entries that are left, or of what these take in
    // f16.
    const SequenceStats stats = engine.stats(sequence.id());
    const double seen = static_cast<double>(std::max<int64_t>(stats.entries_seen, 1));
    const double left = static_cast<double>(stats.entries) / seen;
    const double kept = 1 - options_.ratios[static_cast<size_t>(to.ratio)];
    const Result<double> done =
        engine.Compress(sequence.id(), methods_[static_cast<size_t>(to.method)], std::min(1.0, kept / left));
    if (!done) return tl::unexpected<Error>(done.error());
    info.has_logits = !engine.logits(sequence.id()).empty();
    info.rewind_least = info.rewind_most = 0;
    PITH_ASSIGN_OR_RETURN(compressed, engine.SaveToMemory(sequence.id(), restored.note));
    payload = compressed;
  }
  if (!store_->Put(std::move(info), payload)) return IoError("the context could not be written");
  loaded.reset();  // or memory would have to hold it twice
  if (to.tier == 0) (void)store_->MoveToRam(context.info->key);
  return {};
}

store::PlacementOptions ContextPlacer::PlacementFor(const std::vector<Context>& contexts,
                                                    const TierSpeeds& speeds) const {
  double bytes = 0;
  for (const Context& context : contexts) bytes += context.full_bytes;
  const double load_seconds = bytes / static_cast<double>(contexts.size()) / speeds.ssd;
  return {.alpha = load_seconds / options_.quality_loss,
          .num_methods = static_cast<int>(methods_.size()),
          .ratios = options_.ratios,
          .tiers = {{speeds.ram, kTierShare * static_cast<double>(store_->ram_capacity())},
                    {speeds.ssd, kTierShare * static_cast<double>(store_->ssd_capacity())}}};
}

bool ContextPlacer::PlaceNext(Engine& engine, const TierSpeeds& speeds) {
  std::vector<Context> contexts = Contexts();
  std::erase_if(uses_, [&](const auto& of) {
    return std::ranges::none_of(contexts, [&](const Context& context) { return context.info->key == of.first; });
  });
  const auto is_new = [&](const Context& context) {
    return context.quality.empty() && !failed_.contains(context.info->key);
  };
  const auto next = std::ranges::find_if(contexts, is_new);
  if (next != contexts.end()) {
    std::rotate(next, next + 1, contexts.end());
    return PlaceNew(engine, std::move(contexts), speeds);
  }
  std::erase_if(contexts, [](const Context& context) { return context.quality.empty(); });
  if (contexts.empty()) return false;
  if (RefreshOne(engine, contexts, speeds)) return true;
  if (!HaveUsesChanged(contexts)) return false;
  Rearrange(engine, contexts, speeds);
  return true;
}

// The last one of them is new.
bool ContextPlacer::PlaceNew(Engine& engine, std::vector<Context> contexts, const TierSpeeds& speeds) {
  Context& fresh = contexts.back();
  Result<std::vector<double>> quality = ProfileStored(engine, fresh);
  if (!quality) {
    store_->CountError("profile");
    failed_.insert(fresh.info->key);
    return true;
  }
  fresh.quality = std::move(*quality);
  std::erase_if(contexts, [](const Context& context) { return context.quality.empty(); });
  store::Placement placement(PlacementFor(contexts, speeds));
  std::vector<store::PlacementOperation> operations;
  for (size_t i = 0; i + 1 < contexts.size(); ++i) {
    const Context& context = contexts[i];
    placement.AddPlaced(context.full_bytes, context.frequency, context.quality, context.at, operations);
  }
  const Context& last = contexts.back();
  placement.Add(last.full_bytes, last.frequency, last.quality, operations);
  // What leaves memory or shrinks goes first, what comes into it last.
  for (const bool enters : {false, true}) {
    for (size_t i = 0; i < contexts.size(); ++i) {
      const Context& context = contexts[i];
      const store::Configuration& to = placement.config(static_cast<int>(i));
      const bool is_last = i + 1 == contexts.size();
      if ((to == context.at && !is_last) || is_last != enters) continue;
      if (Carry(engine, context, to)) continue;
      store_->CountError("place");
      if (is_last) failed_.insert(context.info->key);
    }
  }
  return true;
}

// A whole one whose last texts were not among its probes. What was compressed can't be compared with its whole any
// more.
bool ContextPlacer::RefreshOne(Engine& engine, std::vector<Context>& contexts, const TierSpeeds& speeds) {
  const auto next = std::ranges::find_if(contexts, [&](const Context& context) {
    const auto uses = uses_.find(context.info->key);
    return context.at.ratio == 0 && uses != uses_.end() && uses->second.fresh >= options_.num_probes;
  });
  if (next == contexts.end()) return false;
  Uses& uses = uses_[next->info->key];
  uses.fresh = 0;
  Result<std::vector<double>> quality = ProfileStored(engine, *next);
  if (!quality) {
    store_->CountError("profile");
    return true;
  }
  ++num_refreshed_;
  double change = 0;
  for (size_t i = 0; i < quality->size(); ++i) change += std::abs((*quality)[i] - next->quality[i]);
  const auto grid = static_cast<double>(std::max<size_t>(methods_.size() * (options_.ratios.size() - 1), 1));
  uses.quality = next->quality = std::move(*quality);
  if (change / grid > options_.drift) Rearrange(engine, contexts, speeds);
  return true;
}

// More than a quarter of the uses would have to be of other contexts, and each was asked for once on average.
bool ContextPlacer::HaveUsesChanged(const std::vector<Context>& contexts) const {
  constexpr double kShare = 0.25;
  double now = 0, then = 0, moved = 0;
  for (const auto& [key, uses] : uses_) now += CountOf(uses);
  for (const auto& [key, count] : placed_for_) then += count;
  if (now < static_cast<double>(contexts.size())) return false;
  for (const Context& context : contexts) {
    const auto uses = uses_.find(context.info->key);
    const auto before = placed_for_.find(context.info->key);
    const double share_now = uses != uses_.end() ? CountOf(uses->second) / now : 0;
    const double even = 1 / static_cast<double>(contexts.size());
    const double share_then = then == 0 ? even : before != placed_for_.end() ? before->second / then : 0;
    moved += std::max(0.0, share_now - share_then);
  }
  return moved > kShare;
}

void ContextPlacer::Rearrange(Engine& engine, std::vector<Context>& contexts, const TierSpeeds& speeds) {
  placed_for_.clear();
  for (const auto& [key, uses] : uses_) placed_for_[key] = CountOf(uses);
  store::Placement placement(PlacementFor(contexts, speeds));
  std::vector<store::PlacementOperation> operations;
  for (const Context& context : contexts) {
    placement.AddPlaced(context.full_bytes, context.frequency, context.quality, context.at, operations);
  }
  const double before = placement.total_cost();
  const bool fits = operations.empty();
  operations.clear();
  placement.Rearrange(operations);
  if (fits && placement.total_cost() > before * (1 - options_.gain)) return;
  ++num_rearranged_;
  for (const store::PlacementOperation& operation : operations) {
    if (!Carry(engine, contexts[static_cast<size_t>(operation.context)], operation.to)) store_->CountError("place");
  }
}

}  // namespace pith
