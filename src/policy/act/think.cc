#include "policy/act/think.h"

#include <algorithm>
#include <numeric>

#include "kernels/key_channels.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Prune final : public Action {
 public:
  explicit Prune(const PruneOptions& options) : options_(options) {}
  uint32_t needs() const override { return kNeedWindowQueries; }
  int window() const override { return options_.window; }
  const PruneOptions* prune() const override { return &options_; }

 private:
  PruneOptions options_;
};

}  // namespace

void ChannelEnergies::Add(std::span<const float> rows, std::vector<double>& sums, size_t& count) {
  const size_t dim = sums.size();
  for (size_t row = 0; row + dim <= rows.size(); row += dim, ++count) {
    for (size_t c = 0; c < dim; ++c) sums[c] += static_cast<double>(rows[row + c]) * static_cast<double>(rows[row + c]);
  }
}

std::vector<float> ChannelEnergies::Scores() const {
  std::vector<float> scores(keys_.size());
  const auto rows = static_cast<double>(std::max<size_t>(num_queries_, 1) * std::max<size_t>(num_keys_, 1));
  for (size_t c = 0; c < scores.size(); ++c) scores[c] = static_cast<float>(queries_[c] * keys_[c] / rows);
  return scores;
}

std::vector<uint16_t> KeptChannels(std::span<const float> scores, double share) {
  std::vector<uint16_t> order(scores.size());
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::stable_sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return scores[a] < scores[b]; });
  order.erase(order.begin(), order.end() - ChannelsLeft(static_cast<int>(scores.size()), share));
  std::sort(order.begin(), order.end());
  return order;
}

StageInfo<Action> PruneStage() {
  return {"key channels that matter least to the last queries are not stored; entries that do not stay are gone",
          {RealParam("channels", 0.4, 0, 0.7, "share of the key channels that go"),
           IntParam("window", 32, 1, 512, "last queries that choose the channels"),
           IntParam("recent", 32, 0, 4096, "newest entries that keep all channels")},
          [](const Params& p) -> std::unique_ptr<Action> {
            return std::make_unique<Prune>(
                PruneOptions{.share = p.Real("channels"), .window = p.Int("window"), .recent = p.Int("recent")});
          }};
}

}  // namespace pith
