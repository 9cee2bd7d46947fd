#include "session/c_api/stage_view.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace pith::c_api {

std::vector<double> OutsideStage::Values(const Params& params) const {
  std::vector<double> values;
  for (const std::string& name : param_names) values.push_back(params.Real(name));
  return values;
}

Result<std::vector<ParamSpec>> ReadParams(const pith_param* params, size_t count, OutsideStage& stage) {
  PITH_ASSIGN_OR_RETURN(const std::vector<pith_param> given, ReadAll(params, count, "parameters"));
  std::vector<ParamSpec> specs;
  for (const pith_param& param : given) {
    PITH_RETURN_IF_ERROR(Require(param.name, "name of a parameter"));
    stage.param_names.emplace_back(param.name);
    specs.push_back({.name = param.name,
                     .kind = param.whole ? ParamSpec::Kind::kInt : ParamSpec::Kind::kReal,
                     .initial = param.initial,
                     .min = param.min,
                     .max = param.max,
                     .choices = {},
                     .help = param.help == nullptr ? "" : param.help});
  }
  if (stage.window > 0)
    specs.push_back(IntParam("window", stage.window, 1, kLargestWindow, "last queries that are observed"));
  return specs;
}

Status CheckPlainNeeds(uint32_t needs, int window, std::string_view what) {
  if ((needs & ~kPlainNeeds) != 0) {
    return InvalidArgument(
        fmt::format("{} needs keys, values, their norms, a window or moments of queries: PITH_NEED_* bits", what));
  }
  if (window < 0 || window > kLargestWindow) {
    return InvalidArgument(fmt::format("a window has at most {} queries", kLargestWindow));
  }
  return {};
}

Status CheckScores(std::string_view word, int layer, int head, std::span<const float> scores) {
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!std::isnan(scores[i]) && scores[i] != -std::numeric_limits<float>::infinity()) continue;
    return InvalidArgument(
        fmt::format("{} gave entry {} of head {} in layer {} the score {}, which is no number to compare", word, i,
                    head, layer, scores[i]));
  }
  return {};
}

LayerView::LayerView(const LayerInputs& inputs, const std::vector<double>& params, const Within* within,
                     float* const* remembered)
    : heads_(inputs.heads.size()), pointers_(inputs.heads.size()) {
  for (size_t h = 0; h < heads_.size(); ++h) {
    const HeadInputs& head = inputs.heads[h];
    heads_[h] = {.struct_size = sizeof(pith_head_input),
                 .num_entries = head.num_entries,
                 .positions = head.positions.data(),
                 .pinned = head.pinned.empty() ? nullptr : head.pinned.data(),
                 .keys = head.keys,
                 .values = head.values,
                 .window_probs = head.window_probs,
                 .window_queries = head.window_queries,
                 .value_norms = head.value_norms,
                 .query_means = head.query_means,
                 .query_covariances = head.query_covariances,
                 .columns = head.columns.empty() ? nullptr : head.columns.data()};
    pointers_[h] = &heads_[h];
  }
  if (inputs.rotation != nullptr) {
    for (const RotatedPair& pair : inputs.rotation->pairs) {
      rotation_.push_back({pair.real, pair.imaginary, pair.angle, pair.magnitude});
    }
  }
  layer_ = {.struct_size = sizeof(pith_layer_input),
            .layer = inputs.layer,
            .num_layers = inputs.num_layers,
            .num_heads = static_cast<int32_t>(heads_.size()),
            .group = inputs.group,
            .key_dim = inputs.key_dim,
            .value_dim = inputs.value_dim,
            .window = inputs.window,
            .next_position = inputs.next_position,
            .seed = inputs.seed,
            .attention_scale = inputs.attention_scale,
            .heads = pointers_.data(),
            .rotation = rotation_.data(),
            .num_rotated = rotation_.size(),
            .params = params.data(),
            .internal = within,
            .remembered = remembered};
}

}  // namespace pith::c_api
