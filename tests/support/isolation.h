// One of eight sequences fails in a layer of a step: what becomes of it, and of the others.
#ifndef PITH_TESTS_SUPPORT_ISOLATION_H_
#define PITH_TESTS_SUPPORT_ISOLATION_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"

namespace pith::testing {

struct SequenceKind {
  const char* recipe;
  PageFormat format = {};
};

// In text that they still hold all of.
inline constexpr SequenceKind kEightKinds[] = {{"full"},
                                               {"snapkv:window=16"},
                                               {"h2o", KvFormat::kQ8},
                                               {"keydiff format=q4"},
                                               {"adakv:window=16", KvFormat::kQ8},
                                               {"expectedattention"},
                                               {"score=snapkv:window=16 agg=shift alloc=cake"},
                                               {"full", KvFormat::kQ4}};
// Those that add to statistics with every query: a sum, squares, the largest, times, moments; in the rows' own layer,
// or after all layers.
inline constexpr SequenceKind kCountingKinds[] = {{"h2o"},
                                                  {"roco"},
                                                  {"score=peak"},
                                                  {"lazyeviction", KvFormat::kQ8},
                                                  {"score=observed alloc=global"},
                                                  {"expectedattention"},
                                                  {"expectedattention alloc=global", KvFormat::kQ8}};

inline SequenceOptions OptionsOf(const SequenceKind& kind) {
  SequenceOptions options;
  auto recipe = ParseRecipe(kind.recipe);
  EXPECT_TRUE(recipe) << recipe.error().message;
  if (recipe) options.recipe = *recipe;
  options.format = kind.format;
  options.seed = 5;
  return options;
}

inline std::vector<float> CopyOf(std::span<const float> row) { return {row.begin(), row.end()}; }

// Bytes of this process that lie in memory.
inline size_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  size_t pages = 0;
  statm >> pages >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// A step of eight kinds of sequences with 1 to 20 rows each, on a model whose layers all have caches. For each victim
// and each of `layers`: the others' logits are those of a step in which nothing fails, to the bit; the victim is as it
// was and goes on with the same bits, or is lost and says so; the bytes come back.
class Isolation {
 public:
  Isolation(std::shared_ptr<HostModel> model, size_t budget_bytes, int num_threads, std::vector<int32_t> text,
            std::span<const SequenceKind> kinds = kEightKinds)
      : text_(std::move(text)), kinds_(kinds) {
    EngineOptions options;
    options.num_ctx = 512;
    options.num_threads = num_threads;
    options.adapt_threads = false;
    options.budget_bytes = budget_bytes;
    options.block_tokens = 128;
    options.max_sequences = static_cast<int>(2 * kinds_.size() + 1);
    options.faults = &fault_;
    auto engine = Engine::Create(std::move(model), options);
    EXPECT_TRUE(engine) << engine.error().message;
    if (engine) engine_ = std::move(*engine);
  }

  void Check(std::span<const int> layers) {
    ASSERT_NE(engine_, nullptr);
    for (size_t k = 0; k < kinds_.size(); ++k) {
      SequenceOptions options = OptionsOf(kinds_[k]);
      options.floor_bytes = options.ceiling_bytes = engine_->stats().budget_bytes / (3 * kinds_.size());
      const auto made = engine_->NewSequence(options);
      ASSERT_TRUE(made) << kinds_[k].recipe << ": " << made.error().message;
      ids_.push_back(*made);
      const Status read = engine_->Prefill(*made, Text(k).first(kBefore));
      ASSERT_TRUE(read) << read.error().message;
    }
    RunStep(kNobody, -1, &expected_);
    for (size_t victim = 0; victim < kinds_.size(); ++victim)
      RunStep(victim, layers.back(), nullptr);  // all buffers are there
    const size_t used = engine_->stats().used_bytes;
    [[maybe_unused]] const size_t resident = ResidentBytes();
    for (size_t victim = 0; victim < kinds_.size(); ++victim) {
      for (const int layer : layers) {
        SCOPED_TRACE(std::string(kinds_[victim].recipe) + " fails in layer " + std::to_string(layer));
        RunStep(victim, layer, nullptr);
        ASSERT_EQ(engine_->stats().used_bytes, used);
        if (::testing::Test::HasFailure()) return;
      }
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep what was freed for a while
    EXPECT_LE(ResidentBytes(), resident + (size_t{2} << 20));
#endif
    EXPECT_LE(engine_->stats().peak_bytes, engine_->stats().budget_bytes);
  }

 private:
  static constexpr size_t kNobody = SIZE_MAX;
  static constexpr size_t kBefore = 72;

  class Fault final : public StepFaults {
   public:
    bool FailsAt(int32_t sequence, int layer) override { return sequence == victim && layer == at_layer; }
    int32_t victim = -1;
    int at_layer = -1;
  };

  std::span<const int32_t> Text(size_t k) const { return std::span(text_).subspan(k * 7); }
  // Within the pages that are begun, so that none is converted.
  static size_t Rows(size_t k) { return k % 3 == 0 ? 1 : 2 + k * 2; }

  std::vector<float> ReadAlone(SequenceId id, std::span<const int32_t> tokens) {
    const StepItem item{.sequence = id, .tokens = tokens};
    Status status;
    engine_->Step({&item, 1}, {&status, 1});
    EXPECT_TRUE(status) << status.error().message;
    return CopyOf(engine_->logits(id));
  }

  // On forks, so that each step finds the same. keep: where logits go, null: they are compared.
  void RunStep(size_t victim, int layer, std::vector<std::vector<float>>* keep) {
    std::vector<SequenceId> forks;
    std::vector<StepItem> items;
    for (size_t k = 0; k < kinds_.size(); ++k) {
      const auto fork = engine_->Fork(ids_[k]);
      ASSERT_TRUE(fork) << fork.error().message;
      forks.push_back(*fork);
      items.push_back({.sequence = *fork, .tokens = Text(k).subspan(kBefore, Rows(k))});
    }
    fault_.victim = victim < kinds_.size() ? forks[victim] : -1;
    fault_.at_layer = layer;
    std::vector<Status> statuses(kinds_.size());
    engine_->Step(items, statuses);
    fault_.victim = -1;
    if (keep != nullptr) keep->clear();
    for (size_t k = 0; k < kinds_.size(); ++k) {
      if (k == victim) continue;
      ASSERT_TRUE(statuses[k]) << kinds_[k].recipe << ": " << statuses[k].error().message;
      std::vector<float> logits = CopyOf(engine_->logits(forks[k]));
      if (keep != nullptr) {
        keep->push_back(std::move(logits));
      } else {
        EXPECT_EQ(0, std::memcmp(logits.data(), expected_[k].data(), logits.size() * sizeof(float)))
            << kinds_[k].recipe;
      }
    }
    if (victim < kinds_.size()) CheckVictim(victim, forks[victim], statuses[victim], items[victim].tokens);
    for (const SequenceId fork : forks) engine_->Free(fork);
  }

  void CheckVictim(size_t victim, SequenceId id, const Status& status, std::span<const int32_t> tokens) {
    ASSERT_FALSE(status);
    const Status again = engine_->Prefill(id, tokens);
    EXPECT_EQ(status.error().message.find("is lost"), std::string::npos) << status.error().message;
    ASSERT_TRUE(again) << again.error().message;
    std::vector<float> now = CopyOf(engine_->logits(id));
    const std::vector<float> later = ReadAlone(id, Text(victim).subspan(kBefore + 40, 3));
    now.insert(now.end(), later.begin(), later.end());
    const auto saved = engine_->SaveToMemory(id, {});
    const auto other = engine_->Fork(ids_[victim]);
    ASSERT_TRUE(other) << other.error().message;
    std::vector<float> never = ReadAlone(*other, tokens);
    const std::vector<float> then = ReadAlone(*other, Text(victim).subspan(kBefore + 40, 3));
    never.insert(never.end(), then.begin(), then.end());
    EXPECT_TRUE(now == never) << "not as if it had never failed";
    const auto as_saved = engine_->SaveToMemory(*other, {});
    ASSERT_TRUE(saved && as_saved);
    // To the bit, statistics too; but a window of queries knows fewer.
    const uint32_t needs = OptionsOf(kinds_[victim]).recipe.policy->needs();
    if ((needs & (kNeedWindowProbs | kNeedWindowQueries)) == 0) {
      EXPECT_TRUE(*saved == *as_saved)
          << kinds_[victim].recipe << ": it holds something else than if it had never failed";
    }
    (void)ReadAlone(*other, Text(victim).subspan(kBefore + 43, 1));
    const auto later_saved = engine_->SaveToMemory(*other, {});
    ASSERT_TRUE(later_saved);
    EXPECT_FALSE(*saved == *later_saved) << "the control";
    engine_->Free(*other);
  }

  const std::vector<int32_t> text_;
  const std::span<const SequenceKind> kinds_;
  Fault fault_;
  std::unique_ptr<Engine> engine_;
  std::vector<SequenceId> ids_;
  std::vector<std::vector<float>> expected_;
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_ISOLATION_H_
