// ThinK's packed keys (arXiv:2407.21018): scores, channels, what pages hold of them, and attention over these.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/key_channels.h"
#include "policy/act/think.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

constexpr int kP = kPageEntries;
// Pages hold 16 bits of each number.
constexpr Tolerance kHalves{1e-3, 1e-3};

// One kv head's keys in pages: old ones of chosen channels, the newest whole.
class StoredKeys {
 public:
  StoredKeys(std::span<const float> keys, size_t dim, size_t num_pruned, std::vector<uint16_t> channels)
      : channels_(std::move(channels)), num_pruned_(num_pruned), n_(keys.size() / dim),
        whole_(PageLayout::Make(PageFormat(), static_cast<int>(dim), 1, 0)),
        pruned_(PageLayout::Make(PageFormat(), static_cast<int>(channels_.size()), 1, 0)) {
    for (size_t i = 0; i < n_; ++i) {
      const size_t at = i < num_pruned ? i : i - num_pruned;
      std::vector<std::vector<std::byte>>& pages = i < num_pruned ? whole_pages_ : recent_pages_;
      if (at % kP == 0) pages.emplace_back(whole_.page_bytes);
      const float value = 1;
      kernels::WriteEntryF32(whole_, pages.back().data(), static_cast<int>(at % kP), keys.data() + i * dim, &value,
                             static_cast<int32_t>(i));
    }
    for (const std::vector<std::byte>& page : whole_pages_) {
      pruned_pages_.emplace_back(pruned_.page_bytes);
      kernels::SelectChannels(whole_, page.data(), channels_, pruned_, pruned_pages_.back().data());
    }
    for (const auto& page : pruned_pages_) table_.push_back(page.data());
    for (const auto& page : recent_pages_) table_.push_back(page.data());
    segments_ = {{&pruned_, table_.data(), static_cast<int>(num_pruned)},
                 {&whole_, table_.data() + pruned_pages_.size(), static_cast<int>(n_ - num_pruned)}};
  }

  kernels::HeadEntries entries() const { return {segments_, channels_.data()}; }
  size_t size() const { return n_; }

  std::vector<float> Packed() const {
    std::vector<float> rows;
    for (size_t first = 0; first < num_pruned_; first += kP) {
      const size_t count = std::min<size_t>(kP, num_pruned_ - first), before = rows.size();
      rows.resize(before + count * channels_.size());
      kernels::ReadKeys(pruned_, pruned_pages_[first / kP].data(), static_cast<int>(count), rows.data() + before);
    }
    return rows;
  }

 private:
  const std::vector<uint16_t> channels_;
  const size_t num_pruned_, n_;
  const PageLayout whole_, pruned_;
  std::vector<std::vector<std::byte>> whole_pages_, recent_pages_, pruned_pages_;
  std::vector<const std::byte*> table_;
  std::vector<kernels::Segment> segments_;
};

// What a query of each head of the group pays to the entries. [group, n]
std::vector<float> Attention(const StoredKeys& keys, std::span<const float> queries, size_t dim) {
  const size_t group = queries.size() / dim;
  const kernels::HeadEntries entries = keys.entries();
  const auto position = static_cast<int32_t>(keys.size());
  kernels::AttentionTask task;
  task.num_queries = 1;
  task.num_heads = static_cast<int>(group);
  task.num_kv_heads = 1;
  task.key_dim = static_cast<int>(dim);
  task.value_dim = 1;
  task.queries = queries.data();
  task.query_token_stride = queries.size();
  task.query_head_stride = dim;
  task.query_positions = &position;
  task.heads = &entries;
  task.scale = 1 / std::sqrt(static_cast<float>(dim));
  std::vector<float> probabilities(group * keys.size());
  float* const to = probabilities.data();
  Barrier barrier;
  kernels::RunProbabilities(task, &to, Team{0, 1, &barrier});
  return probabilities;
}

std::vector<float> Softmax(std::span<const float> logits) {
  const float most = *std::ranges::max_element(logits);
  std::vector<float> weights;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - most));
  for (const float logit : logits)
    weights.push_back(static_cast<float>(std::exp(static_cast<double>(logit - most)) / sum));
  return weights;
}

PITH_GOLDEN_TEST(Methods, think_packed, "in/q_dec") {
  const auto dim = static_cast<size_t>(file.param("head_dim")), n = static_cast<size_t>(file.param("n"));
  const auto window = static_cast<size_t>(file.param("window")), recent = static_cast<size_t>(file.param("recent"));
  const auto kv_heads = static_cast<size_t>(file.param("kv_heads")), heads = static_cast<size_t>(file.param("heads"));
  const size_t group = heads / kv_heads, num_pruned = n > recent ? n - recent : 0;
  const double share = std::round(file.number("pith.param.share") * 1e6) / 1e6;
  std::vector<float> scores, packed;
  std::vector<int64_t> kept;
  for (size_t h = 0; h < kv_heads; ++h) {
    SCOPED_TRACE(fmt::format("kv head {}", h));
    const std::span<const float> keys = std::span(file.tensor("in/k").f32).subspan(h * n * dim, n * dim);
    ChannelEnergies energies(dim);
    energies.AddQueries(std::span(file.tensor("in/q").f32).subspan(h * group * window * dim, group * window * dim));
    energies.AddKeys(keys);
    const std::vector<float> own = energies.Scores();
    scores.insert(scores.end(), own.begin(), own.end());
    const std::vector<uint16_t> channels = KeptChannels(own, share);
    EXPECT_EQ(dim - channels.size(), static_cast<size_t>(file.param("removed")));
    std::vector<int64_t> mask(dim, 0);
    for (const uint16_t c : channels) mask[c] = 1;
    kept.insert(kept.end(), mask.begin(), mask.end());
    const StoredKeys stored(keys, dim, num_pruned, channels);
    const std::vector<float> rows = stored.Packed();
    packed.insert(packed.end(), rows.begin(), rows.end());
    for (size_t step = 0; step < static_cast<size_t>(file.param("steps")); ++step) {
      const size_t first = step * heads + h * group;
      const std::vector<float> weights =
          Attention(stored, std::span(file.tensor("in/q_dec").f32).subspan(first * dim, group * dim), dim);
      std::vector<float> expected;
      for (size_t g = 0; g < group; ++g) {
        const std::vector<float> one =
            Softmax(std::span(file.tensor("out/think_packed/logits").f32).subspan((first + g) * n, n));
        expected.insert(expected.end(), one.begin(), one.end());
      }
      ExpectNumbers(weights, expected, fmt::format("attention of step {}", step), kHalves);
    }
  }
  ExpectNumbers(scores, file.tensor("out/think_packed/score").f32, "score");
  ExpectExactly(kept, file.tensor("out/think_packed/channels_kept").i64, "channels_kept");
  ExpectNumbers(packed, file.tensor("out/think_packed/packed").f32, "packed", kHalves);
}

}  // namespace
}  // namespace pith::testing
