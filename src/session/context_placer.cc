#include "session/context_placer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

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

// "context", or "context {...}" once it has a place.
bool ContextPlacer::ReadConfig(const std::string& text, Context& context) const {
  const std::string_view mark = kContextMark;
  if (!text.starts_with(mark)) return false;
  if (text.size() == mark.size()) return true;
  const nlohmann::json json = nlohmann::json::parse(text.substr(mark.size()), nullptr, false);
  if (!json.is_object()) return false;
  for (const char* name : {"bytes", "method", "ratio", "tier", "quality", "methods", "ratios"}) {
    if (!json.contains(name)) return false;
  }
  const auto numbers = [](const nlohmann::json& list) {
    return list.is_array() && std::ranges::all_of(list, [](const nlohmann::json& one) { return one.is_number(); });
  };
  if (!json["bytes"].is_number() || !json["method"].is_number_integer() || !json["ratio"].is_number_integer() ||
      !json["tier"].is_number_integer() || !numbers(json["quality"]) || !numbers(json["ratios"]) ||
      json["methods"] != nlohmann::json(options_.methods)) {
    return false;  // profiled for other methods
  }
  context.full_bytes = json["bytes"].get<double>();
  context.at = {json["method"].get<int>(), json["ratio"].get<int>(), json["tier"].get<int>()};
  context.quality = json["quality"].get<std::vector<double>>();
  const auto num_methods = static_cast<int>(options_.methods.size());
  const auto num_ratios = static_cast<int>(options_.ratios.size());
  return json["ratios"].get<std::vector<double>>() == options_.ratios &&
         context.quality.size() == options_.methods.size() * options_.ratios.size() && context.at.method >= -1 &&
         context.at.method < num_methods && context.at.ratio >= 0 && context.at.ratio < num_ratios &&
         context.at.tier >= 0 && context.at.tier <= 1;
}

std::string ContextPlacer::WriteConfig(const Context& context) const {
  const nlohmann::json json = {{"bytes", context.full_bytes},        {"method", context.at.method},
                               {"ratio", context.at.ratio},          {"tier", context.at.tier},
                               {"quality", context.quality},         {"methods", options_.methods},
                               {"ratios", options_.ratios}};
  return std::string(kContextMark) + " " + json.dump();
}

std::vector<ContextPlacer::Context> ContextPlacer::Contexts() const {
  std::vector<Context> contexts;
  for (const store::ListedObject& object : store_->List()) {
    Context context;
    if (!ReadConfig(object.info->config, context)) continue;
    context.info = object.info;
    context.frequency = static_cast<double>(std::max<uint64_t>(object.hits, 1));
    if (context.quality.empty()) context.full_bytes = static_cast<double>(object.info->payload_bytes);
    contexts.push_back(std::move(context));
  }
  return contexts;
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

Result<std::vector<double>> ContextPlacer::Profile(Engine& engine, SequenceId sequence,
                                                   std::span<const int32_t> text) {
  const size_t num_ratios = options_.ratios.size(), length = options_.probe_tokens;
  const auto vocab = static_cast<size_t>(engine.model().info().num_vocab);
  std::vector<std::vector<int32_t>> answers(options_.num_probes);
  std::vector<std::vector<float>> full;
  std::vector<std::span<const int32_t>> probes;
  for (size_t p = 0; p < options_.num_probes; ++p) {
    const size_t at = (text.size() - std::min(text.size(), length)) * (2 * p + 1) / (2 * options_.num_probes);
    probes.push_back(text.subspan(at, std::min(length, text.size())));
    PITH_ASSIGN_OR_RETURN(std::vector<float> logits, AnswerLogits(engine, sequence, probes[p], answers[p]));
    full.push_back(std::move(logits));
  }
  std::vector<double> quality(methods_.size() * num_ratios, 1);
  for (size_t m = 0; m < methods_.size(); ++m) {
    for (size_t r = 1; r < num_ratios; ++r) {
      PITH_ASSIGN_OR_RETURN(const SequenceId id, engine.Fork(sequence));
      const Borrowed fork(engine, id);
      const Result<double> kept = engine.Compress(fork.id(), methods_[m], 1 - options_.ratios[r]);
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
  return Profile(engine, sequence.id(), context.info->tokens);
}

Status ContextPlacer::Carry(Engine& engine, const Context& context, const store::Configuration& to) {
  const auto loaded = store_->Load(context.info->key);
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
    const auto kept = [&](int ratio) { return 1 - options_.ratios[static_cast<size_t>(ratio)]; };
    const Result<double> done = engine.Compress(sequence.id(), methods_[static_cast<size_t>(to.method)],
                                                kept(to.ratio) / kept(context.at.ratio));
    if (!done) return tl::unexpected<Error>(done.error());
    info.has_logits = !engine.logits(sequence.id()).empty();
    info.rewind_least = info.rewind_most = 0;
    PITH_ASSIGN_OR_RETURN(compressed, engine.SaveToMemory(sequence.id(), restored.note));
    payload = compressed;
  }
  if (!store_->Put(std::move(info), payload)) return IoError("the context could not be written");
  if (to.tier == 0) (void)store_->MoveToRam(context.info->key);
  return {};
}

bool ContextPlacer::PlaceNext(Engine& engine, const TierSpeeds& speeds) {
  std::vector<Context> contexts = Contexts();
  const auto is_new = [&](const Context& context) {
    return context.quality.empty() && !failed_.contains(context.info->key);
  };
  const auto next = std::ranges::find_if(contexts, is_new);
  if (next == contexts.end()) return false;
  Result<std::vector<double>> quality = ProfileStored(engine, *next);
  if (!quality) {
    store_->CountError("profile");
    failed_.insert(next->info->key);
    return true;
  }
  std::rotate(next, next + 1, contexts.end());
  Context& fresh = contexts.back();
  fresh.quality = std::move(*quality);
  std::erase_if(contexts, [](const Context& context) { return context.quality.empty(); });
  double bytes = 0;
  for (const Context& context : contexts) bytes += context.full_bytes;
  const double load_seconds = bytes / static_cast<double>(contexts.size()) / speeds.ssd;
  store::Placement placement({.alpha = load_seconds / options_.quality_loss,
                              .num_methods = static_cast<int>(methods_.size()),
                              .ratios = options_.ratios,
                              .tiers = {{speeds.ram, kTierShare * static_cast<double>(store_->ram_capacity())},
                                        {speeds.ssd, kTierShare * static_cast<double>(store_->ssd_capacity())}}});
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

}  // namespace pith
