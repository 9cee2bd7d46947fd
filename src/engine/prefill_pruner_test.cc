#include "engine/prefill_pruner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention_test_util.h"

namespace pith {
namespace {

using kernels::TestEntry;
using kernels::TestShape;
using kernels::TestTask;

CritiOptions Small() { return {.segment = 128, .block = 32, .budget = 256, .threshold = 256, .skip = 0}; }

TestShape Shape(double q8_share, int gap) {
  return {.num_queries = 300, .num_kv_heads = 3, .group = 3, .head_entries = {1500, 1500, 1500},
          .q8_share = q8_share, .position_gap = gap};
}

void RunPruner(TestTask& test, PrefillPruner& pruner, const PrunedCall& call, int threads) {
  std::fill(test.output.begin(), test.output.end(), std::nanf(""));
  test.task.log_sum_exp = nullptr;
  TestTask::OnTeam(threads, [&](const Team& team) { pruner.Run(test.task, call, team); });
}

// Keys of a whole entry as stored: rounded to its format.
struct Stored {
  std::vector<float> key, value;
  int32_t position = 0;
};
std::vector<std::vector<Stored>> ReadSegments(const kernels::HeadEntries& head, int key_dim, int value_dim) {
  std::vector<std::vector<Stored>> segments;
  for (const kernels::Segment& segment : head.segments) {
    segments.emplace_back();
    for (int i = 0; i < segment.num_entries; i += kPageEntries) {
      const int count = std::min(kPageEntries, segment.num_entries - i);
      const std::byte* page = segment.pages[i / kPageEntries];
      std::vector<float> keys(static_cast<size_t>(count * key_dim)), values(static_cast<size_t>(count * value_dim));
      kernels::ReadKeys(*segment.layout, page, count, keys.data());
      kernels::ReadValues(*segment.layout, page, count, values.data());
      for (int j = 0; j < count; ++j) {
        segments.back().push_back({{keys.begin() + j * key_dim, keys.begin() + (j + 1) * key_dim},
                                   {values.begin() + j * value_dim, values.begin() + (j + 1) * value_dim},
                                   segment.layout->positions(page)[j]});
      }
    }
  }
  return segments;
}

struct NaiveBlock {
  std::vector<Stored> entries;
  double criticality = 0;
};

// Softmax over blocks of the mean over the group of max(u, v), as the paper's code writes it.
void NaiveCriticality(const TestTask& test, const CritiOptions& options, int s, int h,
                      std::vector<NaiveBlock>& blocks) {
  const auto& task = test.task;
  const int group = task.num_heads / task.num_kv_heads, dim = task.key_dim;
  const int begin = s * options.segment, end = std::min(begin + options.segment, task.num_queries);
  double greatest = -INFINITY, sum = 0;
  for (NaiveBlock& block : blocks) {
    block.criticality = 0;
    for (int g = 0; g < group; ++g) {
      double high_dot[2] = {0, 0}, low_dot[2] = {0, 0};
      for (int c = 0; c < dim; ++c) {
        double q_high = -INFINITY, q_low = INFINITY, k_high = -INFINITY, k_low = INFINITY;
        for (int t = begin; t < end; ++t) {
          const double q =
              task.queries[static_cast<size_t>(t) * task.query_token_stride +
                           static_cast<size_t>(h * group + g) * task.query_head_stride + static_cast<size_t>(c)];
          q_high = std::max(q_high, q), q_low = std::min(q_low, q);
        }
        for (const Stored& entry : block.entries) {
          const double k = entry.key[static_cast<size_t>(c)];
          k_high = std::max(k_high, k), k_low = std::min(k_low, k);
        }
        high_dot[0] += q_high * k_high, high_dot[1] += q_low * k_high;
        low_dot[0] += q_high * k_low, low_dot[1] += q_low * k_low;
      }
      block.criticality += std::max((high_dot[0] + high_dot[1]) / 2, (low_dot[0] + low_dot[1]) / 2) / group;
    }
    greatest = std::max(greatest, block.criticality);
  }
  for (NaiveBlock& block : blocks) sum += block.criticality = std::exp(block.criticality - greatest);
  for (NaiveBlock& block : blocks) block.criticality /= sum;
}

// What segment s may see of head h: the chosen blocks and everything that lies in none.
std::vector<Stored> NaiveVisible(const TestTask& test, const CritiOptions& options, int s, int h) {
  const int32_t start = test.task.query_positions[s * options.segment];
  std::vector<NaiveBlock> blocks;
  std::vector<Stored> visible;
  for (const std::vector<Stored>& entries : ReadSegments(test.task.heads[h], test.task.key_dim, test.task.value_dim)) {
    size_t at = 0;
    const auto size = static_cast<size_t>(options.block);
    for (; at + size <= entries.size() && entries[at + size - 1].position < start; at += size) {
      blocks.push_back(
          {{entries.begin() + static_cast<ptrdiff_t>(at), entries.begin() + static_cast<ptrdiff_t>(at + size)}});
    }
    visible.insert(visible.end(), entries.begin() + static_cast<ptrdiff_t>(at), entries.end());
  }
  const auto budget = static_cast<size_t>(options.budget / options.block);
  if (blocks.size() > budget &&
      blocks.size() * static_cast<size_t>(options.block) >= static_cast<size_t>(options.threshold)) {
    NaiveCriticality(test, options, s, h, blocks);
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const NaiveBlock& a, const NaiveBlock& b) { return a.criticality > b.criticality; });
    blocks.resize(budget);
  }
  for (const NaiveBlock& block : blocks) visible.insert(visible.end(), block.entries.begin(), block.entries.end());
  return visible;
}

// Largest difference of the task's output from dense attention masked to what NaiveVisible says.
double DifferenceFromMasked(const TestTask& test, const CritiOptions& options, int num_sparse_rows) {
  const auto& task = test.task;
  const int group = task.num_heads / task.num_kv_heads;
  double difference = 0;
  CritiOptions everything = options;
  everything.budget = 1 << 24;
  std::vector<std::vector<Stored>> heads(static_cast<size_t>(task.num_kv_heads));
  for (int t = 0; t < task.num_queries; ++t) {
    const int s = t / options.segment;
    for (int h = 0; h < task.num_kv_heads && t % options.segment == 0; ++h) {
      heads[static_cast<size_t>(h)] = NaiveVisible(test, t < num_sparse_rows ? options : everything, s, h);
    }
    for (int h = 0; h < task.num_heads; ++h) {
      const std::vector<Stored>& visible = heads[static_cast<size_t>(h / group)];
      std::vector<double> out(static_cast<size_t>(task.value_dim), 0);
      double sum = 0;
      for (const Stored& entry : visible) {
        if (entry.position > task.query_positions[t]) continue;
        double dot = 0;
        for (int c = 0; c < task.key_dim; ++c) {
          dot += double{task.queries[static_cast<size_t>(t) * task.query_token_stride +
                                     static_cast<size_t>(h) * task.query_head_stride + static_cast<size_t>(c)]} *
                 entry.key[static_cast<size_t>(c)];
        }
        const double weight = std::exp(dot * task.scale);
        sum += weight;
        for (size_t c = 0; c < out.size(); ++c) out[c] += weight * entry.value[c];
      }
      const float* row = test.output.data() + static_cast<size_t>(t) * task.output_token_stride +
                         static_cast<size_t>(h) * task.output_head_stride;
      for (size_t c = 0; c < out.size(); ++c) {
        const double off = std::abs(row[c] - out[c] / sum);
        difference = std::isnan(off) ? INFINITY : std::max(difference, off);
      }
    }
  }
  return difference;
}

TEST(PrefillPruner, EqualsDenseAttentionMaskedToTheChosenBlocks) {
  struct Case {
    double q8_share;
    int gap, block;
  };
  for (const Case& c : {Case{0, 1, 32}, Case{0, 1, 64}, Case{0, 3, 32}, Case{0.4, 1, 32}}) {
    TestShape shape = Shape(c.q8_share, c.gap);
    shape.num_queries = 150;
    shape.num_kv_heads = 2;
    shape.key_dim = shape.value_dim = 32;
    // Ragged, and no multiple of a page before the segment.
    shape.head_entries = {900, c.gap == 1 ? 900 : 611};
    TestTask test(shape, 7);
    CritiOptions options = Small();
    options.block = c.block;
    options.segment = 64;
    PrefillPruner pruner(options);
    const int sparse = 128;  // two segments; the last 22 rows attend to everything
    RunPruner(test, pruner, {.num_sparse_rows = sparse, .layer = 1, .complete = false}, 2);
    EXPECT_LT(pruner.read_share(), 0.75);
    EXPECT_LT(DifferenceFromMasked(test, options, sparse), 2e-5) << c.q8_share << " " << c.gap << " " << c.block;
    // The control: dense attention is not what was computed.
    const std::vector<float> pruned = test.output;
    test.Run(2);
    double off = 0;
    for (size_t i = 0; i < pruned.size(); ++i) {
      if (!std::isnan(pruned[i])) off = std::max(off, double{std::abs(pruned[i] - test.output[i])});
    }
    EXPECT_GT(off, 1e-2);
  }
}

TEST(PrefillPruner, ABudgetForEverythingIsFullAttentionBitForBit) {
  TestTask test(Shape(0, 1), 3);
  test.task.log_sum_exp = nullptr;
  test.Run(2);
  const std::vector<float> dense = test.output;
  CritiOptions all = Small();
  all.budget = 1536;
  CritiOptions late = Small();
  late.threshold = 1536;
  CritiOptions higher = Small();
  higher.skip = 2;
  for (const CritiOptions& options : {all, late, higher}) {
    PrefillPruner pruner(options);
    RunPruner(test, pruner, {.num_sparse_rows = 300, .layer = 1}, 2);
    EXPECT_EQ(pruner.read_share(), 1);
    for (size_t i = 0; i < dense.size(); ++i) ASSERT_TRUE(dense[i] == test.output[i] || std::isnan(dense[i])) << i;
  }
  // No sparse rows: the prompt's last segment.
  PrefillPruner pruner(Small());
  RunPruner(test, pruner, {.num_sparse_rows = 0, .layer = 1}, 2);
  for (size_t i = 0; i < dense.size(); ++i) ASSERT_TRUE(dense[i] == test.output[i] || std::isnan(dense[i])) << i;
}

// A quarter of the layers before is carried on, but not from another segment of the prompt, nor where
// layers hold different entries.
TEST(PrefillPruner, LayersAreFusedWhereTheyHoldTheSameBlocks) {
  TestTask first(Shape(0, 1), 11), second(Shape(0, 1), 12);
  for (TestTask* test : {&first, &second}) {
    // Flat scores, so that what was carried on decides.
    for (int h = 0; h < 3; ++h) {
      for (TestEntry& entry : test->entries(h)) {
        for (float& k : entry.key) k *= test == &first ? 1.0F : 0.02F;
      }
    }
    test->Rebuild();
  }
  const auto second_after_first = [&](const CritiOptions& options, bool complete, int layer) {
    PrefillPruner pruner(options);
    RunPruner(first, pruner, {.num_sparse_rows = 300, .layer = layer - 1, .complete = complete}, 2);
    RunPruner(second, pruner, {.num_sparse_rows = 300, .layer = layer, .complete = complete}, 2);
    return second.output;
  };
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (!(a[i] == b[i] || std::isnan(a[i]))) return false;
    }
    return true;
  };
  PrefillPruner alone(Small());
  RunPruner(second, alone, {.num_sparse_rows = 300, .layer = 2}, 2);
  const std::vector<float> unfused = second.output;
  CritiOptions off = Small();
  off.fusion = false;
  EXPECT_FALSE(same(second_after_first(Small(), true, 2), unfused));
  EXPECT_TRUE(same(second_after_first(Small(), true, 1), unfused));
  EXPECT_TRUE(same(second_after_first(Small(), false, 2), unfused));
  EXPECT_TRUE(same(second_after_first(off, true, 2), unfused));
}

TEST(PrefillPruner, ThreadsChooseTheSame) {
  TestTask test(Shape(0.2, 2), 5);
  PrefillPruner pruner(Small());
  RunPruner(test, pruner, {.num_sparse_rows = 256, .layer = 1, .complete = false}, 1);
  const std::vector<float> one = test.output;
  RunPruner(test, pruner, {.num_sparse_rows = 256, .layer = 1, .complete = false}, 3);
  for (size_t i = 0; i < one.size(); ++i) {
    if (std::isnan(one[i])) continue;  // between rows
    ASSERT_NEAR(one[i], test.output[i], 1e-5);
  }
}

}  // namespace
}  // namespace pith
