#include "lab/delta_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cache/latents.h"
#include "kernels/rotation.h"
#include "lab/whole_attention.h"

namespace pith {
namespace {

constexpr size_t kFewestTokens = 256;

// Keys before RoPE with values of one kv head, [n, D].
std::vector<float> VectorsOf(std::span<const float> keys, std::span<const float> values, const LayerShape& shape,
                             const TurnTable& turns) {
  const auto key_dim = static_cast<size_t>(shape.key_dim), value_dim = static_cast<size_t>(shape.value_dim),
             dim = key_dim + value_dim, n = keys.size() / key_dim;
  std::vector<float> rows(n * dim);
  for (size_t i = 0; i < n; ++i) {
    float* const row = rows.data() + i * dim;
    std::copy_n(keys.data() + i * key_dim, key_dim, row);
    std::copy_n(values.data() + i * value_dim, value_dim, row + key_dim);
    turns.Unturn(static_cast<int32_t>(i), row);
  }
  return rows;
}

// As act=delta with score=stride has them: of tokens that are no reference.
LatentDifferences DifferencesOf(const PageLayout& layout, const std::vector<float>& rows, int every) {
  const auto dim = static_cast<size_t>(layout.key_dim + layout.value_dim);
  std::vector<float> references, others;
  std::vector<int32_t> visible;
  for (size_t i = 0; i < rows.size() / dim; ++i) {
    const auto row = rows.begin() + static_cast<ptrdiff_t>(i * dim);
    const bool is_reference = i % static_cast<size_t>(every) == 0;
    std::vector<float>& to = is_reference ? references : others;
    to.insert(to.end(), row, row + static_cast<ptrdiff_t>(dim));
    if (!is_reference) visible.push_back(static_cast<int32_t>(references.size() / dim));
  }
  return FindDifferences(layout, std::move(others), references, visible);
}

// Of keys [0, key_dim) and of the rest.
struct Squares {
  double keys = 0, values = 0;
  void Add(const PageLayout& layout, std::span<const float> rows) {
    const auto dim = static_cast<size_t>(layout.key_dim + layout.value_dim);
    for (size_t i = 0; i < rows.size(); ++i) {
      const double square = static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
      (i % dim < static_cast<size_t>(layout.key_dim) ? keys : values) += square;
    }
  }
  double Over(const Squares& whole) const {
    return (keys / std::max(whole.keys, 1e-300) + values / std::max(whole.values, 1e-300)) / 2;
  }
};

// What latents leave of differences [n, D].
std::vector<float> RestOf(const PageLayout& layout, std::span<const uint16_t> maps, std::span<const float> rows) {
  const auto dim = static_cast<size_t>(layout.key_dim + layout.value_dim), rank = static_cast<size_t>(layout.rank());
  const size_t n = rows.size() / dim;
  std::vector<float> latents(n * rank), rest(rows.begin(), rows.end());
  EncodeDifferences(layout, maps, rows.data(), static_cast<int>(n), latents.data());
  const std::vector<float> up = FromMapNumbers(maps);
  for (size_t i = 0; i < n; ++i) {
    for (size_t r = 0; r < rank; ++r) {
      for (size_t c = 0; c < dim; ++c) rest[i * dim + c] -= latents[i * rank + r] * up[r * dim + c];
    }
  }
  return rest;
}

struct HeadFit {
  std::vector<uint16_t> maps;
  double error_without = 0, error_with = 0;
};

HeadFit FitHead(const PageLayout& layout, const std::vector<float>& rows, int every) {
  const auto dim = static_cast<size_t>(layout.key_dim + layout.value_dim);
  const LatentDifferences all = DifferencesOf(layout, rows, every);
  const size_t n = all.rows.size() / dim, half = n / 2;
  const std::span<const float> unseen = std::span(all.rows).subspan(half * dim);
  const std::vector<uint16_t> of_half = FitLatentMaps(layout, all.rows.data(), static_cast<int>(half));
  Squares whole, without, with;
  whole.Add(layout, std::span(rows).subspan(rows.size() / dim / 2 * dim));
  without.Add(layout, unseen);
  with.Add(layout, RestOf(layout, of_half, unseen));
  // References are among the entries, but not among the differences.
  const double scale = static_cast<double>(rows.size() / dim) / static_cast<double>(n);
  return {.maps = FitLatentMaps(layout, all.rows.data(), static_cast<int>(n)),
          .error_without = scale * without.Over(whole),
          .error_with = scale * with.Over(whole)};
}

}  // namespace

Result<FittedDelta> FitDelta(std::shared_ptr<HostModel> model, std::span<const int32_t> tokens,
                             const DeltaFitOptions& options, int num_threads, const Progress& progress) {
  const std::vector<LayerShape>& layers = model->info().layers;
  const auto is_global = [](const LayerShape& layer) {
    return layer.kind == LayerKind::kGlobal && layer.num_kv_heads > 0;
  };
  PITH_RETURN_IF_ERROR(CheckHasWholeAttention(model->info(), "maps are fitted to"));
  for (const LayerShape& layer : layers) {
    if (!is_global(layer) || layer.rotation) continue;
    return Unsupported(
        fmt::format("latents are made of keys before RoPE, which {} models apply in a form that cannot be "
                    "undone",
                    model->info().architecture));
  }
  if (tokens.size() < kFewestTokens) {
    return InvalidArgument(
        fmt::format("maps are fitted to {} tokens at least, and the text has {}", kFewestTokens, tokens.size()));
  }
  const auto latents = static_cast<uint8_t>(std::clamp(std::lround(options.latent * 256), 1L, 255L));
  EngineOptions engine_options;
  engine_options.num_ctx = static_cast<int>(tokens.size());
  engine_options.num_threads = num_threads;
  engine_options.compress = CompressMode::kAfter;
  PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model, engine_options));
  PITH_ASSIGN_OR_RETURN(const SequenceId sequence, engine->NewSequence());
  PITH_RETURN_IF_ERROR(engine->Prefill(sequence, tokens));
  const auto total = static_cast<size_t>(std::ranges::count_if(layers, is_global));
  FittedDelta fitted;
  std::vector<DeltaLayer> maps;
  for (const LayerShape& shape : layers) {
    if (!is_global(shape)) continue;
    if (progress && !progress(maps.size() + 1, total + 1)) return Cancelled("stopped while maps were fitted");
    const PageLayout layout = PageLayout::Make(PageFormat::Latents(latents, static_cast<uint8_t>(options.references)),
                                               shape.key_dim, shape.value_dim, 0);
    const auto global = static_cast<int>(maps.size());
    const std::vector<float> keys = engine->EntryRows(sequence, global, false),
                             values = engine->EntryRows(sequence, global, true);
    const TurnTable turns(*shape.rotation);
    const auto heads = static_cast<size_t>(shape.num_kv_heads);
    std::vector<HeadFit> fits(heads);
    for (size_t h = 0; h < heads; ++h) {
      const auto part = [&](const std::vector<float>& all) {
        return std::span<const float>(all).subspan(h * (all.size() / heads), all.size() / heads);
      };
      fits[h] = FitHead(layout, VectorsOf(part(keys), part(values), shape, turns), options.every);
    }
    DeltaLayer layer{.key_dim = shape.key_dim, .value_dim = shape.value_dim};
    double without = 0, with = 0;
    for (HeadFit& fit : fits) {
      layer.heads.push_back(std::move(fit.maps));
      without += fit.error_without / static_cast<double>(heads);
      with += fit.error_with / static_cast<double>(heads);
    }
    maps.push_back(std::move(layer));
    fitted.error_without.push_back(without);
    fitted.error_with.push_back(with);
  }
  PITH_ASSIGN_OR_RETURN(fitted.maps, DeltaMaps::Make(latents, std::move(maps)));
  return fitted;
}

}  // namespace pith
