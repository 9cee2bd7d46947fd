// RunAttention and RunProbabilities against their scalar references, on every SIMD target.
#include "kernels/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <deque>
#include <string>
#include <vector>

#include "base/turn_test_util.h"
#include "kernels/attention_reference.h"
#include "kernels/attention_test_util.h"
#include "kernels/page_kernels.h"
#include "kernels/targets_test_util.h"
#include "kernels/tile_products.h"

namespace pith::kernels {
namespace {

// Measured: at most 2.1e-5, with 576 channels (values are normal, logits up to 30), mostly from float32 logits.
constexpr float kTolerance = 3e-5f;
// Of pages in groups, and of coded ones for few rows, where queries and weights are rounded to 16 bits.
constexpr float kGroupTolerance = 5e-4f;
// In the matrix unit, where they keep 16 significant bits and logits of 30 are exponents.
constexpr float kUnitTolerance = 2e-4f;

float ToleranceOf(const TestTask& test) {
  for (int h = 0; h < test.task.num_kv_heads; ++h) {
    for (const Segment& segment : test.task.heads[h].segments) {
      const PageFormat& format = segment.layout->format;
      const bool few = test.task.num_queries * test.task.num_heads / test.task.num_kv_heads <= kMaxCodedRows;
      const bool integers = format.coded() ? few : IsGrouped(format.key) || IsGrouped(format.value);
      if (segment.num_entries > 0 && integers) return kGroupTolerance;
    }
  }
  return kTolerance;
}

using AttentionTest = TargetTest;

INSTANTIATE_TEST_SUITE_P(Targets, AttentionTest, testing::ValuesIn(Targets()),
                         [](const testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

// Largest difference of the task's output and (relative) log-sum-exp from the reference.
float ErrorOf(TestTask* test, int threads) {
  test->Run(threads);
  const std::vector<float> output = test->output;
  const std::vector<float> log_sum_exp = test->log_sum_exp;
  ReferenceAttention(test->task);
  float error = 0;
  const AttentionTask& task = test->task;
  for (int t = 0; t < task.num_queries; ++t) {
    for (int h = 0; h < task.num_heads; ++h) {
      for (int c = 0; c < task.value_dim; ++c) {
        const size_t at = static_cast<size_t>(t) * task.output_token_stride +
                          static_cast<size_t>(h) * task.output_head_stride + static_cast<size_t>(c);
        const float difference = std::abs(output[at] - test->output[at]);
        error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      }
      const auto at = static_cast<size_t>(h * task.num_queries + t);
      if (log_sum_exp[at] == test->log_sum_exp[at]) continue;  // -inf, among others
      const float difference = std::abs(log_sum_exp[at] - test->log_sum_exp[at]);
      const float size = std::max(1.0f, std::abs(test->log_sum_exp[at]));
      error = std::isfinite(difference) ? std::max(error, difference / size) : INFINITY;
    }
  }
  return error;
}

// Largest difference of probabilities from the reference, and of a row's sum from 1 (or 0).
float ProbabilityErrorOf(TestTask* test, int threads) {
  const std::vector<std::vector<float>> probabilities = test->Probabilities(threads);
  std::vector<std::vector<float>> reference = test->ProbabilityBuffers();
  ReferenceProbabilities(test->task, TestTask::Pointers(&reference).data());
  float error = 0;
  for (size_t h = 0; h < probabilities.size(); ++h) {
    const auto count = static_cast<size_t>(test->task.heads[h].num_entries());
    double sum = 0;
    double reference_sum = 0;
    for (size_t i = 0; i < probabilities[h].size(); ++i) {
      const float difference = std::abs(probabilities[h][i] - reference[h][i]);
      error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      sum += probabilities[h][i];
      reference_sum += reference[h][i];
      if ((i + 1) % count != 0) continue;
      EXPECT_NEAR(sum, reference_sum, 1e-5);
      if (test->task.sinks == nullptr) {
        EXPECT_TRUE(reference_sum == 0 || std::abs(sum - 1) < 1e-5) << sum;
      }
      sum = reference_sum = 0;
    }
  }
  return error;
}

// What a task's queries paid to the entries of each head.
struct SeenAttention {
  std::vector<std::vector<float>> sum, squares, largest;
  std::vector<EntryAttention> heads;

  explicit SeenAttention(const AttentionTask& task) {
    for (int h = 0; h < task.num_kv_heads; ++h) {
      const auto n = static_cast<size_t>(task.heads[h].num_entries());
      for (auto* stat : {&sum, &squares, &largest}) stat->emplace_back(n, std::nanf(""));
    }
    for (size_t h = 0; h < sum.size(); ++h) heads.push_back({sum[h].data(), squares[h].data(), largest[h].data()});
  }
};

// Largest difference, relative to what a query's probability may differ by, from the scalar reference.
float ObservedErrorOf(TestTask* test, int threads, bool all) {
  AttentionTask& task = test->task;
  SeenAttention seen(task), expected(task);
  std::vector<EntryAttention> wanted = seen.heads;
  for (EntryAttention& head : wanted) {
    if (!all) head.squares = head.largest = nullptr;
  }
  task.observed = wanted.data();
  float error = ErrorOf(test, threads);
  task.observed = nullptr;
  std::vector<std::vector<float>> probabilities = test->ProbabilityBuffers();
  ReferenceProbabilities(task, TestTask::Pointers(&probabilities).data());
  for (size_t h = 0; h < probabilities.size(); ++h) {
    const int n = task.heads[h].num_entries();
    ReferenceEntryAttention(probabilities[h].data(), task.num_heads / task.num_kv_heads, task.num_queries, n,
                            expected.heads[h]);
    const auto compare = [&](const std::vector<float>& got, const std::vector<float>& want, float scale) {
      for (size_t j = 0; j < got.size(); ++j) {
        const float difference = std::abs(got[j] - want[j]) / scale;
        error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      }
    };
    compare(seen.sum[h], expected.sum[h], std::max(1.0f, static_cast<float>(task.num_queries) / 4));
    if (!all) continue;
    compare(seen.squares[h], expected.squares[h], std::max(2.0f, static_cast<float>(task.num_queries) / 2));
    compare(seen.largest[h], expected.largest[h], 1.0f);
  }
  return error;
}

TestShape RandomShape(std::mt19937* random) {
  TestShape shape;
  shape.key_dim = OneOf(random, {1, 8, 40, 64, 64, 80, 96, 128, 192, 576});
  shape.value_dim = shape.key_dim == 576 ? 512 : OneOf(random, {1, 7, 40, 64, 64, 72, 80, 128, 256});
  shape.num_kv_heads = OneOf(random, {1, 2, 3, 5});
  shape.group = OneOf(random, {1, 2, 3, 4, 5, 6, 7, 8, 16});
  const bool wide = shape.key_dim * shape.num_kv_heads * shape.group > 2000;
  shape.num_queries = wide ? OneOf(random, {1, 2, 9}) : OneOf(random, {1, 1, 2, 3, 5, 16, 31, 70});
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    shape.head_entries.push_back(OneOf(random, {0, 1, 31, 32, 33, 64, 129, 200}));
  }
  shape.q8_share = OneOf(random, {0.0, 0.3, 1.0});
  shape.other = {AnyFormat(random), AnyFormat(random)};
  shape.pruned = OneOf(random, {0.0, 0.0, 0.4, 0.6});
  if (OneOf(random, {0, 1, 2, 3, 4}) == 0) {
    shape.other = {CodedFormat(OneOf(random, {3, 16, 62})), CodedFormat(OneOf(random, {3, 16, 62}))};
    shape.pruned = 0;
  }
  shape.position_gap = OneOf(random, {1, 3});
  return shape;
}

// Masks, soft-cap, ALiBi and sinks at random.
struct Extras {
  std::vector<float> slopes, sinks;

  Extras(TestTask* test, std::mt19937* random) {
    AttentionTask& task = test->task;
    task.mask = OneOf(random, {MaskKind::kCausal, MaskKind::kCausal, MaskKind::kWindow, MaskKind::kChunk});
    task.window = OneOf(random, {1, 20, 64, 150});
    if (OneOf(random, {0, 1, 2}) == 0) task.soft_cap = OneOf(random, {2.0f, 50.0f});
    for (int h = 0; h < task.num_heads; ++h) {
      slopes.push_back(0.005f * static_cast<float>(h + 1));
      sinks.push_back(std::normal_distribution<float>(0, 2)(*random));
    }
    if (OneOf(random, {0, 1, 2}) == 0) task.alibi_slopes = slopes.data();
    if (OneOf(random, {0, 1, 2}) == 0) task.sinks = sinks.data();
    task.scale *= OneOf(random, {1.0f, 1.0f, 4.0f});
  }
};

std::string Describe(const AttentionTask& task, int threads) {
  std::string text = "T=" + std::to_string(task.num_queries) + " H=" + std::to_string(task.num_heads) +
                     " kv=" + std::to_string(task.num_kv_heads) + " D=" + std::to_string(task.key_dim) +
                     " Dv=" + std::to_string(task.value_dim) + " mask=" + std::to_string(int(task.mask)) +
                     " window=" + std::to_string(task.window) + " cap=" + std::to_string(task.soft_cap) +
                     (task.alibi_slopes != nullptr ? " alibi" : "") + (task.sinks != nullptr ? " sinks" : "") +
                     " threads=" + std::to_string(threads) + " n=";
  for (const Segment& segment : task.heads[0].segments)
    text += segment.layout->format.Name() + "/" + std::to_string(segment.layout->key_dim) + " ";
  for (int h = 0; h < task.num_kv_heads; ++h) text += std::to_string(task.heads[h].num_entries()) + " ";
  return text;
}

TEST_P(AttentionTest, MatchesReference) {
  float worst = 0;
  for (const uint32_t seed : MyTurnOf(120)) {
    std::mt19937 random(seed);
    TestTask test(RandomShape(&random), seed);
    const Extras extras(&test, &random);
    const int threads = OneOf(&random, {1, 2, 3, 4});
    const float error = ErrorOf(&test, threads);
    EXPECT_LT(error, ToleranceOf(test)) << "seed " << seed << ": " << Describe(test.task, threads);
    worst = std::max(worst, error);
  }
  RecordProperty("worst_error", testing::PrintToString(worst));
}

TEST_P(AttentionTest, ProbabilitiesMatchReference) {
  float worst = 0;
  for (const uint32_t seed : MyTurnOf(80)) {
    std::mt19937 random(1000 + seed);
    TestTask test(RandomShape(&random), seed);
    const Extras extras(&test, &random);
    const int threads = OneOf(&random, {1, 2, 3, 4});
    const float error = ProbabilityErrorOf(&test, threads);
    EXPECT_LT(error, ToleranceOf(test)) << "seed " << seed << ": " << Describe(test.task, threads);
    worst = std::max(worst, error);
  }
  RecordProperty("worst_error", testing::PrintToString(worst));
}

TEST_P(AttentionTest, ObservedMatchesReference) {
  float worst = 0;
  for (const uint32_t seed : MyTurnOf(120)) {
    std::mt19937 random(2000 + seed);
    TestTask test(RandomShape(&random), seed);
    const Extras extras(&test, &random);
    const int threads = OneOf(&random, {1, 2, 3, 4});
    const float error = ObservedErrorOf(&test, threads, seed % 3 != 0);
    EXPECT_LT(error, ToleranceOf(test)) << "seed " << seed << ": " << Describe(test.task, threads);
    worst = std::max(worst, error);
  }
  RecordProperty("worst_error", testing::PrintToString(worst));
}

TestShape MediumShape(int num_queries) {
  TestShape shape;
  shape.num_queries = num_queries;
  shape.num_kv_heads = 3;
  shape.group = 3;
  shape.head_entries = {200, 77, 33};
  shape.q8_share = 0.3;
  return shape;
}

// Of the output, from the reference over entries one of which is another.
float ErrorOfCorrupted(const TestShape& shape) {
  TestTask test(shape, 5);
  test.Run(2);
  const std::vector<float> output = test.output;
  for (float& value : test.entries(0)[100].value) value += 1.0f;
  test.Rebuild();
  ReferenceAttention(test.task);
  float error = 0;
  for (size_t i = 0; i < output.size(); ++i) {
    if (!std::isnan(output[i])) error = std::max(error, std::abs(output[i] - test.output[i]));
  }
  return error;
}

// The comparison must see one wrong entry among hundreds.
TEST_P(AttentionTest, CorruptedEntryIsSeen) {
  using Case = std::pair<int, KvFormat>;
  for (const auto& [num_queries, format] : {Case{1, KvFormat::kQ8}, Case{40, KvFormat::kQ8}, Case{1, KvFormat::kQ4},
                                            Case{40, KvFormat::kQ4}, Case{3, KvFormat::kBf16}}) {
    TestShape shape = MediumShape(num_queries);
    shape.other = format;
    EXPECT_GT(ErrorOfCorrupted(shape), 20 * kTolerance);
  }
}

TEST_P(AttentionTest, OrderOfEntriesDoesNotMatter) {
  for (const int num_queries : {1, 3, 40}) {
    TestTask test(MediumShape(num_queries), 6);
    test.task.mask = MaskKind::kWindow;
    test.task.window = 90;
    test.Run(2);
    const std::vector<float> output = test.output;
    for (int h = 0; h < 3; ++h) std::shuffle(test.entries(h).begin(), test.entries(h).end(), test.random());
    test.Rebuild();
    test.Run(2);
    for (size_t i = 0; i < output.size(); ++i) {
      if (std::isnan(output[i])) continue;
      ASSERT_NEAR(output[i], test.output[i], kTolerance);
    }
  }
}

// One pass over all queries, and blocks of queries that see only the entries so far.
TEST_P(AttentionTest, BlocksEqualOnePass) {
  TestShape shape = MediumShape(64);
  shape.head_entries = {64, 64, 64};
  TestTask whole(shape, 7);
  whole.Run(2);
  std::mt19937 random(8);
  for (int begin = 0; begin < 64;) {
    const int size = std::min(64 - begin, OneOf(&random, {1, 2, 7, 19}));
    TestTask block(shape, 7);
    for (int h = 0; h < 3; ++h) block.entries(h).resize(static_cast<size_t>(begin + size));
    block.Rebuild();
    block.task.num_queries = size;
    block.task.queries += static_cast<size_t>(begin) * block.task.query_token_stride;
    block.task.query_positions += begin;
    block.Run(2);
    for (size_t i = 0; i < static_cast<size_t>(size) * whole.task.output_token_stride; ++i) {
      const float expected = whole.output[static_cast<size_t>(begin) * whole.task.output_token_stride + i];
      ASSERT_TRUE(std::isnan(expected) || std::abs(expected - block.output[i]) <= kTolerance);
    }
    begin += size;
  }
}

TEST_P(AttentionTest, SameThreadCountGivesSameBits) {
  for (const int num_queries : {1, 5, 70}) {
    for (int threads = 1; threads <= 4; ++threads) {
      TestShape shape = MediumShape(num_queries);
      shape.other = threads % 2 == 0 ? KvFormat::kQ8 : KvFormat::kQ4;
      TestTask test(shape, 9);
      test.Run(threads);
      const std::vector<float> output = test.output;
      const auto probabilities = test.Probabilities(threads);
      for (int repeat = 0; repeat < 3; ++repeat) {
        test.Run(threads);
        ASSERT_EQ(std::memcmp(output.data(), test.output.data(), sizeof(float) * output.size()), 0);
        ASSERT_EQ(probabilities, test.Probabilities(threads));
      }
    }
  }
}

// Observing changes nothing of the output, sums are those of one thread count, and one query less is seen.
TEST_P(AttentionTest, ObservingIsDeterministicAndLeavesTheOutput) {
  for (const int num_queries : {1, 5, 96}) {
    TestTask test(MediumShape(num_queries), 14);
    test.Run(3);
    const std::vector<float> output = test.output;
    SeenAttention first(test.task), again(test.task), fewer(test.task);
    test.task.observed = first.heads.data();
    test.Run(3);
    ASSERT_EQ(std::memcmp(output.data(), test.output.data(), sizeof(float) * output.size()), 0);
    test.task.observed = again.heads.data();
    test.Run(3);
    EXPECT_EQ(first.sum, again.sum);
    EXPECT_EQ(first.squares, again.squares);
    EXPECT_EQ(first.largest, again.largest);
    if (num_queries == 1) continue;
    test.task.num_queries -= 1;
    test.task.observed = fewer.heads.data();
    test.Run(3);
    EXPECT_NE(first.sum, fewer.sum);
  }
}

// As many parts as threads, or more: the bits are those of the parts.
TEST_P(AttentionTest, PartsFixTheBitsOnAnyThreads) {
  for (const int num_queries : {1, 5, 70}) {
    TestTask test(MediumShape(num_queries), 15);
    SeenAttention by_threads(test.task), by_parts(test.task);
    test.task.observed = by_threads.heads.data();
    test.Run(4);
    const std::vector<float> output = test.output;
    test.task.observed = by_parts.heads.data();
    test.task.num_parts = 4;
    for (int threads = 1; threads <= 4; ++threads) {
      test.Run(threads);
      ASSERT_EQ(std::memcmp(output.data(), test.output.data(), sizeof(float) * output.size()), 0) << threads;
      ASSERT_EQ(by_threads.sum, by_parts.sum);
      ASSERT_EQ(by_threads.largest, by_parts.largest);
    }
    test.task.num_parts = 0;
    bool differs = false;
    for (int threads = 1; threads < 4; ++threads) {
      test.Run(threads);
      differs |= std::memcmp(output.data(), test.output.data(), sizeof(float) * output.size()) != 0;
    }
    EXPECT_TRUE(differs);  // the control: without it, threads show
  }
}

// Random tasks that have nothing in common: few rows and many, observed and not, cut into their own numbers of parts.
class TestBatch {
 public:
  // parts: the least of a task; some are cut into more.
  TestBatch(uint32_t seed, int parts) {
    std::mt19937 random(seed);
    const int count = OneOf(&random, {1, 2, 5, 9});
    for (int i = 0; i < count; ++i) {
      tests_.emplace_back(RandomShape(&random), seed * 16 + static_cast<uint32_t>(i));
      TestTask& test = tests_.back();
      extras_.emplace_back(&test, &random);
      if (OneOf(&random, {0, 1}) == 0) test.task.mask = MaskKind::kCausal;
      test.task.num_parts = parts + OneOf(&random, {0, 0, 2});
      seen_.emplace_back(test.task);
      if (OneOf(&random, {0, 1, 2}) == 0) test.task.observed = seen_.back().heads.data();
    }
  }

  std::vector<AttentionTask> tasks() {
    std::vector<AttentionTask> tasks;
    for (TestTask& test : tests_) tasks.push_back(test.task);
    return tasks;
  }

  void RunEach(int threads) {
    for (TestTask& test : tests_) test.Run(threads);
  }

  void RunTogether(int threads) {
    for (TestTask& test : tests_) test.ClearResults();
    const std::vector<AttentionTask> tasks = this->tasks();
    const PoisonedBytes scratch(AttentionScratchBytes(tasks, threads));
    TestTask::OnTeam(threads, [&](const Team& team) { RunAttention(tasks, scratch.get(), team); });
  }

  // Everything that was computed for one task, as bits.
  std::vector<uint32_t> ResultsOf(size_t i) const {
    std::vector<uint32_t> bits;
    const auto add = [&](const std::vector<float>& values) {
      for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
    };
    add(tests_[i].output);
    add(tests_[i].log_sum_exp);
    if (tests_[i].task.observed == nullptr) return bits;
    for (const auto* stat : {&seen_[i].sum, &seen_[i].squares, &seen_[i].largest}) {
      for (const std::vector<float>& values : *stat) add(values);
    }
    return bits;
  }

  std::deque<TestTask>& tests() { return tests_; }

 private:
  std::deque<TestTask> tests_;
  std::deque<Extras> extras_;
  std::deque<SeenAttention> seen_;
};

void ExpectTogetherEqualsAlone(uint32_t seed, int threads) {
  TestBatch batch(seed, 3);
  batch.RunEach(threads);
  std::vector<std::vector<uint32_t>> alone;
  for (size_t i = 0; i < batch.tests().size(); ++i) alone.push_back(batch.ResultsOf(i));
  for (const int together : {1, 2, 3}) {
    batch.RunTogether(together);
    for (size_t i = 0; i < alone.size(); ++i) {
      ASSERT_EQ(alone[i], batch.ResultsOf(i)) << "task " << i << " of seed " << seed << " on " << threads << " and "
                                              << together << ": " << Describe(batch.tests()[i].task, together);
    }
  }
}

TEST_P(AttentionTest, TasksTogetherEqualEachAlone) {
  for (uint32_t seed = 0; seed < 30; ++seed) ExpectTogetherEqualsAlone(4000 + seed, 1 + static_cast<int>(seed % 3));
}

// The control of the above: one task's query is another, and only that task's results are.
TEST_P(AttentionTest, AnotherTaskBesideChangesNothing) {
  bool seen = false;
  for (uint32_t seed = 0; seed < 10; ++seed) {
    TestBatch batch(4100 + seed, 2);
    if (batch.tests().size() < 2) continue;
    batch.RunTogether(2);
    std::vector<std::vector<uint32_t>> before;
    for (size_t i = 0; i < batch.tests().size(); ++i) before.push_back(batch.ResultsOf(i));
    TestTask& changed = batch.tests()[1];
    const auto num_queries = static_cast<size_t>(changed.task.num_queries);
    const std::vector<float> other = changed.Normals(changed.task.query_token_stride * num_queries);
    changed.task.queries = other.data();
    batch.RunTogether(2);
    for (size_t i = 0; i < before.size(); ++i) {
      if (i == 1) seen |= before[i] != batch.ResultsOf(i);
      else EXPECT_EQ(before[i], batch.ResultsOf(i)) << i;
    }
  }
  EXPECT_TRUE(seen);
}

TEST_P(AttentionTest, ProbabilitiesTogetherEqualEachAlone) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    const int threads = 1 + static_cast<int>(seed % 3);
    TestBatch batch(4200 + seed, 0);
    std::deque<std::vector<std::vector<float>>> buffers;
    std::deque<std::vector<float*>> pointers;
    std::vector<ProbabilityTask> wanted;
    for (TestTask& test : batch.tests()) {
      pointers.push_back(TestTask::Pointers(&buffers.emplace_back(test.ProbabilityBuffers())));
      wanted.push_back({&test.task, pointers.back().data()});
    }
    TestTask::OnTeam(threads, [&](const Team& team) { RunProbabilities(wanted, team); });
    for (size_t i = 0; i < wanted.size(); ++i) EXPECT_EQ(batch.tests()[i].Probabilities(threads), buffers[i]) << seed;
  }
}

TEST_P(AttentionTest, MoreThreadsThanWork) {
  TestShape shape = MediumShape(1);
  shape.num_kv_heads = 1;
  shape.head_entries = {3};
  TestTask test(shape, 10);
  EXPECT_LT(ErrorOf(&test, 4), kTolerance);
  EXPECT_LT(ProbabilityErrorOf(&test, 4), kTolerance);
}

TEST_P(AttentionTest, NothingSeenGivesZeros) {
  TestTask test(MediumShape(2), 11);
  const std::vector<float> sinks(9, 1.0f);
  test.task.sinks = sinks.data();
  const int32_t before_all[] = {-5, -4};
  test.task.query_positions = before_all;
  test.Run(2);
  for (const float value : test.output) EXPECT_TRUE(value == 0.0f || std::isnan(value));
  for (const float value : test.log_sum_exp) EXPECT_EQ(value, -INFINITY);
  for (const auto& head : test.Probabilities(2)) EXPECT_THAT(head, testing::Each(0.0f));
}

// The wider bound of groups still tells queries of 16 bits from queries of 8.
TEST_P(AttentionTest, QueriesOfEightBitsWouldBeSeen) {
  for (const KvFormat format : IntegerFormats()) {
    TestShape shape = MediumShape(1);
    shape.other = format;
    shape.q8_share = 1.0;
    TestTask test(shape, 13);
    EXPECT_LT(ErrorOf(&test, 2), kGroupTolerance);
    const std::vector<float> exact = test.output;
    std::vector<float> rounded(test.task.queries, test.task.queries + test.task.query_token_stride);
    float most = 0;
    for (const float x : rounded) most = std::max(most, std::abs(x));
    for (float& x : rounded) x = std::nearbyint(x / most * 127) * most / 127;
    test.task.queries = rounded.data();
    ReferenceAttention(test.task);
    float error = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (!std::isnan(exact[i])) error = std::max(error, std::abs(exact[i] - test.output[i]));
    }
    EXPECT_GT(error, 2 * kGroupTolerance);
  }
}

// Many rows in the matrix unit: this machine's, where it has one, and the same arithmetic in plain C++.
class UnitTest : public testing::TestWithParam<const TileUnit*> {
  const TileUnitScope unit_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Units, UnitTest, testing::ValuesIn(TileUnits()), UnitName);

TEST_P(UnitTest, MatchesReference) {
  float worst = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(3000 + seed);
    TestShape shape = RandomShape(&random);
    const bool wide = shape.key_dim * shape.num_kv_heads * shape.group > 2000;
    shape.num_queries = OneOf(&random, {1, 11, wide ? 17 : 33, wide ? 18 : 130});
    TestTask test(shape, seed);
    const Extras extras(&test, &random);
    const int threads = OneOf(&random, {1, 2, 3, 4});
    const float error = seed % 4 == 0 ? ObservedErrorOf(&test, threads, true) : ErrorOf(&test, threads);
    EXPECT_LT(error, std::max(ToleranceOf(test), kUnitTolerance)) << seed << ": " << Describe(test.task, threads);
    worst = std::max(worst, error);
  }
  RecordProperty("worst_error", testing::PrintToString(worst));
}

TEST_P(UnitTest, CorruptedEntryIsSeen) {
  TestTask test(MediumShape(40), 5);
  EXPECT_LT(ErrorOf(&test, 2), kUnitTolerance);
  EXPECT_GT(ErrorOfCorrupted(MediumShape(40)), 20 * kUnitTolerance);
}

TEST_P(UnitTest, PartsFixTheBitsOnAnyThreads) {
  TestTask test(MediumShape(70), 15);
  test.Run(4);
  const std::vector<float> output = test.output;
  test.task.num_parts = 4;
  for (int threads = 1; threads <= 4; ++threads) {
    test.Run(threads);
    ASSERT_EQ(std::memcmp(output.data(), test.output.data(), sizeof(float) * output.size()), 0) << threads;
  }
}

TEST_P(UnitTest, TasksTogetherEqualEachAlone) {
  for (uint32_t seed = 0; seed < 12; ++seed) ExpectTogetherEqualsAlone(4300 + seed, 2);
}

// Logits of hundreds, where 2^score overflows unless the maximum is subtracted.
TEST_P(AttentionTest, LargeLogits) {
  TestTask test(MediumShape(4), 12);
  test.task.scale = 40.0f;
  // Float32 logits of 1,000 carry errors of 6e-5.
  EXPECT_LT(ErrorOf(&test, 2), 1e-2f);
}

}  // namespace
}  // namespace pith::kernels
