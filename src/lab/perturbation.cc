#include "lab/perturbation.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/logits.h"
#include "lab/whole_attention.h"

namespace pith {
namespace {

using nlohmann::ordered_json;

// Mean over items of one place in their arrays.
double MeanAt(const std::vector<std::vector<double>>& items, size_t at) {
  double sum = 0;
  for (const std::vector<double>& item : items) sum += item[at];
  return items.empty() ? 0 : sum / static_cast<double>(items.size());
}

double MeanOfAll(const std::vector<std::vector<double>>& items) {
  double sum = 0;
  size_t count = 0;
  for (const std::vector<double>& item : items) {
    for (const double value : item) sum += value;
    count += item.size();
  }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

OutputNorms MeasureOutputs(std::span<const float> outputs, int num_queries, int num_heads, int value_dim,
                           std::span<const float> projection) {
  const auto heads = static_cast<size_t>(num_heads), dim = static_cast<size_t>(value_dim);
  const size_t row = heads * dim;
  const bool projects = !projection.empty() && projection.size() % row == 0;
  OutputNorms norms{.squares = std::vector<double>(heads), .absolutes = std::vector<double>(heads)};
  for (size_t t = 0; t < static_cast<size_t>(num_queries); ++t) {
    const float* output = outputs.data() + t * row;
    if (!projects) {
      for (size_t i = 0; i < row; ++i) {
        const double value = output[i];
        norms.squares[i / dim] += value * value;
        norms.absolutes[i / dim] += std::abs(value);
        norms.layer_squares += value * value;
      }
      continue;
    }
    for (size_t from = 0; from < projection.size(); from += row) {
      double sum = 0;
      for (size_t h = 0; h < heads; ++h) {
        float value = 0;
        for (size_t d = h * dim; d < (h + 1) * dim; ++d) value += output[d] * projection[from + d];
        norms.squares[h] += static_cast<double>(value * value);
        norms.absolutes[h] += static_cast<double>(std::abs(value));
        sum += static_cast<double>(value);
      }
      norms.layer_squares += sum * sum;
    }
  }
  return norms;
}

Perturbation::Perturbation(std::shared_ptr<HostModel> model, JudgeOptions options)
    : model_(std::move(model)), options_(std::move(options)) {
  const std::vector<LayerShape>& layers = model_->info().layers;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].kind == LayerKind::kGlobal) layers_.push_back(static_cast<int>(i));
  }
}

Result<std::unique_ptr<Perturbation>> Perturbation::Create(std::shared_ptr<HostModel> model, JudgeOptions options) {
  PITH_RETURN_IF_ERROR(CheckHasWholeAttention(model->info(), "what attention gives is compared in"));
  std::unique_ptr<Perturbation> made(new Perturbation(std::move(model), std::move(options)));
  const JudgeOptions& o = made->options_;
  PITH_ASSIGN_OR_RETURN(EngineOptions engine, FullCacheEngine(o));
  engine.max_sequences = 2 + static_cast<int>(o.keeps.size());
  engine.later_recipes = o.recipes;
  engine.keep_queries = o.perturbation_queries;
  PITH_ASSIGN_OR_RETURN(made->engine_, Engine::Create(made->model_, engine));
  return made;
}

OutputNorms Perturbation::Measure(size_t layer, std::span<const float> outputs, int num_queries) const {
  const LayerShape& shape = model_->info().layers[static_cast<size_t>(layers_[layer])];
  return MeasureOutputs(outputs, num_queries, shape.num_heads, shape.value_dim,
                        *model_->OutputProjection(layers_[layer]));
}

Result<std::vector<std::vector<float>>> Perturbation::Outputs(SequenceId queries_of, SequenceId entries_of,
                                                              int num_queries) {
  std::vector<std::vector<float>> outputs(layers_.size());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    PITH_ASSIGN_OR_RETURN(outputs[layer],
                          engine_->AttentionOutputs(queries_of, entries_of, static_cast<int>(layer), num_queries));
  }
  return outputs;
}

Result<Perturbation::Asked> Perturbation::Ask(SequenceId queries_of, int num_tokens) {
  Asked asked{.queries_of = queries_of,
              .num_queries = std::min(options_.perturbation_queries, num_tokens),
              .outputs = {},
              .norms = {}};
  PITH_ASSIGN_OR_RETURN(asked.outputs, Outputs(queries_of, queries_of, asked.num_queries));
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    asked.norms.push_back(Measure(layer, asked.outputs[layer], asked.num_queries));
  }
  return asked;
}

Status Perturbation::Compare(const Asked& asked, SequenceId fork, Errors& errors) {
  PITH_ASSIGN_OR_RETURN(std::vector<std::vector<float>> outputs, Outputs(asked.queries_of, fork, asked.num_queries));
  std::vector<double> heads, heads_l1, layers;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (size_t i = 0; i < outputs[layer].size(); ++i) outputs[layer][i] -= asked.outputs[layer][i];
    const OutputNorms norms = Measure(layer, outputs[layer], asked.num_queries);
    const OutputNorms& full = asked.norms[layer];
    for (size_t h = 0; h < norms.squares.size(); ++h) {
      heads.push_back(std::sqrt(Ratio(norms.squares[h], full.squares[h])));
      heads_l1.push_back(Ratio(norms.absolutes[h], full.absolutes[h]));
    }
    layers.push_back(std::sqrt(Ratio(norms.layer_squares, full.layer_squares)));
  }
  errors.heads.push_back(std::move(heads));
  errors.heads_l1.push_back(std::move(heads_l1));
  errors.layers.push_back(std::move(layers));
  return {};
}

Status Perturbation::Run(const JudgedTask& task) {
  Engine& engine = *engine_;
  PITH_ASSIGN_OR_RETURN(const SequenceId base, engine.NewSequence());
  const SequenceHold hold(engine, base);
  PITH_RETURN_IF_ERROR(engine.Prefill(base, task.compressed, false, nullptr, KeepGoing(options_)));
  PITH_ASSIGN_OR_RETURN(const SequenceId followed, engine.Fork(base));
  const SequenceHold hold_followed(engine, followed);
  PITH_RETURN_IF_ERROR(engine.Prefill(followed, task.tail, false, nullptr, KeepGoing(options_)));
  PITH_RETURN_IF_ERROR(CheckLogits(engine.logits(followed)));
  PITH_ASSIGN_OR_RETURN(const Asked observed, Ask(base, static_cast<int>(task.compressed.size())));
  PITH_ASSIGN_OR_RETURN(const Asked later, Ask(followed, static_cast<int>(task.tail.size())));
  for (size_t i = 0; i < options_.recipes.size(); ++i) {
    if (options_.stopped()) return Cancelled("stopped");
    std::vector<std::unique_ptr<SequenceHold>> holds;
    std::vector<CompressTarget> targets;
    for (const double keep : options_.keeps) {
      PITH_ASSIGN_OR_RETURN(const SequenceId fork, engine.Fork(followed));
      holds.push_back(std::make_unique<SequenceHold>(engine, fork));
      targets.push_back({.sequence = fork, .keep_fraction = keep});
    }
    PITH_RETURN_IF_ERROR(engine.CompressForks(base, options_.recipes[i], targets));
    for (size_t k = 0; k < targets.size(); ++k) {
      PITH_RETURN_IF_ERROR(Compare(later, targets[k].sequence, errors_[{i, k, false}]));
      PITH_RETURN_IF_ERROR(Compare(observed, targets[k].sequence, errors_[{i, k, true}]));
    }
  }
  return {};
}

Perturbation::Row Perturbation::Summarise(const Key& key) const {
  const Errors& errors = errors_.at(key);
  Row row{.error = MeanOfAll(errors.heads), .layer_error = MeanOfAll(errors.layers)};
  const auto [recipe, keep, observed] = key;
  if (recipe == 0) return row;
  const Errors& base = errors_.at({0, keep, observed});
  const size_t num_heads = errors.heads.front().size(), num_items = errors.heads.size();
  double lower = 0, lower_l1 = 0, items_lower = 0;
  for (size_t h = 0; h < num_heads; ++h) {
    lower += MeanAt(errors.heads, h) < MeanAt(base.heads, h);
    lower_l1 += MeanAt(errors.heads_l1, h) < MeanAt(base.heads_l1, h);
    for (size_t item = 0; item < num_items; ++item) items_lower += errors.heads_l1[item][h] < base.heads_l1[item][h];
  }
  row.lower = lower / static_cast<double>(num_heads);
  row.lower_l1 = lower_l1 / static_cast<double>(num_heads);
  row.items_lower_l1 = items_lower / static_cast<double>(num_heads * num_items);
  return row;
}

ordered_json Perturbation::ToJson() const {
  auto table = ordered_json::array();
  size_t items = 0;
  for (const auto& [key, errors] : errors_) {
    items = errors.heads.size();
    const Row row = Summarise(key);
    auto heads = ordered_json::array(), layers = ordered_json::array();
    size_t at = 0;
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      auto one = ordered_json::array();
      const int num_heads = model_->info().layers[static_cast<size_t>(layers_[layer])].num_heads;
      for (int h = 0; h < num_heads; ++h) one.push_back(MeanAt(errors.heads, at++));
      heads.push_back(std::move(one));
      layers.push_back(MeanAt(errors.layers, layer));
    }
    const auto [recipe, keep, observed] = key;
    const bool is_base = recipe == 0;
    const auto share = [is_base](double value) { return is_base ? ordered_json(nullptr) : ordered_json(value); };
    table.push_back({{"policy", options_.names[recipe]},
                     {"keep", options_.keeps[keep]},
                     {"asked_by", observed ? "observed" : "later"},
                     {"error", row.error},
                     {"layer_error", row.layer_error},
                     {"heads_lower", share(row.lower)},
                     {"heads_lower_l1", share(row.lower_l1)},
                     {"head_items_lower_l1", share(row.items_lower_l1)},
                     {"layers", std::move(layers)},
                     {"heads", std::move(heads)}});
  }
  return {{"base", options_.names.front()},
          {"items", items},
          {"queries", options_.perturbation_queries},
          {"table", std::move(table)}};
}

void Perturbation::Print() const {
  size_t width = 6;
  for (const std::string& name : options_.names) width = std::max(width, name.size());
  fmt::print("{:<{}} {:>6} {:>10} {:>10} {:>11}  {}\n", "recipe", width, "keep", "queries", "head error", "layer error",
             "heads with less than " + options_.names.front() + " (L2, L1; L1 over heads and items)");
  for (const auto& [key, errors] : errors_) {
    const Row row = Summarise(key);
    const auto [recipe, keep, observed] = key;
    fmt::print("{:<{}} {:>6.3g} {:>10} {:>10.4f} {:>11.4f}  {}\n", options_.names[recipe], width, options_.keeps[keep],
               observed ? "observed" : "later", row.error, row.layer_error,
               recipe == 0 ? std::string("-")
                              : fmt::format("{:.1f}% {:.1f}% {:.1f}%", 100 * row.lower, 100 * row.lower_l1,
                                            100 * row.items_lower_l1));
  }
}

}  // namespace pith
