// What stages written in Python share: how they see a layer, and how what they return is taken.
#ifndef PITH_PYTHON_POLICY_H_
#define PITH_PYTHON_POLICY_H_

#include "common.h"

namespace pith_python {

// A function of Python's as a stage. Lives as long as the process, as the library wants it.
struct PythonStage {
  std::string word;    // "score=mine"
  nb::object view_of;  // (dictionary of a layer, dictionary of a head) -> what the function is given
  nb::object function;
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
  // Rows apart by other strides, in elements.
  nb::object Strided(const float* data, std::initializer_list<size_t> shape,
                     std::initializer_list<int64_t> strides) const {
    return nb::cast(nb::ndarray<nb::numpy, const float>(data, shape.size(), shape.begin(), capsule_, strides.begin()));
  }
  template <typename T>
  nb::object Writable(T* data, size_t count) const {
    return nb::cast(nb::ndarray<nb::numpy, T>(data, {count}, capsule_));
  }
  // Raises ValueError if an array of it lives on.
  void CheckNothingKept() const;

 private:
  nb::capsule capsule_;
};

nb::dict ParamsOf(const PythonStage& stage, const double* params);
nb::dict HeadOf(const PythonStage& stage, const pith_layer_input& layer, int h, const Owner& owner);
nb::dict LayerOf(const PythonStage& stage, const pith_layer_input& layer);

// Views of the layer's heads, until the end of their life.
class HeadViews {
 public:
  HeadViews(const PythonStage& stage, const pith_layer_input& layer, const Owner& owner);
  ~HeadViews();
  HeadViews(const HeadViews&) = delete;
  HeadViews& operator=(const HeadViews&) = delete;
  const nb::list& all() const { return views_; }

 private:
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  nb::list views_;
};

// Raises ValueError in Python.
[[noreturn]] void Refuse(const std::string& what);

// Numbers of one head as float32: checked for shape and for what cannot be compared, then copied.
void TakeScores(nb::handle returned, size_t count, int head, float* scores);

// Calls body() with the GIL, as a callback. What it raises is kept for the call that it ends, and gives false.
template <typename Body>
bool Called(const PythonStage& stage, const Body& body) noexcept {
  const nb::gil_scoped_acquire acquired;
  const InCallback marked;
  try {
    if (HasStageException(stage.word)) return false;  // of observe(), which the library cannot be told there
    const Owner owner;
    body(owner);
    owner.CheckNothingKept();
    return true;
  } catch (nb::python_error& error) {
    KeepStageException(stage.word, std::move(error));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    KeepStageException(stage.word, nb::python_error());
  }
  return false;
}

// (name, initial, min, max, whole, help) of each, as C takes them. The texts live in `given`.
using ParamTuples = std::vector<std::tuple<std::string, double, double, double, bool, std::string>>;
std::vector<pith_param> ParamsFrom(const ParamTuples& given, PythonStage& stage);

}  // namespace pith_python

#endif  // PITH_PYTHON_POLICY_H_
