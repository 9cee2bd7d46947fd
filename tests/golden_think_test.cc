// ThinK's packed keys (arXiv:2407.21018): scores, channels, what is stored and logits over it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "policy/act/think.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

PITH_GOLDEN_TEST(Methods, think_packed, "in/q_dec") {
  const auto dim = static_cast<size_t>(file.param("head_dim")), n = static_cast<size_t>(file.param("n"));
  const auto window = static_cast<size_t>(file.param("window")), recent = static_cast<size_t>(file.param("recent"));
  const auto kv_heads = static_cast<size_t>(file.param("kv_heads")), heads = static_cast<size_t>(file.param("heads"));
  const size_t group = heads / kv_heads, pruned = n > recent ? n - recent : 0;
  const double share = std::round(file.number("pith.param.share") * 1e6) / 1e6;
  std::vector<float> scores, packed;
  std::vector<int64_t> kept;
  std::vector<std::vector<int32_t>> channels;
  for (size_t h = 0; h < kv_heads; ++h) {
    const std::span<const float> keys = std::span(file.tensor("in/k").f32).subspan(h * n * dim, n * dim);
    std::vector<float> own(dim);
    ChannelImportance(std::span(file.tensor("in/q").f32).subspan(h * group * window * dim, group * window * dim), keys,
                      own);
    scores.insert(scores.end(), own.begin(), own.end());
    channels.push_back(KeptChannels(own, share));
    EXPECT_EQ(dim - channels.back().size(), static_cast<size_t>(file.param("removed")));
    std::vector<int64_t> mask(dim, 0);
    for (const int32_t c : channels.back()) mask[static_cast<size_t>(c)] = 1;
    kept.insert(kept.end(), mask.begin(), mask.end());
    const std::vector<float> rows = PackChannels(keys.first(pruned * dim), dim, channels.back());
    packed.insert(packed.end(), rows.begin(), rows.end());
  }
  ExpectNumbers(scores, file.tensor("out/think_packed/score").f32, "score");
  ExpectExactly(kept, file.tensor("out/think_packed/channels_kept").i64, "channels_kept");
  ExpectNumbers(packed, file.tensor("out/think_packed/packed").f32, "packed");
  std::vector<float> logits;
  for (size_t step = 0; step < static_cast<size_t>(file.param("steps")); ++step) {
    for (size_t g = 0; g < heads; ++g) {
      const size_t h = g / group, width = channels[h].size();
      const std::vector<float> own =
          PackedLogits(std::span(file.tensor("in/q_dec").f32).subspan((step * heads + g) * dim, dim), channels[h],
                       std::span(packed).subspan(h * pruned * width, pruned * width),
                       std::span(file.tensor("in/k").f32).subspan((h * n + pruned) * dim, (n - pruned) * dim));
      logits.insert(logits.end(), own.begin(), own.end());
    }
  }
  ExpectNumbers(logits, file.tensor("out/think_packed/logits").f32, "logits", {1e-5, 1e-4});
}

}  // namespace
}  // namespace pith::testing
