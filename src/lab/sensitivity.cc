#include "lab/sensitivity.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "lab/whole_attention.h"
#include "policy/learn/key_stability.h"

namespace pith {

Result<std::vector<double>> MeasureSensitivity(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                                               const SensitivityOptions& options, const Progress& progress) {
  PITH_RETURN_IF_ERROR(CheckHasWholeAttention(model->info(), "keys are compared in"));
  const auto block = static_cast<size_t>(options.block);
  if (tokens.size() <= block) {
    return InvalidArgument(fmt::format("the text has {} tokens, and its blocks {}: with one block nothing is hidden",
                                       tokens.size(), block));
  }
  const int stay = options.first + options.previous;
  if (stay >= options.block) {
    return InvalidArgument(fmt::format("of a block of {} tokens the next one would see {}: that is all of it",
                                       options.block, stay));
  }
  EngineOptions engine_options;
  engine_options.num_ctx = static_cast<int>(tokens.size());
  engine_options.num_threads = options.num_threads;
  engine_options.max_sequences = 2;
  engine_options.compress = CompressMode::kAfter;
  PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(const Recipe hides, ParseRecipe(fmt::format("streamingllm:sinks={}", options.first)));
  engine_options.later_recipes = {hides};
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(std::move(model), engine_options));
  PITH_ASSIGN_OR_RETURN(const SequenceId whole, engine->NewSequence());
  PITH_ASSIGN_OR_RETURN(const SequenceId hidden, engine->NewSequence());
  std::vector<int> heads;  // of each global layer
  std::vector<size_t> dims;
  for (const LayerShape& layer : engine->model().info().layers) {
    if (layer.kind != LayerKind::kGlobal) continue;
    heads.push_back(layer.num_kv_heads);
    dims.push_back(static_cast<size_t>(layer.key_dim));
  }
  std::vector<KeySimilaritySum> sums(heads.size(), KeySimilaritySum(static_cast<size_t>(options.window)));
  for (size_t at = 0; at < tokens.size(); at += block) {
    const std::span<const int32_t> part = tokens.subspan(at, std::min(block, tokens.size() - at));
    if (at > 0) {
      const double share = static_cast<double>(stay) / static_cast<double>(engine->EntryPositions(hidden, 0, 0).size());
      const Result<double> kept = engine->Compress(hidden, hides, std::min(1.0, share));
      if (!kept) return tl::unexpected<Error>(kept.error());
    }
    for (const SequenceId id : {whole, hidden}) {
      const auto step = [&](size_t done, size_t) {
        return !progress || progress(2 * at + (id == hidden ? part.size() : 0) + done, 2 * tokens.size());
      };
      PITH_RETURN_IF_ERROR(engine->Prefill(id, part, false, nullptr, step));
    }
    const auto from = static_cast<int32_t>(at), to = static_cast<int32_t>(at + part.size());
    for (size_t layer = 0; layer < heads.size(); ++layer) {
      for (int head = 0; head < heads[layer]; ++head) {
        const std::vector<float> causal = engine->Keys(whole, static_cast<int>(layer), head, from, to);
        const std::vector<float> blocked = engine->Keys(hidden, static_cast<int>(layer), head, from, to);
        sums[layer].Add(static_cast<size_t>(head), at, causal.data(), blocked.data(), part.size(), dims[layer]);
      }
    }
  }
  std::vector<double> similarities;
  for (const KeySimilaritySum& sum : sums) similarities.push_back(sum.Mean());
  return similarities;
}

}  // namespace pith
