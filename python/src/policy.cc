#include "policy.h"

#include <cmath>

namespace pith_python {
namespace {

// attention(head, pool) of what a scorer sees.
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

bool IsHeld(const nb::handle capsule) { return Py_REFCNT(capsule.ptr()) > 1; }

}  // namespace

void Owner::CheckNothingKept() const {
  if (!IsHeld(capsule_)) return;
  nb::module_::import_("gc").attr("collect")();
  if (IsHeld(capsule_)) Refuse("it kept an array of its input, which ends with the call: keep a copy");
}

nb::dict ParamsOf(const PythonStage& stage, const double* params) {
  nb::dict out;
  for (size_t i = 0; i < stage.params.size(); ++i) out[stage.params[i].c_str()] = params[i];
  return out;
}

nb::dict HeadOf(const PythonStage& stage, const pith_layer_input& layer, int h, const Owner& owner) {
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
  for (size_t i = 0; head.columns != nullptr && i < stage.columns.size(); ++i) {
    columns[stage.columns[i].c_str()] = owner.View(head.columns[i], {n});
  }
  out["columns"] = columns;
  return out;
}

nb::dict LayerOf(const PythonStage& stage, const pith_layer_input& layer) {
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
  out["params"] = ParamsOf(stage, layer.params);
  return out;
}

HeadViews::HeadViews(const PythonStage& stage, const pith_layer_input& layer, const Owner& owner) {
  nb::dict of_layer = LayerOf(stage, layer);
  of_layer["attention"] = AttentionOf(layer, alive_);
  for (int h = 0; h < layer.num_heads; ++h) views_.append(stage.view_of(of_layer, HeadOf(stage, layer, h, owner)));
}

HeadViews::~HeadViews() {
  *alive_ = false;
  for (const nb::handle view : views_) {
    // A method of ours, which clears names.
    PyObject* done = PyObject_CallMethod(view.ptr(), "_end", nullptr);
    if (done == nullptr) PyErr_WriteUnraisable(view.ptr());
    Py_XDECREF(done);
  }
}

[[noreturn]] void Refuse(const std::string& what) {
  PyErr_SetString(PyExc_ValueError, what.c_str());
  throw nb::python_error();
}

void TakeScores(nb::handle returned, size_t count, int head, float* scores) {
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

std::vector<pith_param> ParamsFrom(const ParamTuples& given, PythonStage& stage) {
  std::vector<pith_param> own;
  for (const auto& [name, initial, min, max, whole, help] : given) {
    own.push_back({sizeof(pith_param), name.c_str(), help.c_str(), initial, min, max, whole});
    stage.params.push_back(name);
  }
  return own;
}

}  // namespace pith_python
