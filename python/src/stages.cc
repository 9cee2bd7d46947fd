// Aggregators, modifiers and allocators written in Python.
#include <limits>

#include "model.h"
#include "policy.h"

namespace pith_python {
namespace {

bool Aggregate(void* user, const pith_window_rows* rows, float* numbers) {
  const auto& stage = *static_cast<const PythonStage*>(user);
  return Called(stage, [&](const Owner& owner) {
    const auto group = static_cast<size_t>(rows->group), count = static_cast<size_t>(rows->num_rows),
               n = static_cast<size_t>(rows->num_entries);
    const nb::object view =
        owner.Strided(rows->probabilities, {group, count, n},
                      {static_cast<int64_t>(rows->group_stride), static_cast<int64_t>(rows->row_stride), 1});
    TakeScores(stage.function(view, ParamsOf(stage, rows->params)), n, 0, numbers);
  });
}

bool Modify(void* user, const pith_layer_input* layer, float* const* scores) {
  const auto& stage = *static_cast<const PythonStage*>(user);
  return Called(stage, [&](const Owner& owner) {
    const HeadViews views(stage, *layer, owner);
    for (int h = 0; h < layer->num_heads; ++h) {
      const auto n = static_cast<size_t>(layer->heads[h]->num_entries);
      TakeScores(stage.function(views.all()[h], owner.View<float>(scores[h], {n})), n, h, scores[h]);
    }
  });
}

nb::dict DivisionOf(const PythonStage& stage, const pith_division& division, const Owner& owner) {
  nb::list layers;
  for (int i = 0; i < division.num_layers; ++i) {
    const pith_scored_layer& layer = *division.layers[i];
    nb::list scores, pinned;
    for (int h = 0; h < layer.num_heads; ++h) {
      const auto n = static_cast<size_t>(layer.num_entries[h]);
      scores.append(owner.View(layer.scores[h], {n}));
      pinned.append(owner.View(layer.pinned == nullptr ? nullptr : layer.pinned[h], {n}));
    }
    nb::dict one;
    one["layer"] = layer.layer;
    one["window"] = layer.window;
    one["scores"] = scores;
    one["pinned"] = pinned;
    layers.append(one);
  }
  nb::dict out;
  out["layers"] = layers;
  out["keep"] = division.keep;
  out["total"] = division.total;
  out["keep_fraction"] = division.keep_fraction;
  out["params"] = ParamsOf(stage, division.params);
  return out;
}

bool Allocate(void* user, const pith_division* division, int32_t* const* keep) {
  const auto& stage = *static_cast<const PythonStage*>(user);
  return Called(stage, [&](const Owner& owner) {
    // [layers][heads] whole numbers.
    const auto all = nb::cast<std::vector<std::vector<int64_t>>>(stage.function(DivisionOf(stage, *division, owner)));
    if (all.size() != static_cast<size_t>(division->num_layers)) {
      Refuse("it must return numbers for each of " + std::to_string(division->num_layers) + " layers");
    }
    for (size_t i = 0; i < all.size(); ++i) {
      const auto heads = static_cast<size_t>(division->layers[i]->num_heads);
      if (all[i].size() != heads)
        Refuse("a layer has " + std::to_string(heads) + " heads, for each of which a number is due");
      for (size_t h = 0; h < heads; ++h) {
        if (all[i][h] < 0) Refuse("a head cannot keep " + std::to_string(all[i][h]) + " entries");
        keep[i][h] = static_cast<int32_t>(std::min<int64_t>(all[i][h], std::numeric_limits<int32_t>::max()));
      }
    }
  });
}

// What options of all three begin with.
struct Common {
  std::unique_ptr<PythonStage> stage = std::make_unique<PythonStage>();
  ParamTuples param_tuples;
  std::vector<pith_param> params;
  std::string summary, paper;

  Common(const char* kind, const std::string& name, const nb::object& function, const nb::object& view_of,
         const nb::dict& given)
      : param_tuples(nb::cast<ParamTuples>(given["params"])),
        params(ParamsFrom(param_tuples, *stage)),
        summary(nb::cast<std::string>(given["summary"])),
        paper(nb::cast<std::string>(given["paper"])) {
    CheckMayCall();
    stage->word = std::string(kind) + "=" + name;
    stage->function = function;
    stage->view_of = view_of;
  }
  template <typename Options>
  Options Fill() const {
    auto own = Sized<Options>();
    own.summary = summary.c_str();
    own.paper = paper.c_str();
    own.params = params.data();
    own.num_params = params.size();
    return own;
  }
};

}  // namespace

void AddStages(nb::module_& module) {
  module.def(
      "register_aggregator",
      [](const std::string& name, const nb::object& function, const nb::dict& given) {
        Common common("agg", name, function, nb::none(), given);
        const auto own = common.Fill<pith_aggregator_options>();
        Check(pith_register_aggregator(name.c_str(), Aggregate, common.stage.get(), &own));
        (void)common.stage.release();
      },
      nb::arg("name"), nb::arg("function"), nb::arg("options"));
  module.def(
      "register_modifier",
      [](const std::string& name, const nb::object& view_of, const nb::object& function, const nb::dict& given) {
        Common common("mod", name, function, view_of, given);
        auto own = common.Fill<pith_modifier_options>();
        own.needs = nb::cast<uint32_t>(given["needs"]);
        own.window = nb::cast<int>(given["window"]);
        Check(pith_register_modifier(name.c_str(), Modify, common.stage.get(), &own));
        (void)common.stage.release();
      },
      nb::arg("name"), nb::arg("view_of"), nb::arg("function"), nb::arg("options"));
  module.def(
      "register_allocator",
      [](const std::string& name, const nb::object& function, const nb::dict& given) {
        Common common("alloc", name, function, nb::none(), given);
        auto own = common.Fill<pith_allocator_options>();
        own.across_layers = nb::cast<bool>(given["across_layers"]);
        Check(pith_register_allocator(name.c_str(), Allocate, common.stage.get(), &own));
        (void)common.stage.release();
      },
      nb::arg("name"), nb::arg("function"), nb::arg("options"));
}

}  // namespace pith_python
