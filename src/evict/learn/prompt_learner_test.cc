// The learner of prompts, and the evictor that asks it.
#include "evict/learn/prompt_learner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "evict/naive_cache_test_util.h"
#include "evict/policies/learned_prompts.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

constexpr uint32_t kBlockTokens = 64;

class Prompts {
 public:
  // Blocks of a prompt, first to last; its deepest one is not full where `ragged`.
  void Add(const std::vector<uint32_t>& chain, uint32_t answer, bool ragged) {
    const auto tokens = static_cast<uint32_t>(chain.size() * kBlockTokens) - (ragged ? kBlockTokens / 2 : 0);
    const auto time = static_cast<double>(trace_.prompts.size());
    trace_.prompts.push_back({static_cast<uint32_t>(trace_.object.size()), tokens, answer, time});
    for (size_t i = chain.size(); i-- > 0;) {
      trace_.object.push_back(chain[i]);
      trace_.size.push_back(1);
      trace_.time.push_back(time);
      while (trace_.ids.size() <= chain[i]) trace_.ids.push_back(trace_.ids.size());
    }
  }
  Trace Finish() {
    EXPECT_TRUE(trace_.Finish());
    return std::move(trace_);
  }

 private:
  Trace trace_;
};

// Each prompt begins a conversation of four blocks behind one that all share. Those with long answers are gone on
// from 40 prompts later, by two more blocks; the others never are. The last block is not full.
Trace Conversations(size_t count) {
  Prompts prompts;
  uint32_t fresh = 1;
  std::vector<std::vector<uint32_t>> begun;
  for (size_t i = 0; i < count; ++i) {
    std::vector<uint32_t> chain = {0};
    for (int k = 0; k < 4; ++k) chain.push_back(fresh++);
    const bool returns = i % 2 == 0;
    prompts.Add(chain, returns ? 900 : 30, true);
    begun.push_back(returns ? chain : std::vector<uint32_t>());
    if (i < 20 || begun[i - 20].empty()) continue;
    std::vector<uint32_t> next = begun[i - 20];
    next.back() = fresh++;
    next.push_back(fresh++);
    prompts.Add(next, 30, true);
  }
  return prompts.Finish();
}

uint64_t Hits(Evictor& evictor, const Trace& trace) {
  Tally tally;
  evictor.Replay(trace, false, tally);
  return tally.hits;
}

TEST(PromptLearner, TellsWhoGoesOn) {
  const Trace trace = Conversations(3000);
  for (const float rate : {0.0f, 1e-3f}) {
    PromptLearnerOptions options;
    options.rate = rate;
    PromptLearner learner(trace.num_objects(), options);
    double going = 0;
    double ending = 0;
    double of_partial = 0;
    for (size_t p = 0; p < trace.prompts.size(); ++p) {
      const Access deepest = trace.AtPrompt(p, trace.prompts[p].first);
      learner.Watch(deepest);
      if (p + 200 < trace.prompts.size()) continue;
      const bool returns = trace.prompts[p].output_tokens == 900;
      (returns ? going : ending) += Survival::HitRate(learner.CurveAt(deepest.depth - 1), 1, 100);
      if (returns) of_partial += Survival::HitRate(learner.CurveAt(deepest.depth), 1, 100);
    }
    if (rate == 0) {
      EXPECT_LT(going, 2 * ending);  // it knows nothing of answers
    } else {
      EXPECT_GT(going, 20 * ending);
      EXPECT_LT(of_partial, 0.1 * going);  // none of those came again
    }
  }
}

// Four blocks of a document, and a question of three; another one follows 30 prompts later, six times. Between them
// stand prompts that nobody goes on from.
TEST(PromptLearner, WhatSeveralGoOnFromIsWorthMoreThanTheirEnds) {
  Prompts prompts;
  uint32_t fresh = 1;
  std::vector<std::vector<uint32_t>> documents(15);
  for (size_t i = 0; i < 4000; ++i) {
    std::vector<uint32_t> chain = {0};
    if (i % 2 == 0) {
      std::vector<uint32_t>& document = documents[i / 2 % documents.size()];
      if (i / 30 % 6 == 0) document = {fresh++, fresh++, fresh++, fresh++};
      chain.insert(chain.end(), document.begin(), document.end());
    }
    for (int k = 0; k < 3; ++k) chain.push_back(fresh++);
    prompts.Add(chain, 100, false);
  }
  const Trace trace = prompts.Finish();
  PromptLearner learner(trace.num_objects(), {});
  double document = 0, question = 0;
  for (size_t p = 0; p < trace.prompts.size(); ++p) {
    const Access deepest = trace.AtPrompt(p, trace.prompts[p].first);
    learner.Watch(deepest);
    if (p + 400 < trace.prompts.size() || p / 30 % 6 < 2 || deepest.chain != 8) continue;
    document += Survival::HitRate(learner.CurveAt(4), 1, 100);
    question += Survival::HitRate(learner.CurveAt(5), 1, 100);
  }
  EXPECT_GT(document, 2 * question);
}

TEST(LearnedPrompts, KeepsThoseThatWillGoOn) {
  const Trace trace = Conversations(3000);
  // Ten conversations that wait for their next turn need 4 blocks each; all that come meanwhile more than 100.
  const evict::Setup setup{70, trace.num_objects(), &trace};
  const auto lru = MakeEvictor("lru", setup);
  ASSERT_TRUE(lru);
  const uint64_t recent = Hits(**lru, trace);
  PromptLearnerOptions options;
  const uint64_t learned = Hits(*MakeLearnedPrompts(setup, options), trace);
  options.rate = 0;
  const uint64_t untaught = Hits(*MakeLearnedPrompts(setup, options), trace);
  EXPECT_GT(learned, recent + 2000);
  EXPECT_LT(untaught, recent + 1000);
}

// What hangs on a block that is not stored is worth nothing: a stored block's parent is stored, once its prompt is.
TEST(LearnedPrompts, LeavesGoFirst) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    const Trace trace = RandomPrompts(seed, 600);
    const evict::Setup setup{40, trace.num_objects(), &trace};
    const auto evictor = MakeLearnedPrompts(setup, {});
    std::vector<uint32_t> parents(trace.num_objects(), kNever);
    for (size_t p = 0; p < trace.prompts.size(); ++p) {
      const uint32_t first = trace.prompts[p].first;
      for (uint32_t i = first; i < trace.end_of(p); ++i) {
        if (i + 1 < trace.end_of(p)) parents[trace.object[i]] = trace.object[i + 1];
        const Access access = trace.AtPrompt(p, i);
        evictor->Contains(access.object) ? evictor->OnHit(access) : evictor->OnMiss(access);
      }
      for (uint32_t object = 0; object < trace.num_objects(); ++object) {
        if (!evictor->Contains(object) || parents[object] == kNever) continue;
        ASSERT_TRUE(evictor->Contains(parents[object])) << "seed " << seed << ", prompt " << p;
      }
    }
    EXPECT_GT(evictor->evictions(), 100u);
  }
}

// Blocks that hang on each other, as no chain of hashes has them: nothing is a leaf, and what is new does not stay.
TEST(LearnedPrompts, BlocksInARingDoNotOverflow) {
  Prompts prompts;
  prompts.Add({0, 1}, 5, false);
  prompts.Add({1, 0}, 5, false);
  prompts.Add({2, 3}, 5, false);
  const Trace trace = prompts.Finish();
  const auto evictor = MakeLearnedPrompts({2, trace.num_objects(), &trace}, {});
  const auto serve = [&](size_t p) {
    for (uint32_t i = trace.prompts[p].first; i < trace.end_of(p); ++i) {
      const Access access = trace.AtPrompt(p, i);
      evictor->Contains(access.object) ? evictor->OnHit(access) : evictor->OnMiss(access);
    }
  };
  serve(0);
  evictor->Erase(0);
  serve(1);  // 0 now hangs on 1, which hangs on 0
  EXPECT_EQ(evictor->used_bytes(), 2u);
  serve(2);
  EXPECT_EQ(evictor->used_bytes(), 2u);
  EXPECT_TRUE(evictor->Contains(0) && evictor->Contains(1));
}

TEST(LearnedPrompts, TakeNoModelAndAreFollowedUnderAGuard) {
  const Trace trace = Conversations(400);
  const evict::Setup setup{150, trace.num_objects(), &trace};
  const auto made = MakeEvictor("learned:model=some.pithnet", setup);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().message, "learned takes no model for prompts: of them it learns as they pass");
  const auto guarded = MakeEvictor("learned", setup);
  const auto alone = MakeEvictor("learned:guard=off", setup);
  const auto lru = MakeEvictor("lru", setup);
  ASSERT_TRUE(guarded && alone && lru);
  const double best = static_cast<double>(std::max(Hits(**alone, trace), Hits(**lru, trace)));
  EXPECT_GE(static_cast<double>(Hits(**guarded, trace)), best - 0.01 * static_cast<double>(trace.num_accesses()) - 64);
}

}  // namespace
}  // namespace pith::evict
