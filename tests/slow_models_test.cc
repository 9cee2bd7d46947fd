// Small random models of nine kinds of attention: pith with the recipe `full` gives libllama's logits,
// whatever the blocks, and a reader that ignores the history does not.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/model_parity.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr int kThreads = 2;
constexpr int kTokens = 200;
constexpr uint32_t kSeed = 7;

class SlowModels : public ::testing::TestWithParam<const char*> {
 protected:
  static std::string PathOf(const std::string& architecture) {
    return ::testing::TempDir() + "pith_" + architecture + ".gguf";
  }

  void SetUp() override {
    const std::string architecture = GetParam();
    const std::string path = PathOf(architecture);
    const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path, kSeed);
    ASSERT_TRUE(made) << made.error().message;
    HostModelOptions options;
    options.num_threads = kThreads;
    auto loaded = HostModel::Load(path, options);
    ASSERT_TRUE(loaded) << loaded.error().message;
    model_ = *loaded;
  }
  void TearDown() override { std::filesystem::remove(PathOf(GetParam())); }

  void ExpectExact(const Reading& reading) const {
    const auto parity = CompareReaders(model_, reading, kThreads, kSeed);
    ASSERT_TRUE(parity) << parity.error().message;
    EXPECT_TRUE(parity->exact()) << parity->ToString();
    EXPECT_TRUE(parity->telling()) << parity->ToString();
  }

  std::shared_ptr<HostModel> model_;
};

TEST_P(SlowModels, OneBlock) { ExpectExact(OneBlock(kTokens)); }

TEST_P(SlowModels, UnevenBlocks) { ExpectExact(UnevenBlocks(kTokens, 65)); }

TEST_P(SlowModels, TokenByToken) { ExpectExact(TokenByToken(kTokens, 20)); }

TEST_P(SlowModels, TwoSequences) { ExpectExact(TwoSequences(kTokens, 60, model_->info().hybrid)); }

INSTANTIATE_TEST_SUITE_P(Architectures, SlowModels,
                         ::testing::Values("llama",      // global layers
                                           "gemma2",     // soft-caps, windows
                                           "gemma3",     // windows
                                           "gpt-oss",    // sinks, windows
                                           "bloom",      // ALiBi
                                           "deepseek2",  // MLA: values are part of the keys
                                           "llama4",     // chunks
                                           "lfm2",       // convolutions beside attention
                                           "qwen35",     // linear attention beside attention
                                           "qwen3next"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::erase(name, '-');
                           return name;
                         });

// Past the last learned position (gpt2) libllama aborts; past the original context (phi3) it would use
// other RoPE factors.
TEST(SlowModelsLong, PositionsEnd) {
  for (const std::string architecture : {"gpt2", "phi3"}) {
    const std::string path = ::testing::TempDir() + "pith_" + architecture + "_end.gguf";
    const Status made = MakeRandomModel(architecture, false, path, kSeed);
    ASSERT_TRUE(made) << made.error().message;
    auto model = HostModel::Load(path, HostModelOptions{});
    ASSERT_TRUE(model) << model.error().message;
    const int end = (*model)->info().max_positions;
    EXPECT_EQ(end, 512);
    EngineOptions options;
    options.num_threads = kThreads;
    options.num_ctx = end + 1;
    const auto beyond = Engine::Create(*model, options);
    ASSERT_FALSE(beyond);
    EXPECT_EQ(beyond.error().code, ErrorCode::kInvalidArgument) << beyond.error().message;
    options.num_ctx = end;
    auto engine = Engine::Create(*model, options);
    ASSERT_TRUE(engine) << engine.error().message;
    const auto sequence = (*engine)->NewSequence();
    ASSERT_TRUE(sequence);
    const std::vector<int32_t> tokens(static_cast<size_t>(end), 5);
    EXPECT_TRUE((*engine)->Prefill(*sequence, tokens));
    const Status past = (*engine)->Decode(*sequence, 5);
    ASSERT_FALSE(past);
    EXPECT_EQ(past.error().code, ErrorCode::kInvalidArgument) << past.error().message;
    std::filesystem::remove(path);
  }
}

// libllama fixes the chunks of this architecture at 8192 tokens, so that only a long text crosses one.
TEST(SlowModelsLong, Llama4CrossesChunks) {
  const std::string path = ::testing::TempDir() + "pith_llama4_long.gguf";
  const Status made = MakeRandomModel("llama4", true, path, kSeed);
  ASSERT_TRUE(made) << made.error().message;
  auto model = HostModel::Load(path, HostModelOptions{});
  ASSERT_TRUE(model) << model.error().message;
  Reading reading;
  for (int at = 0; at < 8000; at += 500) reading.push_back({.sequences = {0}, .count = 500});
  for (const ReadingStep& step : UnevenBlocks(400, 65)) reading.push_back(step);
  for (int i = 0; i < 20; ++i) reading.push_back({.sequences = {0}, .count = 1, .decode = true});
  const auto parity = CompareReaders(*model, reading, kThreads, kSeed);
  std::filesystem::remove(path);
  ASSERT_TRUE(parity) << parity.error().message;
  EXPECT_TRUE(parity->exact()) << parity->ToString();
  EXPECT_TRUE(parity->telling()) << parity->ToString();
}

}  // namespace
}  // namespace pith::testing
