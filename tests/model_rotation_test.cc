// What positions do to queries is read off the graph: the same token's queries in the first layer, turned back, are
// the same wherever it stood.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/context.h"
#include "host/model.h"
#include "tests/support/default_model.h"
#include "tests/support/random_model.h"

namespace pith {
namespace {

// The queries of the first attention node, [T, H, D]; attention itself gives zeros.
class FirstQueries final : public AttentionSink {
 public:
  explicit FirstQueries(const ModelInfo& info) : info_(info) {}

  void OnAttention(const AttentionCall& call, const Team& team) override {
    if (team.ith != 0) return;
    const LayerShape& shape = info_.layers[static_cast<size_t>(call.cache_layer)];
    const bool first = queries.empty();
    if (first) layer = call.cache_layer;
    for (int t = 0; t < call.num_tokens; ++t) {
      for (int h = 0; h < shape.num_heads; ++h) {
        const float* query = call.queries + static_cast<size_t>(t) * call.query_token_stride +
                             static_cast<size_t>(h) * call.query_head_stride;
        if (first) queries.insert(queries.end(), query, query + shape.key_dim);
        std::memset(call.output + static_cast<size_t>(t) * call.output_token_stride +
                        static_cast<size_t>(h) * call.output_head_stride,
                    0, sizeof(float) * static_cast<size_t>(shape.value_dim));
      }
    }
  }

  int layer = -1;
  std::vector<float> queries;

 private:
  const ModelInfo& info_;
};

// Largest difference to the first row's queries, over their largest number.
double Spread(const std::vector<float>& rows, size_t row_floats) {
  double most = 0, difference = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(rows[i])));
    difference =
        std::max(difference, std::abs(static_cast<double>(rows[i]) - static_cast<double>(rows[i % row_floats])));
  }
  return difference / most;
}

struct Spreads {
  double turned = 0, turned_back = 0;
};

Spreads SpreadsOf(const HostModel& model) {
  const ModelInfo& info = model.info();
  FirstQueries sink(info);
  auto context = HostContext::Create(model, 32, 1, 1, &sink);
  EXPECT_TRUE(context) << context.error().message;
  const std::vector<int32_t> tokens(24, 7), slots(24, 0);
  std::vector<int32_t> positions;
  for (int i = 0; i < 24; ++i) positions.push_back(i);
  const std::vector<uint8_t> wanted(24, 1);
  EXPECT_TRUE((*context)->Decode({tokens, positions, slots, wanted}));
  const LayerShape& shape = info.layers[static_cast<size_t>(sink.layer)];
  const auto dim = static_cast<size_t>(shape.key_dim), row = static_cast<size_t>(shape.num_heads) * dim;
  Spreads spreads{.turned = Spread(sink.queries, row), .turned_back = 0};
  std::vector<float> factors(2 * shape.rotation->pairs.size());
  for (size_t t = 0; t < tokens.size(); ++t) {
    shape.rotation->Unturn(positions[t], factors);
    for (size_t h = 0; h < static_cast<size_t>(shape.num_heads); ++h)
      shape.rotation->Apply(factors, &sink.queries[t * row + h * dim]);
  }
  spreads.turned_back = Spread(sink.queries, row);
  return spreads;
}

TEST(ModelRotation, TheDefaultModelsQueriesTurnBack) {
  const auto model = testing::DefaultModel();
  ASSERT_NE(model, nullptr);
  for (const LayerShape& layer : model->info().layers) {
    ASSERT_TRUE(layer.rotation);
    ASSERT_EQ(layer.rotation->pairs.size(), static_cast<size_t>(layer.key_dim) / 2);
    EXPECT_EQ(layer.rotation->pairs[0].angle, 1);
  }
  const Spreads spreads = SpreadsOf(*model);
  EXPECT_LT(spreads.turned_back, 1e-5);
  EXPECT_GT(spreads.turned, 0.1) << "the control";
}

class ModelRotation : public ::testing::TestWithParam<const char*> {
 protected:
  std::shared_ptr<HostModel> Load() {
    const std::string path = ::testing::TempDir() + fmt::format("pith_rotation_{}_{}.gguf", GetParam(), getpid());
    const Status made = testing::MakeRandomModel(GetParam(), testing::NeedsExperts(GetParam()), path, 5);
    EXPECT_TRUE(made) << made.error().message;
    auto loaded = HostModel::Load(path, HostModelOptions{});
    EXPECT_TRUE(loaded) << loaded.error().message;
    std::filesystem::remove(path);
    return loaded ? *loaded : nullptr;
  }
};

using ModelTurns = ModelRotation;
TEST_P(ModelTurns, QueriesTurnBack) {
  const auto model = Load();
  ASSERT_NE(model, nullptr);
  const Spreads spreads = SpreadsOf(*model);
  EXPECT_LT(spreads.turned_back, 1e-5);
  EXPECT_GT(spreads.turned, 0.1) << "the control";
}
INSTANTIATE_TEST_SUITE_P(Every, ModelTurns,
                         ::testing::Values("llama",     // neighbours are pairs
                                           "qwen3",     // halves are, behind a norm
                                           "gptneox",   // a part of the channels
                                           "gemma2",    // scaled after it
                                           "phi3",      // factors for each pair
                                           "qwen2vl"),  // four positions of a token
                         [](const auto& test) { return std::string(test.param); });

using ModelStands = ModelRotation;
TEST_P(ModelStands, NothingTurns) {
  const auto model = Load();
  ASSERT_NE(model, nullptr);
  for (const LayerShape& layer : model->info().layers) {
    ASSERT_TRUE(layer.rotation);
    EXPECT_TRUE(layer.rotation->pairs.empty());
  }
}
INSTANTIATE_TEST_SUITE_P(Every, ModelStands, ::testing::Values("gpt2", "bloom"),
                         [](const auto& test) { return std::string(test.param); });

using ModelHides = ModelRotation;
TEST_P(ModelHides, RecipesThatForeseeQueriesAreRefused) {
  const auto model = Load();
  ASSERT_NE(model, nullptr);
  EngineOptions options;
  options.num_ctx = 100;
  options.recipe = *ParseRecipe("snapkv");
  EXPECT_TRUE(Engine::Create(model, options));
  options.recipe = *ParseRecipe("expectedattention");
  const auto refused = Engine::Create(model, options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            fmt::format("expectedattention foresees queries by undoing their rotation (RoPE), which {} models "
                        "apply in a form that cannot be undone",
                        GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Every, ModelHides, ::testing::Values("deepseek2"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace pith
