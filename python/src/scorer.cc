// Scorers written in Python: engine threads call them, with the GIL, for one kv head or one layer at a time.
//
// What a stage sees are read-only arrays over the engine's memory, which end with its call. All arrays of a call rest
// on one owner, so that after the call its count of references tells whether one was kept: that is an error, as it
// would point to memory that changes.
#include "model.h"
#include "policy.h"

namespace pith_python {
namespace {

void ScoreHeads(const PythonStage& stage, const pith_layer_input& layer, float* const* scores, const Owner& owner) {
  const HeadViews views(stage, layer, owner);
  const auto take = [&](const nb::handle returned, int h) {
    TakeScores(returned, static_cast<size_t>(layer.heads[h]->num_entries), h, scores[h]);
  };
  if (!stage.per_layer) {
    for (int h = 0; h < layer.num_heads; ++h) take(stage.function(views.all()[h]), h);
    return;
  }
  const nb::object all = stage.function(views.all());
  if (nb::len(all) != static_cast<size_t>(layer.num_heads)) {
    Refuse("it must return an array for each of " + std::to_string(layer.num_heads) + " heads");
  }
  for (int h = 0; h < layer.num_heads; ++h) take(all[h], h);
}

bool Score(void* user, const pith_layer_input* layer, float* const* scores) {
  const auto& stage = *static_cast<const PythonStage*>(user);
  return Called(stage, [&](const Owner& owner) { ScoreHeads(stage, *layer, scores, owner); });
}

void Observe(void* user, const pith_observation* seen, float* const* columns) {
  const auto& stage = *static_cast<const PythonStage*>(user);
  (void)Called(stage, [&](const Owner& owner) {
    const auto n = static_cast<size_t>(seen->num_entries);
    nb::dict input;
    input["layer"] = seen->layer;
    input["head"] = seen->kv_head;
    input["num_queries"] = seen->num_queries;
    input["positions"] = owner.View(seen->positions, {n});
    input["sum"] = owner.View(seen->sum, {n});
    input["squares"] = owner.View(seen->squares, {n});
    input["largest"] = owner.View(seen->largest, {n});
    input["params"] = ParamsOf(stage, seen->params);
    nb::dict writable;
    for (size_t i = 0; i < stage.columns.size(); ++i) {
      writable[stage.columns[i].c_str()] = owner.Writable(columns[i], n);
    }
    stage.observe(input, writable);
  });
}

void Register(const std::string& name, const nb::object& view_of, const nb::object& score, const nb::object& observe,
              const nb::dict& given) {
  CheckMayCall();
  auto stage = std::make_unique<PythonStage>();
  stage->word = "score=" + name;
  stage->view_of = view_of;
  stage->function = score;
  stage->observe = observe;
  stage->per_layer = nb::cast<bool>(given["per_layer"]);
  const auto param_tuples = nb::cast<ParamTuples>(given["params"]);
  const std::vector<pith_param> params = ParamsFrom(param_tuples, *stage);
  const auto column_tuples = nb::cast<std::vector<std::tuple<std::string, float>>>(given["columns"]);
  const auto summary = nb::cast<std::string>(given["summary"]), paper = nb::cast<std::string>(given["paper"]);
  std::vector<pith_column> columns;
  for (const auto& [column, initial] : column_tuples) {
    columns.push_back({sizeof(pith_column), column.c_str(), initial});
    stage->columns.push_back(column);
  }
  auto own = Sized<pith_scorer_options>();
  own.summary = summary.c_str();
  own.paper = paper.c_str();
  own.needs = nb::cast<uint32_t>(given["needs"]);
  own.window = nb::cast<int>(given["window"]);
  own.aggregates = nb::cast<bool>(given["aggregates"]);
  own.num_sinks = nb::cast<int>(given["num_sinks"]);
  own.repeat_chunk = nb::cast<int>(given["repeat_chunk"]);
  own.params = params.data();
  own.num_params = params.size();
  own.columns = columns.data();
  own.num_columns = columns.size();
  own.observe = observe.is_none() ? nullptr : Observe;
  Check(pith_register_scorer(name.c_str(), Score, stage.get(), &own));
  (void)stage.release();
}

}  // namespace

void AddScorers(nb::module_& module) {
  module.def("register_scorer", Register, nb::arg("name"), nb::arg("view_of"), nb::arg("score"),
             nb::arg("observe").none(), nb::arg("options"));
}

}  // namespace pith_python
