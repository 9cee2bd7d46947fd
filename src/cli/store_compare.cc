// pith store compare: the same requests over the same contexts, with four ways to keep them.
//
//   prefill        nothing is kept
//   lru            whole caches, LRU in memory, all of them on disk
//   METHOD@R+lru   every cache compressed by one method and ratio, LRU in memory
//   evicpress      method, ratio and tier of each context by EVICPRESS
//
// A request asks for one context, by Zipf's law, with a probe from within it. Its quality is exp(-KL) between the whole
// cache and the loaded one over the answer's tokens. Half as many requests come before those that count, from which
// evictors and EVICPRESS learn which contexts are asked for.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/store_measure.h"
#include "cli/store_measure_util.h"
#include "cli/terminal.h"
#include "lab/measure.h"
#include "session/context_placer.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

constexpr size_t kProbeTokens = 12, kAnswerTokens = 12;
constexpr double kZipf = 0.8;
constexpr double kFixedRatios[] = {0.3, 0.5, 0.66, 0.85};

struct Text {
  std::vector<int32_t> tokens, probe, answer;
  std::vector<float> logits;       // of the answer, with the whole cache
  double prefill_seconds = 0;      // of text and probe
  std::vector<std::byte> whole;    // its cache
};

struct Arm {
  std::string name;
  double ttft_seconds = 0, quality = 1, ram_hits = 0;  // means over the requests
};

class Comparison {
 public:
  Comparison(const StoreBenchFlags& flags, std::shared_ptr<HostModel> model, std::string folder)
      : flags_(flags), model_(std::move(model)), folder_(std::move(folder)) {}

  Status Init() {
    PITH_ASSIGN_OR_RETURN(lengths_, ParseIntegers(flags_.ctx, "--ctx", 128, 1 << 20));
    EngineOptions options;
    options.num_ctx = *std::ranges::max_element(lengths_) + 64;
    options.num_threads = flags_.model.num_threads();
    options.max_sequences = 1 + kPlacerSequences;
    PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
    for (const std::string& text : SplitRecipes(flags_.recipe)) {
      PITH_ASSIGN_OR_RETURN(const Recipe method, ParseRecipe(text));
      methods_.push_back(method);
    }
    PITH_ASSIGN_OR_RETURN(options.saved, ParseCodedForm(flags_.save_format));
    PITH_ASSIGN_OR_RETURN(engine_, Engine::Create(model_, options));
    options_ = engine_->options();
    options_.floor_bytes = 1;
    options_.ceiling_bytes = engine_->stats().budget_bytes;
    return {};
  }

  // Reads all contexts once; what everything is compared with.
  Status ReadTexts(ProgressLine& progress) {
    size_t total = 0;
    for (int i = 0; i < flags_.contexts; ++i) {
      total += static_cast<size_t>(lengths_[static_cast<size_t>(i) % lengths_.size()]);
    }
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> all, Source(total));
    std::mt19937 random(1);  // NOLINT: a fixed seed is meant
    for (size_t i = 0, at = 0; i < static_cast<size_t>(flags_.contexts); ++i) {
      progress.Update(static_cast<double>(i), flags_.contexts, "reading");
      if (Interrupted()) return Cancelled("stopped while contexts were read");
      const auto length = static_cast<size_t>(lengths_[i % lengths_.size()]);
      Text text;
      text.tokens.assign(all.begin() + static_cast<std::ptrdiff_t>(at),
                         all.begin() + static_cast<std::ptrdiff_t>(at + length));
      at += length;
      const size_t probe = random() % (length - kProbeTokens);
      text.probe.assign(text.tokens.begin() + static_cast<std::ptrdiff_t>(probe),
                        text.tokens.begin() + static_cast<std::ptrdiff_t>(probe + kProbeTokens));
      PITH_RETURN_IF_ERROR(ReadOne(text));
      whole_bytes_ += text.whole.size();
      texts_.push_back(std::move(text));
    }
    for (int i = 0; i < flags_.requests; ++i) requests_.push_back(Draw(random));
    for (int i = 0; i < flags_.requests / 2; ++i) warming_.push_back(Draw(random));
    return {};
  }

  Result<Arm> Prefill() const {
    Arm arm{.name = "prefill"};
    for (const size_t one : requests_) arm.ttft_seconds += texts_[one].prefill_seconds;
    arm.ttft_seconds /= static_cast<double>(requests_.size());
    return arm;
  }

  size_t num_methods() const { return methods_.size(); }

  // ratio: dropped of every context, by one method.
  Result<Arm> Lru(size_t method, double ratio) {
    PITH_ASSIGN_OR_RETURN(const auto store, OpenStore(false));
    for (const Text& text : texts_) {
      PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> saved, Compressed(text, methods_[method], ratio));
      if (!store->Put(InfoOf(text), saved)) return IoError("a context could not be stored");
    }
    PITH_RETURN_IF_ERROR(store->Sync());
    return Replay(*store, nullptr, ratio == 0 ? "lru" : fmt::format("{}@{}+lru", methods_[method].text, ratio));
  }

  Result<Arm> Evicpress(ProgressLine& progress, double loss) {
    PITH_ASSIGN_OR_RETURN(const auto store, OpenStore(true));
    PITH_ASSIGN_OR_RETURN(const auto placer, ContextPlacer::Make(store, {.quality_loss = loss}));
    for (size_t i = 0; i < texts_.size(); ++i) {
      progress.Update(static_cast<double>(i), static_cast<double>(texts_.size()), "profiling");
      store::ObjectInfo info = InfoOf(texts_[i]);
      info.config = kContextMark;
      if (!store->Put(std::move(info), texts_[i].whole)) return IoError("a context could not be stored");
      if (!placer->PlaceNext(*engine_, speeds_) || Interrupted())
        return Cancelled("stopped while contexts were placed");
    }
    if (store->stats().errors.contains("profile")) return IoError("a context could not be profiled");
    return Replay(*store, placer.get(), fmt::format("evicpress loss {:.0f}%", 100 * loss));
  }

  size_t whole_bytes() const { return whole_bytes_; }

 private:
  Result<std::vector<int32_t>> Source(size_t count) const {
    if (flags_.text.empty()) return FillerTokens(*model_, count);
    PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags_.text));
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model_->Tokenize(text, false, false));
    if (tokens.size() < count) {
      return InvalidArgument(
          fmt::format("{} has {} tokens, and the contexts take {}", flags_.text, tokens.size(), count));
    }
    return tokens;
  }

  size_t Draw(std::mt19937& random) const {
    std::vector<double> weights;
    for (size_t i = 0; i < texts_.size(); ++i) weights.push_back(std::pow(static_cast<double>(i + 1), -kZipf));
    return std::discrete_distribution<size_t>(weights.begin(), weights.end())(random);
  }

  store::ObjectInfo InfoOf(const Text& text) const {
    store::ObjectInfo info;
    info.tokens = text.tokens;
    info.compute_seconds = text.prefill_seconds;
    return info;
  }

  Status ReadOne(Text& text) {
    PITH_ASSIGN_OR_RETURN(const SequenceId id, engine_->NewSequence(options_));
    const auto read = [&]() -> Status {
      const Stopwatch watch;
      PITH_RETURN_IF_ERROR(engine_->Prefill(id, text.tokens));
      text.prefill_seconds = watch.seconds();
      PITH_ASSIGN_OR_RETURN(text.whole, engine_->SaveToMemory(id, {.tokens = text.tokens, .text = {}}));
      const Stopwatch asking;
      PITH_RETURN_IF_ERROR(engine_->Prefill(id, text.probe));
      text.prefill_seconds += asking.seconds();
      for (size_t i = 0; i < kAnswerTokens; ++i) {
        const std::span<const float> logits = engine_->logits(id);
        text.answer.push_back(static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin()));
        if (i + 1 < kAnswerTokens) PITH_RETURN_IF_ERROR(engine_->Decode(id, text.answer.back()));
      }
      return {};
    };
    const Status status = read();
    engine_->Free(id);
    PITH_RETURN_IF_ERROR(status);
    // By the same steps as behind a loaded cache, so that equal caches give equal logits.
    PITH_ASSIGN_OR_RETURN(const RestoredSequence restored, engine_->RestoreFromMemory(text.whole, options_));
    Result<std::vector<float>> logits = AnswerOf(restored.sequence, text, {});
    engine_->Free(restored.sequence);
    PITH_ASSIGN_OR_RETURN(text.logits, std::move(logits));
    return {};
  }

  // Logits of the answer's tokens. on_first: called once the first of them is there.
  Result<std::vector<float>> AnswerOf(SequenceId id, const Text& text, const std::function<void()>& on_first) {
    std::vector<float> rest;
    PITH_RETURN_IF_ERROR(engine_->Prefill(id, text.probe));
    if (on_first) on_first();
    const std::span<const float> first = engine_->logits(id);
    std::vector<float> logits(first.begin(), first.end());
    PITH_RETURN_IF_ERROR(engine_->Prefill(id, std::span(text.answer).first(kAnswerTokens - 1), false, &rest));
    logits.insert(logits.end(), rest.begin(), rest.end());
    return logits;
  }

  Result<std::vector<std::byte>> Compressed(const Text& text, const Recipe& method, double ratio) {
    if (ratio == 0) return text.whole;
    PITH_ASSIGN_OR_RETURN(const RestoredSequence restored, engine_->RestoreFromMemory(text.whole, options_));
    const Result<double> kept = engine_->Compress(restored.sequence, method, 1 - ratio);
    Result<std::vector<std::byte>> saved =
        kept ? engine_->SaveToMemory(restored.sequence, restored.note)
             : Result<std::vector<std::byte>>(tl::unexpected<Error>(kept.error()));
    engine_->Free(restored.sequence);
    return saved;
  }

  Result<std::shared_ptr<store::Store>> OpenStore(bool places) {
    const std::string folder = fmt::format("{}/{}", folder_, num_stores_++);
    last_folder_ = folder;
    return store::Store::Open(
        {.ram_bytes = static_cast<size_t>(flags_.ram_share * static_cast<double>(whole_bytes_)) / 7 * 8,
         .folder = folder,
         .ssd_bytes = 4 * whole_bytes_ + (uint64_t{64} << 20),
         .evictor = "lru",
         .places = places});
  }

  // One request: load, restore, read the probe; then how the answer's tokens are judged.
  Status Ask(store::Store& store, const Text& text, Arm& arm) {
    DropFromPageCache(last_folder_);
    const Stopwatch watch;
    const auto loaded = store.Load(store::MakeChain(Sha256Digest{}, text.tokens).whole);
    if (!loaded) return IoError("a context was not there");
    const Stopwatch restoring;
    PITH_ASSIGN_OR_RETURN(const RestoredSequence restored,
                          engine_->RestoreFromMemory(loaded->payload->bytes(), options_));
    const auto bytes = static_cast<double>(loaded->payload->bytes().size());
    const double restore_seconds = restoring.seconds();
    speeds_.ram = bytes / restore_seconds;
    if (loaded->tier == store::Tier::kSsd) speeds_.ssd = bytes / (restore_seconds + loaded->seconds);
    const Result<std::vector<float>> logits =
        AnswerOf(restored.sequence, text, [&] { arm.ttft_seconds += watch.seconds(); });
    engine_->Free(restored.sequence);
    PITH_RETURN_IF_ERROR(logits);
    arm.quality += std::exp(-store::MeanDivergence(text.logits, *logits, logits->size() / kAnswerTokens));
    arm.ram_hits += loaded->tier == store::Tier::kRam ? 1 : 0;
    return {};
  }

  // placer: null where an evictor places.
  Result<Arm> Replay(store::Store& store, ContextPlacer* placer, std::string name) {
    Arm arm{.name = std::move(name), .quality = 0};
    Arm unseen;
    for (const size_t one : warming_) {
      if (Interrupted()) return Cancelled("stopped between requests");
      const Text& text = texts_[one];
      PITH_RETURN_IF_ERROR(Ask(store, text, unseen));
      // That it was asked for, not what was asked: that comes again below.
      if (placer != nullptr) placer->NoteUse(store::MakeChain(Sha256Digest{}, text.tokens).whole, {});
    }
    while (placer != nullptr && placer->PlaceNext(*engine_, speeds_)) {
      if (Interrupted()) return Cancelled("stopped while contexts were placed");
    }
    for (const size_t one : requests_) {
      if (Interrupted()) return Cancelled("stopped between requests");
      PITH_RETURN_IF_ERROR(Ask(store, texts_[one], arm));
    }
    const auto count = static_cast<double>(requests_.size());
    arm.ttft_seconds /= count;
    arm.quality /= count;
    arm.ram_hits /= count;
    return arm;
  }

  const StoreBenchFlags& flags_;
  std::shared_ptr<HostModel> model_;
  std::string folder_, last_folder_;
  std::vector<int> lengths_;
  std::vector<Recipe> methods_;
  SequenceOptions options_;
  std::unique_ptr<Engine> engine_;
  std::vector<Text> texts_;
  std::vector<size_t> requests_, warming_;
  size_t whole_bytes_ = 0;
  int num_stores_ = 0;
  TierSpeeds speeds_{.ram = 3e8, .ssd = 2e8};  // measured as soon as something was loaded
};

Result<int> CompareIn(const StoreBenchFlags& flags, const std::string& folder) {
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.out));
  Comparison comparison(flags, model, folder);
  PITH_RETURN_IF_ERROR(comparison.Init());
  std::vector<Arm> arms;
  const auto add = [&arms](Result<Arm> arm) -> Status {
    PITH_RETURN_IF_ERROR(arm);
    arms.push_back(std::move(*arm));
    return {};
  };
  {
    ProgressLine progress("comparing", flags.out.progress);
    PITH_RETURN_IF_ERROR(comparison.ReadTexts(progress));
    PITH_RETURN_IF_ERROR(add(comparison.Prefill()));
    PITH_RETURN_IF_ERROR(add(comparison.Lru(0, 0)));
    for (size_t method = 0; method < comparison.num_methods(); ++method) {
      for (const double ratio : kFixedRatios) PITH_RETURN_IF_ERROR(add(comparison.Lru(method, ratio)));
    }
    PITH_RETURN_IF_ERROR(add(comparison.Evicpress(progress, flags.loss)));
  }
  if (flags.out.json) {
    ordered_json json = {{"model", model->info().description}, {"contexts", flags.contexts},
                         {"requests", flags.requests}, {"whole_bytes", comparison.whole_bytes()},
                         {"ram_share", flags.ram_share}, {"arms", ordered_json::array()}};
    for (const Arm& arm : arms) {
      json["arms"].push_back({{"name", arm.name}, {"ttft_ms", 1000 * arm.ttft_seconds},
                              {"quality", arm.quality}, {"ram_hit_rate", arm.ram_hits}});
    }
    PrintJson(JsonText(json, 2));
    return kExitOk;
  }
  fmt::print("| kept as | first token | quality | from memory |\n|---|---|---|---|\n");
  for (const Arm& arm : arms) {
    fmt::print("| {} | {:.0f} ms | {:.3f} | {:.0f}% |\n", arm.name, 1000 * arm.ttft_seconds, arm.quality,
               100 * arm.ram_hits);
  }
  fmt::print("\n{} requests for {} contexts of {} in whole, memory for {:.0f}% of that.\n", flags.requests,
             flags.contexts, FormatBytes(comparison.whole_bytes()), 100 * flags.ram_share);
  return kExitOk;
}

}  // namespace

Result<int> CompareStores(const StoreBenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::string folder, MakeBenchFolder(flags.folder));
  Result<int> code = CompareIn(flags, folder);
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  return code;
}

}  // namespace pith::cli
