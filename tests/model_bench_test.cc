// Caches that pith bench fills with made-up entries are caches like any other.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/default_model.h"

namespace pith {
namespace {

using testing::kThreads;
constexpr int32_t kToken = 300;

std::shared_ptr<HostModel> Model() { return testing::DefaultModel(); }

double Distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

std::vector<float> PlainLogits(PlainOptions options, int filled) {
  options.num_ctx = 3000;
  options.block_tokens = 64;
  options.num_threads = kThreads;
  options.for_benchmark = true;
  auto plain = PlainContext::Create(*Model(), options);
  EXPECT_TRUE(plain) << plain.error().message;
  for (int i = 0; i < options.max_sequences && filled > 0; ++i) {
    const Status status = (*plain)->FillForBenchmark(i, filled);
    EXPECT_TRUE(status) << status.error().message;
  }
  const std::vector<int32_t> tokens(static_cast<size_t>(options.max_sequences), kToken);
  EXPECT_TRUE((*plain)->DecodeBatch(tokens));
  const auto logits = (*plain)->logits();
  return {logits.begin(), logits.end()};
}

// Made-up keys blow libllama's own rounding up, so that layouts cannot be compared with one another: that a cache which
// was not seen would leave the logits of an empty one must do.
TEST(ModelBench, LibllamaSeesItsSyntheticCacheInEveryLayout) {
  const std::vector<float> empty = PlainLogits({.flash_attention = true}, 0);
  EXPECT_LT(Distance(empty, PlainLogits({.flash_attention = false}, 0)), 0.1);
  for (const PlainOptions& options :
       {PlainOptions{.flash_attention = true}, PlainOptions{.flash_attention = false},
        PlainOptions{.flash_attention = true, .cache_type = "q8_0"},
        PlainOptions{.max_sequences = 3, .flash_attention = true, .separate_streams = true},
        PlainOptions{.max_sequences = 3, .flash_attention = false, .separate_streams = true}}) {
    SCOPED_TRACE(options.cache_type + " " + std::to_string(options.max_sequences) + " " +
                 std::to_string(options.flash_attention));
    const std::vector<float> filled = PlainLogits(options, 2500);
    EXPECT_GT(Distance(filled, empty), 0.3);
    for (const float logit : filled) ASSERT_TRUE(std::isfinite(logit));
  }
}

TEST(ModelBench, TheEngineSeesItsSyntheticCache) {
  for (const char* recipe : {"full", "snapkv", "full format=q4", "snapkv format=q4/q2"}) {
    SCOPED_TRACE(recipe);
    EngineOptions options;
    options.num_ctx = 1400;
    options.num_threads = kThreads;
    options.recipe = *ParseRecipe(recipe);
    const bool evicts = !options.recipe.policy->keeps_everything();
    if (evicts) options.keep_entries = 300;
    auto engine = Engine::Create(Model(), options);
    ASSERT_TRUE(engine) << engine.error().message;
    const SequenceId id = *(*engine)->NewSequence();
    EXPECT_FALSE((*engine)->FillForBenchmark(id, 2000));
    ASSERT_TRUE((*engine)->FillForBenchmark(id, 1200));
    EXPECT_EQ((*engine)->num_tokens(id), 1200);
    const KvStats filled = (*engine)->stats();
    if (evicts) {
      EXPECT_GE(filled.entries, 300 * 90);
      EXPECT_LT(filled.entries, 400 * 90);
    } else {
      EXPECT_EQ(filled.entries, 1200 * 90);
    }
    for (int i = 0; i < 100; ++i) ASSERT_TRUE((*engine)->Decode(id, kToken));
    if (evicts) {
      EXPECT_LE((*engine)->stats().entries, 400 * 90);
    }
    for (const float logit : (*engine)->logits(id)) ASSERT_TRUE(std::isfinite(logit));
  }
}

}  // namespace
}  // namespace pith
