// Trainings of the networks behind evictors: they learn, the seed fixes what, and they go on where they were stopped.
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "evict/learn/one_bit_model.h"
#include "evict/learn/survival.h"
#include "evict/learn/train_coldrl.h"
#include "evict/learn/train_survival.h"
#include "evict/naive_cache_test_util.h"
#include "evict/one_bit.h"
#include "evict/registry.h"

namespace pith::evict {
namespace {

TEST(Survival, AConstantHazardIsItsRate) {
  // Asked for once in 100 moments on average, whatever its age.
  Survival::Curve curve;
  curve.fill(1.0f / 100);
  for (const uint32_t age : {0u, 1u, 3u, 100u, 5000u}) {
    EXPECT_NEAR(Survival::HitRate(curve, age, 1000), 0.01, 1e-4) << age;
  }
  EXPECT_EQ(Survival::HitRate(curve, uint32_t{1} << 21, 1000), 0);
}

TEST(Survival, WhatComesSoonIsWorthMoreAndWhatHasPassedNothing) {
  Survival::Curve curve;
  curve.fill(1e-9f);
  curve[11] = 1.0f;  // almost surely between 64 and 96
  const float early = Survival::HitRate(curve, 1, 1000);
  const float near = Survival::HitRate(curve, 60, 1000);
  const float late = Survival::HitRate(curve, 130, 1000);
  EXPECT_LT(Survival::HitRate(curve, 1, 50), 1e-6f);  // ends before
  EXPECT_NEAR(early, 1.0 / 64, 3e-3);
  EXPECT_GT(near, 0.15f);
  EXPECT_LT(late, 1e-6f);
}

TEST(Survival, SlopesAreThoseOfTheLoss) {
  float outputs[Survival::kBins];
  for (size_t k = 0; k < Survival::kBins; ++k) outputs[k] = static_cast<float>(k % 5) - 2.0f;
  float slopes[Survival::kBins];
  float unused[Survival::kBins];
  for (const bool asked : {false, true}) {
    for (const uint32_t gap : {1u, 7u, 300u}) {
      Survival::Slopes(outputs, gap, asked, slopes);
      for (size_t k = 0; k < Survival::kBins; ++k) {
        const float was = outputs[k];
        outputs[k] = was + 0.01f;
        const float above = Survival::Slopes(outputs, gap, asked, unused);
        outputs[k] = was - 0.01f;
        const float below = Survival::Slopes(outputs, gap, asked, unused);
        outputs[k] = was;
        EXPECT_NEAR(slopes[k], (above - below) / 0.02f, 2e-3) << k << " " << gap << " " << asked;
      }
    }
  }
}

// Half of the blocks come back after 40 requests, the others never; which is which shows in their size.
Trace Periodic() {
  Trace trace;
  uint32_t fresh = 20;
  for (uint32_t i = 0; i < 8000; ++i) {
    const bool returns = i % 2 == 0;
    const uint32_t object = returns ? i / 2 % 20 : fresh++;
    trace.object.push_back(object);
    trace.size.push_back(returns ? 3000 : 1000);
    trace.time.push_back(i);
  }
  for (uint32_t o = 0; o < fresh; ++o) trace.ids.push_back(o);
  EXPECT_TRUE(trace.Finish());
  return trace;
}

uint64_t Hits(Evictor& evictor, const Trace& trace) {
  Tally tally;
  evictor.Replay(trace, false, tally);
  return tally.hits;
}

// A training that is stopped after its first states and taken up again.
template <typename Train>
void ExpectResumes(const Train& train) {
  const Result<Model> whole = train(TrainHooks{});
  ASSERT_TRUE(whole) << whole.error().message;
  std::optional<Checkpoint> state;
  TrainHooks stopped;
  stopped.save = [&](const Checkpoint& now) -> Status {
    state = now;
    return {};
  };
  stopped.progress = [&](const TrainProgress& now) { return 2 * now.step < now.steps; };
  const Result<Model> none = train(stopped);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kCancelled);
  ASSERT_TRUE(state);
  TrainHooks resumed;
  resumed.from = &*state;
  const Result<Model> rest = train(resumed);
  ASSERT_TRUE(rest) << rest.error().message;
  EXPECT_EQ(SerializeModel(*rest), SerializeModel(*whole));
  state->fingerprint ^= 1;
  const Result<Model> other = train(resumed);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().message, "the saved state is of another training: other traces, evictor or options");
}

TEST(TrainSurvival, LearnsWhatComesBack) {
  std::vector<Trace> traces;
  traces.push_back(Periodic());
  FitOptions options;
  options.steps = 2000;
  const Result<Model> model = TrainSurvival(traces, options, {});
  ASSERT_TRUE(model) << model.error().message;
  History history(traces[0].num_objects());
  float features[History::kFeatures];
  NetBuffers buffers(model->net, 1);
  for (uint32_t i = 0; i < 4000; ++i) {
    history.Record(traces[0].At(i), features);
    if (i < 3900) continue;
    model->Normalize(features, features);
    const Survival::Curve curve = Survival::CurveOf(Forward(model->net, features, 1, buffers));
    const float rate = Survival::HitRate(curve, 20, 100);
    EXPECT_TRUE(i % 2 == 0 ? rate > 0.02f : rate < 0.002f) << i << ": " << rate;
  }
}

TEST(TrainSurvival, GoesOnWhereItWasStopped) {
  std::vector<Trace> traces;
  traces.push_back(Periodic());
  traces.push_back(RandomTrace(4, 2000, 100, 20));
  FitOptions options;
  options.steps = 2000;
  options.batch = 16;
  ExpectResumes([&](const TrainHooks& hooks) { return TrainSurvival(traces, options, hooks); });
  traces.push_back(RandomPrompts(4, 200));
  const Result<Model> refused = TrainSurvival(traces, options, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "learned needs no training for prompts: of them it learns as they pass");
}

ColdRlOptions FewEpochs() {
  ColdRlOptions options;
  options.epochs = 6;
  options.steps = 150;
  options.batch = 64;
  options.memory = 1 << 13;
  return options;
}

TEST(TrainColdRl, LearnsWhatComesBack) {
  std::vector<Trace> traces;
  traces.push_back(Periodic());
  // Room for 15 of the 20 that return, or for many that don't.
  constexpr uint64_t kCapacity = 50'000;
  const Result<Model> model = TrainColdRl(traces, {kCapacity}, FewEpochs(), {});
  ASSERT_TRUE(model) << model.error().message;
  const evict::Setup setup{kCapacity, traces[0].num_objects(), &traces[0]};
  const auto learned = MakeColdRlWith(setup, *model, {}, true);
  const auto lru = MakeEvictor("lru", setup);
  ASSERT_TRUE(lru);
  EXPECT_EQ(Hits(**lru, traces[0]), 0u);
  EXPECT_GT(Hits(*learned, traces[0]), 400u);
}

TEST(TrainColdRl, GoesOnWhereItWasStopped) {
  std::vector<Trace> traces;
  traces.push_back(Periodic());
  ExpectResumes([&](const TrainHooks& hooks) { return TrainColdRl(traces, {30'000, 50'000}, FewEpochs(), hooks); });
}

TEST(TrainColdRl, RefusesCachesThatHoldAll) {
  std::vector<Trace> traces;
  traces.push_back(Periodic());
  const Result<Model> model = TrainColdRl(traces, {uint64_t{1} << 40}, FewEpochs(), {});
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().message, "no cache of these sizes evicts anything from these traces");
}

TEST(TrainOneBit, BitsAreBetterThanChanceAndErrOnTheSideOfOne) {
  std::vector<Trace> traces;
  traces.push_back(RandomTrace(1, 8000, 300, 1));
  FitOptions options;
  options.steps = 2000;
  const Result<Model> model = TrainOneBit(ModelKind::kDiscardBit, traces, {40}, options, {});
  ASSERT_TRUE(model) << model.error().message;
  const Trace other = RandomTrace(2, 8000, 300, 1);
  const Result<std::vector<uint8_t>> right = DiscardBits(other, 40);
  ASSERT_TRUE(right);
  size_t ones[2] = {0, 0};
  for (const double p_zero : {0.5, 0.9}) {
    const std::vector<uint8_t> bits = PredictBits(*model, other, 40, p_zero);
    size_t wrong = 0;
    size_t right_ones = 0;
    for (size_t i = 0; i < bits.size(); ++i) {
      wrong += bits[i] != (*right)[i];
      right_ones += (*right)[i];
      ones[p_zero > 0.6] += bits[i];
    }
    if (p_zero == 0.5) {
      EXPECT_LT(wrong, std::min(right_ones, bits.size() - right_ones));
    }
  }
  EXPECT_GT(ones[1], ones[0]);
}

TEST(ColdRl, TheLeastWorthItsBytesGoesFirst) {
  ColdRlCandidate candidates[4];
  const float margins[] = {-2, -2, 1, -8};
  for (size_t c = 0; c < 4; ++c) candidates[c].size = c == 3 ? 8192 : 1024;
  uint32_t order[4];
  OrderVictims(candidates, margins, 4, /*per_byte=*/true, order);
  EXPECT_EQ(std::vector<uint32_t>(order, order + 4), (std::vector<uint32_t>{2, 3, 0, 1}));
  OrderVictims(candidates, margins, 4, /*per_byte=*/false, order);
  EXPECT_EQ(std::vector<uint32_t>(order, order + 4), (std::vector<uint32_t>{2, 0, 1, 3}));
}

TEST(ColdRl, FeaturesAreLogarithmsOfWhatIsKnown) {
  float features[ColdRl::kFeatures];
  const ColdRlCandidate candidate{500, 8192, 2, 90, std::nan(""), 120};
  ColdRl::Features(&candidate, 1, features);
  EXPECT_NEAR(features[0], std::log(501.0f), 0.006);
  EXPECT_NEAR(features[1], std::log(9.0f), 0.006);
  EXPECT_NEAR(features[2], std::log(3.0f), 0.006);
  EXPECT_NEAR(features[3], std::log(91.0f), 0.006);
  EXPECT_TRUE(std::isnan(features[4]));
  EXPECT_NEAR(features[5], std::log(121.0f), 0.006);
}

}  // namespace
}  // namespace pith::evict
