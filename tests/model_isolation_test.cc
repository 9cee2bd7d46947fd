// A sequence that fails within a step concerns nobody else, in any layer; slow_mixed_test.cc has a real model.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "host/model.h"
#include "tests/support/isolation.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

// All of their layers see everything.
TEST(ModelIsolation, EightKindsFailInEachLayer) {
  for (const std::string architecture : {"llama", "gemma"}) {
    SCOPED_TRACE(architecture);
    const std::string path = ::testing::TempDir() + fmt::format("pith_isolation_{}_{}.gguf", architecture, getpid());
    const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path, 3);
    ASSERT_TRUE(made) << made.error().message;
    const auto model = HostModel::Load(path, HostModelOptions{});
    ASSERT_TRUE(model) << model.error().message;
    std::vector<int32_t> text;
    for (int i = 0; i < 300; ++i) text.push_back(static_cast<int32_t>((i * 37 + i * i / 5 * 11) % 97 + 3));
    std::vector<int> layers((*model)->info().layers.size());
    std::iota(layers.begin(), layers.end(), 0);
    Isolation(*model, size_t{16} << 20, 1, text).Check(layers);
    Isolation(*model, size_t{16} << 20, 2, text, kCountingKinds).Check(layers);
    std::filesystem::remove(path);
  }
}

}  // namespace
}  // namespace pith::testing
