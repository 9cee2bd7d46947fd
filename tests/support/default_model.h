// The default model, loaded once for the tests of one executable.
#ifndef PITH_TESTS_SUPPORT_DEFAULT_MODEL_H_
#define PITH_TESTS_SUPPORT_DEFAULT_MODEL_H_

#include <cstdlib>
#include <memory>

#include <gtest/gtest.h>

#include "base/paths.h"
#include "host/model.h"

namespace pith::testing {

// One where a small model takes its place (cmake/PithSuites.cmake): then two suites run side by side.
inline const int kThreads = [] {
  const char* given = std::getenv("PITH_TEST_THREADS");
  return given != nullptr ? std::atoi(given) : 2;
}();

// Null, and a failure of the running test, where it is missing.
inline std::shared_ptr<HostModel> DefaultModel() {
  static const std::shared_ptr<HostModel> model = [] {
    HostModelOptions options;
    options.num_threads = kThreads;
    auto loaded = HostModel::Load(DefaultModelPath(), options);
    if (!loaded) ADD_FAILURE() << loaded.error().message << " (scripts/fetch_model.sh fetches it)";
    return loaded ? *loaded : nullptr;
  }();
  return model;
}

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_DEFAULT_MODEL_H_
