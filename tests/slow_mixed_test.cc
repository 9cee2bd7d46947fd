// Many steps of many sequences: what each one says and keeps is what it does alone.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/paths.h"
#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/isolation.h"
#include "tests/support/kl.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr size_t kNumKinds = std::size(kEightKinds), kPlaces = 10;
constexpr int kSteps = 10000, kBlock = 48, kLongest = 320, kVocab = 97;
// Tokens that a sequence has bytes for: all of them if it drops nothing, else these or those.
constexpr size_t kWide = 180, kNarrow = 120;

// A sequence's life so far, as it can be lived again.
struct Life {
  struct Event {
    std::vector<int32_t> tokens = {};  // read in one step
    size_t budget = 0;                 // or its bytes from now on
  };
  size_t kind = 0;
  std::vector<Event> events = {};
  SequenceId id = -1;
  size_t budget = 0;
  size_t length = 0;        // tokens read
  size_t ends_at = 0;
  std::vector<float> last = {};  // logits
};

bool Drops(size_t kind) { return !std::string(kEightKinds[kind].recipe).starts_with("full"); }

class SlowMixed : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + fmt::format("pith_mixed_{}.gguf", getpid());
    const Status made = MakeRandomModel("llama", false, path_, 3);
    ASSERT_TRUE(made) << made.error().message;
    auto model = HostModel::Load(path_, HostModelOptions{});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
    mixed_ = NewEngine();
    alone_ = NewEngine();
    for (size_t k = 0; k < kNumKinds && mixed_ != nullptr; ++k) {
      for (const size_t tokens : {kWide, kNarrow}) {
        const auto admission = mixed_->Admit(OptionsOf(kEightKinds[k]), Drops(k) ? tokens : kLongest);
        ASSERT_TRUE(admission) << admission.error().message;
        budgets_[k].push_back(admission->steady_bytes);
      }
    }
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::unique_ptr<Engine> NewEngine() const {
    EngineOptions options;
    options.num_ctx = 512;
    options.block_tokens = kBlock;
    options.num_threads = 1;
    options.adapt_threads = false;
    options.max_sequences = kPlaces;
    options.budget_bytes = size_t{14} << 20;
    auto engine = Engine::Create(model_, options);
    EXPECT_TRUE(engine) << engine.error().message;
    return engine ? std::move(*engine) : nullptr;
  }

  static SequenceOptions Options(size_t kind, size_t budget) {
    SequenceOptions options = OptionsOf(kEightKinds[kind]);
    options.floor_bytes = options.ceiling_bytes = budget;
    return options;
  }

  Life Born(size_t kind) {
    Life life{.kind = kind, .budget = budgets_[kind].front()};
    const auto made = mixed_->NewSequence(Options(kind, life.budget));
    EXPECT_TRUE(made) << kEightKinds[kind].recipe << ": " << made.error().message;
    life.id = made ? *made : -1;
    life.ends_at = 40 + random_() % (kLongest - 40);
    return life;
  }

  // How what it said last and keeps now differs from what a sequence of `kind` does that lives the same life alone.
  struct Difference {
    double kl = 0;
    double common = 1;  // share of the entries that both keep
  };
  Difference Compare(const Life& life, size_t kind) {
    const auto made = alone_->NewSequence(Options(kind, budgets_[kind].front()));
    EXPECT_TRUE(made) << made.error().message;
    Difference difference;
    if (!made) return difference;
    for (const Life::Event& event : life.events) {
      const Status status = event.tokens.empty()
                                ? Drops(kind) ? alone_->SetBudget(*made, event.budget, event.budget) : Status()
                                : alone_->Prefill(*made, event.tokens);
      EXPECT_TRUE(status) << kEightKinds[kind].recipe << ": " << status.error().message;
    }
    difference.kl = Kl(CopyOf(alone_->logits(*made)), life.last);
    size_t both = 0, most = 0;
    for (const int layer : {0, 1}) {
      for (const int head : {0, 1}) {
        const std::vector<int32_t> a = mixed_->EntryPositions(life.id, layer, head);
        const std::vector<int32_t> b = alone_->EntryPositions(*made, layer, head);
        std::vector<int32_t> common;
        std::ranges::set_intersection(a, b, std::back_inserter(common));
        both += common.size(), most += std::max(a.size(), b.size());
      }
    }
    difference.common = static_cast<double>(both) / static_cast<double>(std::max<size_t>(most, 1));
    alone_->Free(*made);
    return difference;
  }

  // Compares the life with one alone, and then with one of the next recipe, which has to be seen.
  void Judge(const Life& life) {
    if (life.length == 0 || life.last.empty()) return;
    SCOPED_TRACE(fmt::format("{} after {} tokens", kEightKinds[life.kind].recipe, life.length));
    const Difference own = Compare(life, life.kind);
    EXPECT_LT(own.kl, kMostKl);
    EXPECT_GT(own.common, kLeastCommon);
    ++num_judged_;
    dropped_ += mixed_->stats(life.id).kept_fraction < 0.95;
    if (!Drops(life.kind) || life.length < 250 || num_judged_ % 10 != 0) return;
    constexpr size_t kSwapped[] = {0, 3, 1, 1, 3, 3, 3, 0};
    const Difference swapped = Compare(life, kSwapped[life.kind]);
    ++num_swapped_;
    seen_ += swapped.kl > kMostKl || swapped.common < kLeastCommon;
  }

  void Renew(Life& life) {
    Judge(life);
    mixed_->Free(life.id);
    life = Born(life.kind);
  }

  // Prompts in pieces and single tokens of some of the sequences, one of which may be cancelled before.
  void Step() {
    std::vector<StepItem> items;
    std::vector<Life*> of;
    size_t rows = 0;
    for (Life& life : lives_) {
      if (random_() % 3 == 0) continue;
      const size_t wanted = random_() % 4 == 0 ? 1 + random_() % 40 : 1;
      const size_t count = std::min({life.ends_at - life.length, wanted, kBlock - rows});
      if (count == 0) continue;
      std::vector<int32_t> tokens(count);
      for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % kVocab) + 3;
      life.events.push_back({.tokens = std::move(tokens)});
      of.push_back(&life);
      rows += count;
    }
    // Their texts do not move any more.
    for (Life* life : of) items.push_back({.sequence = life->id, .tokens = life->events.back().tokens});
    Life* cancelled = nullptr;
    if (!of.empty() && random_() % 100 == 0) {
      cancelled = of[random_() % of.size()];
      mixed_->Cancel(cancelled->id);
    }
    std::vector<Status> statuses(items.size());
    mixed_->Step(items, statuses);
    for (size_t i = 0; i < items.size(); ++i) {
      Life& life = *of[i];
      if (&life == cancelled) {
        ASSERT_FALSE(statuses[i]);
        EXPECT_EQ(statuses[i].error().code, ErrorCode::kCancelled);
        mixed_->Free(life.id);
        continue;
      }
      ASSERT_TRUE(statuses[i]) << kEightKinds[life.kind].recipe << ": " << statuses[i].error().message;
      life.length += items[i].tokens.size();
      life.last = CopyOf(mixed_->logits(life.id));
    }
    if (cancelled != nullptr) *cancelled = Born(cancelled->kind);
  }

  void SaveAndRestore(Life& life) {
    const auto saved = mixed_->SaveToMemory(life.id, {});
    ASSERT_TRUE(saved) << saved.error().message;
    mixed_->Free(life.id);
    const auto back = mixed_->RestoreFromMemory(*saved, Options(life.kind, life.budget));
    ASSERT_TRUE(back) << back.error().message;
    life.id = back->sequence;
  }

  void SetBudget(Life& life) {
    if (!Drops(life.kind)) return;
    const std::vector<size_t>& budgets = budgets_[life.kind];
    life.budget = budgets[life.budget == budgets.front() ? 1 : 0];
    const Status status = mixed_->SetBudget(life.id, life.budget, life.budget);
    ASSERT_TRUE(status) << status.error().message;
    life.events.push_back({.budget = life.budget});
    life.last.clear();  // said by what was there before
  }

  // Over the life of one of the last two places.
  void Fork(const Life& from) {
    Life& to = lives_[kNumKinds + random_() % (lives_.size() - kNumKinds)];
    if (&to == &from) return;
    Judge(to);
    mixed_->Free(to.id);
    const auto fork = mixed_->Fork(from.id);
    ASSERT_TRUE(fork) << fork.error().message;
    to = from;
    to.id = *fork;
    to.ends_at = std::max(to.length + 1, 40 + random_() % (kLongest - 40));
  }

  // To where all of its text may be read again from.
  void Rewind(Life& life) {
    if (life.length == 0) return;
    const int target = mixed_->RewindTarget(life.id, static_cast<int>(random_() % life.length));
    const Status status = mixed_->Rewind(life.id, target);
    ASSERT_TRUE(status) << status.error().message;
    ++num_rewound_, went_back_ += target > 0;
    life.length = static_cast<size_t>(target);
    life.last.clear();
    size_t left = life.length;
    std::vector<Life::Event> events;
    for (Life::Event& event : life.events) {
      if (event.tokens.empty()) {
        events.push_back(std::move(event));
        continue;
      }
      event.tokens.resize(std::min(event.tokens.size(), left));
      left -= event.tokens.size();
      if (!event.tokens.empty()) events.push_back(std::move(event));
    }
    life.events = std::move(events);
  }

  static constexpr double kMostKl = 0.02, kLeastCommon = 0.9;

  std::string path_;
  std::shared_ptr<HostModel> model_;
  std::unique_ptr<Engine> mixed_, alone_;
  std::mt19937 random_{7};
  std::vector<Life> lives_;
  std::vector<size_t> budgets_[kNumKinds];
  int num_judged_ = 0, dropped_ = 0, num_swapped_ = 0, seen_ = 0, num_rewound_ = 0, went_back_ = 0;
};

TEST_F(SlowMixed, TenThousandStepsOfEightKinds) {
  ASSERT_TRUE(mixed_ != nullptr && alone_ != nullptr);
  const size_t empty = mixed_->stats().used_bytes;
  for (size_t i = 0; i < kPlaces; ++i) lives_.push_back(Born(i % kNumKinds));
  for (int step = 0; step < kSteps && !HasFailure(); ++step) {
    SCOPED_TRACE(step);
    Step();
    if (HasFatalFailure()) return;
    Life& one = lives_[random_() % lives_.size()];
    switch (random_() % 60) {
      case 0: SaveAndRestore(one); break;
      case 1: SetBudget(one); break;
      case 2: Fork(one); break;
      case 3: Rewind(one); break;
      case 4: Renew(one); break;
      default: break;
    }
    for (Life& life : lives_) {
      if (life.length >= life.ends_at) Renew(life);
    }
    const KvStats stats = mixed_->stats();
    ASSERT_LE(stats.used_bytes, stats.budget_bytes);
  }
  EXPECT_LE(mixed_->stats().peak_bytes, mixed_->stats().budget_bytes);
  for (Life& life : lives_) {
    Judge(life);
    mixed_->Free(life.id);
  }
  EXPECT_EQ(mixed_->stats().used_bytes, empty);
  fmt::print("{} lives compared, {} of which dropped entries; {} of {} went back; {} of {} swapped recipes seen\n",
             num_judged_, dropped_, went_back_, num_rewound_, seen_, num_swapped_);
  EXPECT_GT(num_judged_, 500);
  EXPECT_GT(dropped_, 100);
  EXPECT_GT(went_back_, 20);
  EXPECT_GT(num_swapped_, 5);
  EXPECT_EQ(seen_, num_swapped_) << "control: another recipe must be seen";
}

// The default model, in its first layer, its last and some between; in each layer of small models:
// model_isolation_test.cc.
TEST(SlowIsolation, EightKindsFailInALayer) {
  HostModelOptions options;
  options.num_threads = 2;
  const auto model = HostModel::Load(DefaultModelPath(), options);
  ASSERT_TRUE(model) << model.error().message;
  std::string words;
  for (int i = 0; i < 60; ++i) words += fmt::format("In chapter {} a river met {} engines. ", i, i * 37 % 101);
  const auto text = (*model)->Tokenize(words, true, false);
  ASSERT_TRUE(text);
  const int last = static_cast<int>((*model)->info().layers.size()) - 1;
  const int layers[] = {0, last / 3, last / 2, last};
  Isolation(*model, size_t{200} << 20, 2, *text).Check(layers);
}

}  // namespace
}  // namespace pith::testing
