#include "lab/sharing_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "engine/engine.h"
#include "lab/judge.h"

namespace pith {
namespace {

// The model over all texts: logits, and, if asked for, the means of its caches.
struct Run {
  std::vector<std::vector<float>> logits;  // [texts], rows less their means
  std::vector<MeanCache> caches;           // [layers]
  size_t key_dim = 0;
};

void Centre(std::vector<float>& logits, size_t vocab) {
  for (size_t row = 0; row < logits.size(); row += vocab) {
    const double mean = std::accumulate(logits.begin() + static_cast<ptrdiff_t>(row),
                                        logits.begin() + static_cast<ptrdiff_t>(row + vocab), 0.0) /
                        static_cast<double>(vocab);
    for (size_t i = row; i < row + vocab; ++i) logits[i] -= static_cast<float>(mean);
  }
}

Result<Run> RunTexts(const std::shared_ptr<HostModel>& model, std::span<const std::vector<int32_t>> texts,
                     int num_threads, bool with_caches) {
  EngineOptions options;
  options.num_ctx = static_cast<int>(texts.front().size()) + 1;
  options.num_threads = num_threads;
  options.compress = CompressMode::kAfter;
  PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model, options));
  Run run;
  const auto layers = static_cast<size_t>(model->info().num_layers);
  std::vector<std::vector<float>> keys(layers), values(layers);
  for (const std::vector<int32_t>& text : texts) {
    PITH_ASSIGN_OR_RETURN(const SequenceId sequence, engine->NewSequence());
    const SequenceHold hold(*engine, sequence);
    run.logits.emplace_back();
    PITH_RETURN_IF_ERROR(engine->Prefill(sequence, text, false, &run.logits.back()));
    Centre(run.logits.back(), static_cast<size_t>(model->info().num_vocab));
    for (size_t l = 0; l < layers && with_caches; ++l) {
      const std::vector<float> k = engine->EntryRows(sequence, static_cast<int>(l), false),
                               v = engine->EntryRows(sequence, static_cast<int>(l), true);
      keys[l].insert(keys[l].end(), k.begin(), k.end());
      values[l].insert(values[l].end(), v.begin(), v.end());
    }
  }
  for (size_t l = 0; l < layers && with_caches; ++l) {
    run.caches.push_back({MeanOverTexts(keys[l], texts.size()), MeanOverTexts(values[l], texts.size())});
  }
  run.key_dim = static_cast<size_t>(model->info().layers.front().key_dim);
  return run;
}

double MeanCosine(const Run& a, const Run& b) {
  double sum = 0;
  for (size_t text = 0; text < a.logits.size(); ++text) {
    double dot = 0, of_a = 0, of_b = 0;
    for (size_t i = 0; i < a.logits[text].size(); ++i) {
      const double x = static_cast<double>(a.logits[text][i]), y = static_cast<double>(b.logits[text][i]);
      dot += x * y, of_a += x * x, of_b += y * y;
    }
    sum += dot / std::sqrt(std::max(of_a * of_b, 1e-300));
  }
  return sum / static_cast<double>(a.logits.size());
}

std::vector<std::pair<int, int>> PairsOf(const std::vector<MeanCache>& caches, size_t dim,
                                         const SharingOptions& options) {
  const size_t layers = caches.size();
  std::vector<std::vector<double>> distance(layers, std::vector<double>(layers, 0));
  for (size_t l = 0; l < layers; ++l) {
    for (size_t m = 0; m < l; ++m) distance[l][m] = CacheDistance(caches[l], caches[m], dim);
  }
  std::vector<std::pair<int, int>> pairs = DissimilarFirst(distance);
  if (options.order == PairOrder::kSimilar) std::ranges::reverse(pairs);
  if (options.order == PairOrder::kRandom) {
    std::mt19937_64 random(options.seed);
    for (size_t i = pairs.size(); i > 1; --i) std::swap(pairs[i - 1], pairs[random() % i]);
  }
  return pairs;
}

}  // namespace

Result<SharingSearch> SearchSharing(const LoadWithMap& load, std::span<const std::vector<int32_t>> texts,
                                    const SharingOptions& options, const SharingProgress& progress) {
  SharingMap identity;
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, load(identity));
  const ModelInfo& info = model->info();
  if (CountLayers(info, LayerKind::kGlobal) != info.num_layers ||
      std::ranges::any_of(info.layers, [](const LayerShape& layer) {
        return layer.shared || layer.key_dim != layer.value_dim;
      })) {
    return InvalidArgument("layers share caches only where each has whole attention and a cache of its own");
  }
  PITH_ASSIGN_OR_RETURN(const Run whole, RunTexts(model, texts, options.num_threads, true));
  const auto similarity = [&](const SharingMap& map) -> Result<double> {
    PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> shared, load(map));
    PITH_ASSIGN_OR_RETURN(const Run run, RunTexts(shared, texts, options.num_threads, false));
    const double close = MeanCosine(whole, run);
    if (progress && !progress({map, close, close > options.threshold})) return Cancelled("stopped");
    return close;
  };
  return FindSharing(info.num_layers, PairsOf(whole.caches, whole.key_dim, options), options.count, options.threshold,
                     similarity);
}

}  // namespace pith
