// Recipes and scorers of one's own.
#ifndef PITH_CPP_SCORER_HPP_
#define PITH_CPP_SCORER_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <pith/cpp/base.hpp>
#include <string>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

struct RecipeInfo {
  std::string name, paper, summary, stages, needs, cost, when, good_for, parameters;
};
inline std::vector<RecipeInfo> ListRecipes() {
  std::vector<RecipeInfo> all;
  pith_list_recipes(
      [](void* user, const pith_recipe_info* r) {
        static_cast<std::vector<RecipeInfo>*>(user)->push_back(
            {r->name, r->paper, r->summary, r->stages, r->needs, r->cost, r->when, r->good_for, r->parameters});
      },
      &all);
  return all;
}

struct StageInfo {
  std::string kind, name, paper, summary, parameters;
};
inline std::vector<StageInfo> ListStages() {
  std::vector<StageInfo> all;
  pith_list_stages(
      [](void* user, const pith_stage_info* s) {
        static_cast<std::vector<StageInfo>*>(user)->push_back({s->kind, s->name, s->paper, s->summary, s->parameters});
      },
      &all);
  return all;
}

// A recipe as pith writes it, with all stages. kInvalidArgument, kNotFound.
inline Result<std::string> NormaliseRecipe(const std::string& recipe) {
  size_t length = 0;
  PITH_RETURN_IF_ERROR(internal::ToStatus(pith_recipe_normalise(recipe.c_str(), nullptr, 0, &length)));
  std::string text(length, '\0');
  PITH_RETURN_IF_ERROR(internal::ToStatus(pith_recipe_normalise(recipe.c_str(), text.data(), length + 1, &length)));
  return text;
}

using HeadInput = pith_head_input;
using LayerInput = pith_layer_input;
using Observation = pith_observation;

// How much each entry matters. Methods are called from several threads, for different layers at once.
class Scorer {
 public:
  virtual ~Scorer() = default;
  // scores[h]: an element for each entry of kv head h, all 0. Larger stays, INFINITY first of all; NaN, -INFINITY or a
  // return of false fail what was being read or compressed.
  virtual bool Score(const LayerInput& layer, float* const* scores) const = 0;
  // With PITH_NEED_EVERY_QUERY or PITH_NEED_REPEAT: updates columns[i], one element for each entry.
  virtual void Observe(const Observation& seen, float* const* columns) const { (void)seen, (void)columns; }
};

struct ScorerParam {
  std::string name;
  double initial = 0, min = 0, max = 1;
  bool whole = false;
  std::string help = {};
};

struct ScorerColumn {
  std::string name;
  float initial = 0;
};

struct ScorerOptions {
  std::string summary = {};
  std::string paper = {};
  uint32_t needs = PITH_NEED_KEYS | PITH_NEED_VALUES;
  int window = 0;
  bool aggregates = false;
  int num_sinks = 0;
  int repeat_chunk = 0;
  std::vector<ScorerParam> params = {};
  std::vector<ScorerColumn> columns = {};
};

namespace internal {

inline std::vector<pith_param> ParamsOf(const std::vector<ScorerParam>& own) {
  std::vector<pith_param> params;
  for (const ScorerParam& p : own) {
    params.push_back({sizeof(pith_param), p.name.c_str(), p.help.c_str(), p.initial, p.min, p.max, p.whole});
  }
  return params;
}

}  // namespace internal

// From now on score=NAME works in every recipe. The scorer lives as long as the process. kInvalidArgument: the name is
// taken, or the options make no sense.
inline Status RegisterScorer(const std::string& name, std::shared_ptr<const Scorer> scorer,
                             const ScorerOptions& options = {}) {
  if (scorer == nullptr) return InvalidArgument("there is no scorer");
  const std::vector<pith_param> params = internal::ParamsOf(options.params);
  std::vector<pith_column> columns;
  for (const ScorerColumn& c : options.columns) columns.push_back({sizeof(pith_column), c.name.c_str(), c.initial});
  auto own = PITH_INIT(pith_scorer_options);
  own.summary = options.summary.c_str();
  own.paper = options.paper.c_str();
  own.needs = options.needs;
  own.window = options.window;
  own.aggregates = options.aggregates;
  own.num_sinks = options.num_sinks;
  own.repeat_chunk = options.repeat_chunk;
  own.params = params.data();
  own.num_params = params.size();
  own.columns = columns.data();
  own.num_columns = columns.size();
  if ((options.needs & (PITH_NEED_EVERY_QUERY | PITH_NEED_REPEAT)) != 0) {
    own.observe = [](void* user, const pith_observation* seen, float* const* of) noexcept {
      (*static_cast<std::shared_ptr<const Scorer>*>(user))->Observe(*seen, of);
    };
  }
  const pith_score_fn score = [](void* user, const pith_layer_input* layer, float* const* scores) noexcept {
    return (*static_cast<std::shared_ptr<const Scorer>*>(user))->Score(*layer, scores);
  };
  auto kept = std::make_unique<std::shared_ptr<const Scorer>>(std::move(scorer));
  PITH_RETURN_IF_ERROR(internal::ToStatus(pith_register_scorer(name.c_str(), score, kept.get(), &own)));
  (void)kept.release();  // recipes hold it from now on
  return {};
}

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_SCORER_HPP_
