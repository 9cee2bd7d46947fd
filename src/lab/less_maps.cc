#include "lab/less_maps.h"

#include <algorithm>
#include <utility>

#include "engine/less_states.h"
#include "lab/whole_attention.h"

namespace pith {
namespace {

// Rows of one kv head's query heads, [G, T, D] out of [T, H, D].
std::vector<float> QueriesOf(const LayerQueries& queries, size_t kv_head, size_t group) {
  const auto heads = static_cast<size_t>(queries.num_heads), dim = static_cast<size_t>(queries.dim);
  const size_t count = queries.rows.size() / (heads * dim);
  std::vector<float> rows(group * count * dim);
  for (size_t g = 0; g < group; ++g) {
    for (size_t t = 0; t < count; ++t) {
      std::copy_n(queries.rows.begin() + static_cast<ptrdiff_t>((t * heads + kv_head * group + g) * dim), dim,
                  rows.begin() + static_cast<ptrdiff_t>((g * count + t) * dim));
    }
  }
  return rows;
}

// One layer of a sequence that has read a text of num_tokens tokens.
Status FitLayer(const Engine& engine, SequenceId sequence, int global_layer, const LayerShape& shape, size_t num_tokens,
                LessFitOptions options, LessLayer& maps, FittedMaps& fitted) {
  const LayerQueries queries = engine.Queries(sequence, global_layer, static_cast<int>(num_tokens / 2));
  const std::vector<float> keys = engine.EntryRows(sequence, global_layer, false);
  const std::vector<float> values = engine.EntryRows(sequence, global_layer, true);
  const auto kv_heads = static_cast<size_t>(shape.num_kv_heads),
             group = static_cast<size_t>(queries.num_heads) / kv_heads;
  const auto dim = static_cast<size_t>(shape.key_dim), value_dim = static_cast<size_t>(shape.value_dim);
  const size_t num_queries = queries.rows.size() / (static_cast<size_t>(queries.num_heads) * dim);
  const size_t num_entries = num_tokens - num_queries;
  double without = 0, with = 0;
  for (size_t h = 0; h < kv_heads; ++h) {
    const std::vector<float> rows = QueriesOf(queries, h, group);
    const LessSample sample{.group = static_cast<int>(group),
                            .dim = shape.key_dim,
                            .value_dim = shape.value_dim,
                            .num_queries = num_queries,
                            .num_entries = num_entries,
                            .queries = rows,
                            .keys = std::span(keys).subspan(h * num_tokens * dim, num_entries * dim),
                            .values = std::span(values).subspan(h * num_tokens * value_dim, num_entries * value_dim),
                            .scale = queries.scale,
                            .soft_cap = queries.soft_cap};
    ++options.seed;
    PITH_ASSIGN_OR_RETURN(const LessFit fit, FitLess(sample, options));
    AppendHead(fit.maps, maps);
    without += fit.error_without / static_cast<double>(kv_heads);
    with += fit.error_with / static_cast<double>(kv_heads);
  }
  fitted.error_without.push_back(without);
  fitted.error_with.push_back(with);
  return {};
}

}  // namespace

Result<FittedMaps> FitMaps(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                           const LessFitOptions& options, int num_threads, const Progress& progress) {
  const std::vector<LayerShape>& layers = model->info().layers;
  PITH_RETURN_IF_ERROR(CheckHasWholeAttention(model->info(), "maps are fitted to"));
  PITH_RETURN_IF_ERROR(CheckCanHaveMaps(model->info()));
  EngineOptions engine_options;
  engine_options.num_ctx = static_cast<int>(tokens.size());
  engine_options.num_threads = num_threads;
  engine_options.keep_queries = static_cast<int>(tokens.size() / 2);
  engine_options.compress = CompressMode::kAfter;
  PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(std::move(model), engine_options));
  PITH_ASSIGN_OR_RETURN(const SequenceId sequence, engine->NewSequence());
  PITH_RETURN_IF_ERROR(engine->Prefill(sequence, tokens));
  const auto is_global = [](const LayerShape& layer) { return layer.kind == LayerKind::kGlobal; };
  const auto total = static_cast<size_t>(std::ranges::count_if(layers, is_global));
  FittedMaps fitted;
  std::vector<LessLayer> maps;
  for (const LayerShape& shape : layers) {
    if (!is_global(shape)) continue;
    if (progress && !progress(maps.size() + 1, total + 1)) return Cancelled("stopped while maps were fitted");
    LessFitOptions own = options;
    own.seed += 1000 * maps.size();
    LessLayer layer;
    PITH_RETURN_IF_ERROR(
        FitLayer(*engine, sequence, static_cast<int>(maps.size()), shape, tokens.size(), own, layer, fitted));
    maps.push_back(std::move(layer));
  }
  PITH_ASSIGN_OR_RETURN(fitted.maps, LessMaps::Make(options.rank, std::move(maps)));
  return fitted;
}

}  // namespace pith
