// Scorers written in Python: engine threads call them, with the GIL, for one kv head or one layer at a time.
//
// What a scorer sees are read-only arrays over the engine's memory, which end with its call. All arrays of a call rest
// on one owner, so that after the call its count of references tells whether one was kept: that is an error, as it
// would point to memory that changes.

#include <cmath>

#include "common.h"
#include "model.h"

namespace pith_python {
namespace {

// Lives as long as the process, as the library wants it.
struct PythonScorer {
  std::string name;
  nb::object view_of;  // (dictionary of arrays) -> what the function is given
  nb::object score;
  nb::object observe;  // or None
  std::vector<std::string> params;
  std::vector<std::string> columns;
  bool per_layer = false;
};

// What the arrays of one call rest on.
class Owner {
 public:
  Owner() : capsule_(nb::capsule(this, [](void*) noexcept {})) {}
  template <typename T>
  nb::object View(const T* data, std::initializer_list<size_t> shape) const {
    if (data == nullptr) return nb::none();
    return nb::cast(nb::ndarray<nb::numpy, const T>(data, shape.size(), shape.begin(), capsule_));
  }
  template <typename T>
  nb::object Writable(T* data, size_t count) const {
    return nb::cast(nb::ndarray<nb::numpy, T>(data, {count}, capsule_));
  }
  bool is_held() const { return Py_REFCNT(capsule_.ptr()) > 1; }

 private:
  nb::capsule capsule_;
};

nb::dict ParamsOf(const PythonScorer& scorer, const double* params) {
  nb::dict out;
  for (size_t i = 0; i < scorer.params.size(); ++i) out[scorer.params[i].c_str()] = params[i];
  return out;
}

nb::dict HeadOf(const PythonScorer& scorer, const pith_layer_input& layer, int h, const Owner& owner) {
  const pith_head_input& head = *layer.heads[h];
  const auto n = static_cast<size_t>(head.num_entries), key_dim = static_cast<size_t>(layer.key_dim),
             value_dim = static_cast<size_t>(layer.value_dim), group = static_cast<size_t>(layer.group),
             window = static_cast<size_t>(layer.window);
  nb::dict out;
  out["head"] = h;
  out["num_entries"] = n;
  out["positions"] = owner.View(head.positions, {n});
  out["pinned"] = owner.View(head.pinned, {n});
  out["keys"] = owner.View(head.keys, {n, key_dim});
  out["values"] = owner.View(head.values, {n, value_dim});
  out["window_probs"] = owner.View(head.window_probs, {group, window, n});
  out["window_queries"] = owner.View(head.window_queries, {group, window, key_dim});
  out["value_norms"] = owner.View(head.value_norms, {n});
  out["query_means"] = owner.View(head.query_means, {group, key_dim});
  out["query_covariances"] = owner.View(head.query_covariances, {group, key_dim * (key_dim + 1) / 2});
  nb::dict columns;
  for (size_t i = 0; head.columns != nullptr && i < scorer.columns.size(); ++i) {
    columns[scorer.columns[i].c_str()] = owner.View(head.columns[i], {n});
  }
  out["columns"] = columns;
  return out;
}

nb::dict LayerOf(const PythonScorer& scorer, const pith_layer_input& layer) {
  nb::dict out;
  out["layer"] = layer.layer;
  out["num_layers"] = layer.num_layers;
  out["num_heads"] = layer.num_heads;
  out["group"] = layer.group;
  out["key_dim"] = layer.key_dim;
  out["value_dim"] = layer.value_dim;
  out["window"] = layer.window;
  out["next_position"] = layer.next_position;
  out["seed"] = layer.seed;
  out["attention_scale"] = layer.attention_scale;
  nb::list rotation;
  for (size_t i = 0; layer.rotation != nullptr && i < layer.num_rotated; ++i) {
    const pith_rotated_pair& pair = layer.rotation[i];
    rotation.append(nb::make_tuple(pair.real, pair.imaginary, pair.angle, pair.magnitude));
  }
  out["rotation"] = rotation;
  out["params"] = ParamsOf(scorer, layer.params);
  return out;
}

[[noreturn]] void Refuse(const std::string& what) {
  PyErr_SetString(PyExc_ValueError, what.c_str());
  throw nb::python_error();
}

// Scores of one head as float32: checked for shape and for numbers, then copied.
void TakeScores(const nb::handle returned, size_t count, int head, float* scores) {
  nb::object array = nb::module_::import_("numpy").attr("asarray")(nb::borrow(returned), "float32");
  const auto shape = nb::cast<nb::tuple>(array.attr("shape"));
  if (nb::len(shape) != 1 || nb::cast<size_t>(shape[0]) != count) {
    Refuse("of head " + std::to_string(head) + " the shape must be (" + std::to_string(count) + ",), and is " +
           nb::cast<std::string>(nb::str(shape)));
  }
  const auto view = nb::cast<nb::ndarray<const float, nb::ndim<1>, nb::device::cpu>>(array);
  const int64_t stride = view.stride(0);
  for (size_t i = 0; i < count; ++i) {
    const float score = view.data()[static_cast<int64_t>(i) * stride];
    if (std::isnan(score) || score == -HUGE_VALF) {
      Refuse("entry " + std::to_string(i) + " of head " + std::to_string(head) + " got " +
             (std::isnan(score) ? "NaN" : "-inf") + ", which is no number to compare");
    }
    scores[i] = score;
  }
}

// Adds attention(head, pool) to what a scorer sees.
nb::object AttentionOf(const pith_layer_input& layer, const std::shared_ptr<bool>& alive) {
  return nb::cpp_function([&layer, alive](int head, int pool) {
    if (!*alive) throw Failure(PITH_ERROR_INVALID_ARGUMENT, "the call of the scorer is over");
    if (head < 0 || head >= layer.num_heads) throw Failure(PITH_ERROR_INVALID_ARGUMENT, "there is no such head");
    const auto count = static_cast<size_t>(layer.heads[head]->num_entries);
    auto* scores = new std::vector<float>(count);
    const nb::capsule owner(scores, [](void* own) noexcept { delete static_cast<std::vector<float>*>(own); });
    if (pith_window_attention(&layer, head, pool, scores->data()) == 0) {
      throw Failure(PITH_ERROR_INVALID_ARGUMENT, "attention() goes with needs=\"window_probs\" and aggregates=True");
    }
    return nb::ndarray<nb::numpy, float>(scores->data(), {count}, owner);
  });
}

void ScoreHeads(const PythonScorer& scorer, const pith_layer_input& layer, float* const* scores, const Owner& owner) {
  const auto alive = std::make_shared<bool>(true);
  nb::dict of_layer = LayerOf(scorer, layer);
  of_layer["attention"] = AttentionOf(layer, alive);
  nb::list views;
  const auto end = [&] {
    *alive = false;
    for (const nb::handle view : views) view.attr("_end")();
  };
  try {
    nb::list heads;
    for (int h = 0; h < layer.num_heads; ++h) {
      nb::dict one = HeadOf(scorer, layer, h, owner);
      const nb::object view = scorer.view_of(of_layer, one);
      views.append(view);
      if (!scorer.per_layer) {
        TakeScores(scorer.score(view), static_cast<size_t>(layer.heads[h]->num_entries), h, scores[h]);
      }
    }
    if (scorer.per_layer) {
      const nb::object all = scorer.score(views);
      if (nb::len(all) != static_cast<size_t>(layer.num_heads)) {
        Refuse("it must return an array for each of " + std::to_string(layer.num_heads) + " heads");
      }
      for (int h = 0; h < layer.num_heads; ++h) {
        TakeScores(all[h], static_cast<size_t>(layer.heads[h]->num_entries), h, scores[h]);
      }
    }
  } catch (...) {
    end();
    throw;
  }
  end();
}

// After a call: false if an array of it lives on.
void CheckNothingKept(const Owner& owner) {
  if (!owner.is_held()) return;
  nb::module_::import_("gc").attr("collect")();
  if (owner.is_held()) Refuse("it kept an array of its input, which ends with the call: keep a copy");
}

bool Score(void* user, const pith_layer_input* layer, float* const* scores) {
  const auto& scorer = *static_cast<const PythonScorer*>(user);
  const nb::gil_scoped_acquire acquired;
  const InCallback marked;
  try {
    if (HasScorerException(scorer.name)) return false;  // observe() failed, which the library cannot be told there
    const Owner owner;
    ScoreHeads(scorer, *layer, scores, owner);
    CheckNothingKept(owner);
    return true;
  } catch (nb::python_error& error) {
    KeepScorerException(scorer.name, std::move(error));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    KeepScorerException(scorer.name, nb::python_error());
  }
  return false;
}

void Observe(void* user, const pith_observation* seen, float* const* columns) {
  const auto& scorer = *static_cast<const PythonScorer*>(user);
  const nb::gil_scoped_acquire acquired;
  const InCallback marked;
  try {
    const Owner owner;
    {
      const auto n = static_cast<size_t>(seen->num_entries);
      nb::dict input;
      input["layer"] = seen->layer;
      input["head"] = seen->kv_head;
      input["num_queries"] = seen->num_queries;
      input["positions"] = owner.View(seen->positions, {n});
      input["sum"] = owner.View(seen->sum, {n});
      input["squares"] = owner.View(seen->squares, {n});
      input["largest"] = owner.View(seen->largest, {n});
      input["params"] = ParamsOf(scorer, seen->params);
      nb::dict writable;
      for (size_t i = 0; i < scorer.columns.size(); ++i) {
        writable[scorer.columns[i].c_str()] = owner.Writable(columns[i], n);
      }
      scorer.observe(input, writable);
    }
    CheckNothingKept(owner);
  } catch (nb::python_error& error) {
    KeepScorerException(scorer.name, std::move(error));
  }
}

struct ScorerTexts {
  std::vector<std::string> texts;
  std::vector<pith_param> params;
  std::vector<pith_column> columns;
};

void Register(const std::string& name, const nb::object& view_of, const nb::object& score, const nb::object& observe,
              const nb::dict& given) {
  CheckMayCall();
  auto scorer = std::make_unique<PythonScorer>();
  scorer->name = name;
  scorer->view_of = view_of;
  scorer->score = score;
  scorer->observe = observe;
  scorer->per_layer = nb::cast<bool>(given["per_layer"]);
  // (name, initial, min, max, whole, help)
  const auto params =
      nb::cast<std::vector<std::tuple<std::string, double, double, double, bool, std::string>>>(given["params"]);
  const auto columns = nb::cast<std::vector<std::tuple<std::string, float>>>(given["columns"]);
  const auto summary = nb::cast<std::string>(given["summary"]), paper = nb::cast<std::string>(given["paper"]);
  std::vector<pith_param> own_params;
  for (const auto& [param, initial, min, max, whole, help] : params) {
    own_params.push_back({sizeof(pith_param), param.c_str(), help.c_str(), initial, min, max, whole});
    scorer->params.push_back(param);
  }
  std::vector<pith_column> own_columns;
  for (const auto& [column, initial] : columns) {
    own_columns.push_back({sizeof(pith_column), column.c_str(), initial});
    scorer->columns.push_back(column);
  }
  auto own = Sized<pith_scorer_options>();
  own.summary = summary.c_str();
  own.paper = paper.c_str();
  own.needs = nb::cast<uint32_t>(given["needs"]);
  own.window = nb::cast<int>(given["window"]);
  own.aggregates = nb::cast<bool>(given["aggregates"]);
  own.num_sinks = nb::cast<int>(given["num_sinks"]);
  own.repeat_chunk = nb::cast<int>(given["repeat_chunk"]);
  own.params = own_params.data();
  own.num_params = own_params.size();
  own.columns = own_columns.data();
  own.num_columns = own_columns.size();
  own.observe = observe.is_none() ? nullptr : Observe;
  Check(pith_register_scorer(name.c_str(), Score, scorer.get(), &own));
  (void)scorer.release();
}

}  // namespace

void AddScorers(nb::module_& module) {
  module.def("register_scorer", Register, nb::arg("name"), nb::arg("view_of"), nb::arg("score"),
             nb::arg("observe").none(), nb::arg("options"));
}

}  // namespace pith_python
