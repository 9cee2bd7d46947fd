// The process's memory under a KV budget, beside what plain libllama takes for a block of the same size.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/paths.h"
#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/isolation.h"

namespace pith::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20, kBound = 40 * kMiB;
constexpr int kBlock = 64;

// The most that lay in memory since the last ForgetPeak().
size_t PeakBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) << 10;
  }
  return 0;
}
bool ForgetPeak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  return static_cast<bool>(file.flush());
}

class SlowMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    HostModelOptions options;
    options.num_threads = 2;
    auto model = HostModel::Load(DefaultModelPath(), options);
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    std::string words;
    for (int i = 0; i < 400; ++i) words += fmt::format("In chapter {} a river met {} engines. ", i, i * 37 % 101);
    const auto text = model_->Tokenize(words, true, false);
    ASSERT_TRUE(text);
    text_ = *text;
    ASSERT_GT(text_.size(), 2000U);
    malloc_trim(0);  // nothing of another test
    const auto plain = PlainContext::Create(*model_, kBlock, kBlock, true, 2);
    ASSERT_TRUE(plain) << plain.error().message;
    ASSERT_TRUE(ForgetPeak());
    ASSERT_TRUE((*plain)->Decode(0, std::span(text_).first(kBlock)));
    plain_ = PeakBytes();
  }

  EngineOptions Options(size_t budget, int num_sequences) const {
    EngineOptions options;
    options.num_ctx = 2048;
    options.num_threads = 2;
    options.adapt_threads = false;
    options.budget_bytes = budget;
    options.block_tokens = kBlock;
    options.max_sequences = num_sequences;
    return options;
  }

  // code() keeps within `budget` and the bound.
  void ExpectWithin(size_t budget, const auto& code) {
    ASSERT_TRUE(ForgetPeak());
    code();
    const size_t peak = PeakBytes();
    const size_t over = peak - std::min(peak, plain_);
    fmt::print("{:.1f} MiB over libllama's {:.1f} with a budget of {:.1f}\n", static_cast<double>(over) / kMiB,
               static_cast<double>(plain_) / kMiB, static_cast<double>(budget) / kMiB);
    EXPECT_LE(over, budget + kBound);
    EXPECT_GT(over, budget / 2) << "the budget was not used: the test shows nothing";
  }

  std::shared_ptr<HostModel> model_;
  std::vector<int32_t> text_;
  size_t plain_ = 0;
};

TEST_F(SlowMemory, AMixtureOfEightKinds) {
  constexpr size_t kBudget = 56 * kMiB;
  ExpectWithin(kBudget, [&] {
    auto engine = Engine::Create(model_, Options(kBudget, 8));
    ASSERT_TRUE(engine) << engine.error().message;
    std::vector<SequenceId> ids;
    for (const SequenceKind& kind : kEightKinds) {
      SequenceOptions options = OptionsOf(kind);
      options.floor_bytes = options.ceiling_bytes = 6 * kMiB;
      const auto made = (*engine)->NewSequence(options);
      ASSERT_TRUE(made) << kind.recipe << ": " << made.error().message;
      ids.push_back(*made);
    }
    // Pieces of prompts, each of which grows until its bytes are full; those that drop go on.
    for (size_t at = 0; at + 8 <= 520; at += 8) {
      std::vector<StepItem> items;
      for (const SequenceId id : ids) items.push_back({.sequence = id, .tokens = std::span(text_).subspan(at, 8)});
      std::vector<Status> statuses(items.size());
      (*engine)->Step(items, statuses);
      for (size_t k = 0; k < ids.size(); ++k) {
        if (statuses[k]) continue;
        EXPECT_EQ(statuses[k].error().code, ErrorCode::kOutOfBudget) << statuses[k].error().message;
        EXPECT_TRUE(std::string(kEightKinds[k].recipe).starts_with("full")) << statuses[k].error().message;
      }
    }
    EXPECT_LE((*engine)->stats().peak_bytes, kBudget);
  });
}

// What a recipe computes with grows with its window, and is part of what it has.
TEST_F(SlowMemory, AWideWindow) {
  constexpr size_t kBudget = 48 * kMiB;
  ExpectWithin(kBudget, [&] {
    EngineOptions options = Options(kBudget, 1);
    options.recipe = *ParseRecipe("snapkv:window=512");
    auto engine = Engine::Create(model_, options);
    ASSERT_TRUE(engine) << engine.error().message;
    const SequenceId id = *(*engine)->NewSequence();
    const int most = (*engine)->stats().keep_entries;
    ASSERT_LT(most, 1500);
    const size_t count = std::min<size_t>(text_.size(), static_cast<size_t>(most) + 300);
    const Status read = (*engine)->Prefill(id, std::span(text_).first(count));
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_LT((*engine)->stats().kept_fraction, 1);
  });
}

TEST_F(SlowMemory, AWindowThatTheBudgetDoesNotHoldIsRefused) {
  EngineOptions options = Options(64 * kMiB, 1);
  options.num_ctx = 8192;
  options.recipe = *ParseRecipe("snapkv:window=4096");
  const auto engine = Engine::Create(model_, options);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(engine.error().message.find("window of 4096 queries"), std::string::npos) << engine.error().message;
  auto other = Engine::Create(model_, Options(64 * kMiB, 2));
  ASSERT_TRUE(other);
  const auto sequence = (*other)->NewSequence(options);
  ASSERT_FALSE(sequence);
  EXPECT_NE(sequence.error().message.find("are the least that does"), std::string::npos) << sequence.error().message;
}

}  // namespace
}  // namespace pith::testing
