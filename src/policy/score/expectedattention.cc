// The attention that queries to come are expected to give (Expected Attention, arXiv:2510.00636; kvpress'
// ExpectedAttentionPress). Queries before RoPE are taken as normal with the mean mu and covariance C of those seen, and
// R is the mean rotation over the next positions; then E[exp(s q.k)] = exp(s k.R mu + s^2/2 k.R C R^T k), normalised
// over the entries beside the first ones, averaged over the group, (score + epsilon) times the length of the value.
//
// Differences from kvpress: mu and C are running statistics, so that evicting by blocks and while decoding needs no
// hidden states; they never count the first 4 queries, which kvpress ties to the number of sinks; s is the model's own
// scale in place of 1/sqrt(d), which is the same where it has no other.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "kernels/triangles.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/dot.h"

namespace pith {
namespace {

class ExpectedAttention final : public Scorer {
 public:
  explicit ExpectedAttention(const Params& p)
      : future_(p.Int("future")),
        sinks_(p.Int("sinks")),
        covariance_(p.Int("covariance") == 1),
        value_norm_(p.Int("vnorm") == 1),
        epsilon_(static_cast<float>(p.Real("epsilon"))) {}

  uint32_t needs() const override { return kNeedKeys | kNeedValues | kNeedQueryMoments; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    const auto dim = static_cast<size_t>(inputs.key_dim), value_dim = static_cast<size_t>(inputs.value_dim);
    std::vector<float> turn(2 * inputs.rotation->pairs.size());
    inputs.rotation->MeanTurn(inputs.next_position, future_, turn);
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const HeadInputs& head = inputs.heads[h];
      std::vector<float>& score = scores.heads[h];
      const auto first = std::ranges::lower_bound(head.positions, sinks_) - head.positions.begin();
      std::fill_n(score.begin(), first, kProtected);
      const std::span<float> rest = std::span(score).subspan(static_cast<size_t>(first));
      if (rest.empty()) return;
      std::vector<std::vector<float>> shares(static_cast<size_t>(inputs.group), std::vector<float>(rest.size()));
      ParallelFor(shares.size(), [&](size_t g) {
        Expect(inputs, head, g, turn, head.keys + static_cast<size_t>(first) * dim, shares[g]);
      });
      for (const std::vector<float>& share : shares) {
        for (size_t j = 0; j < rest.size(); ++j) rest[j] += share[j];
      }
      for (size_t j = 0; value_norm_ && j < rest.size(); ++j) {
        const float* value = head.values + (static_cast<size_t>(first) + j) * value_dim;
        rest[j] = (rest[j] + epsilon_) * std::sqrt(Dot(value, value, value_dim));
      }
    });
  }

 private:
  // The query head's share of the group's mean.
  void Expect(const LayerInputs& inputs, const HeadInputs& head, size_t at, std::span<const float> turn,
              const float* keys, std::span<float> share) const {
    const auto dim = static_cast<size_t>(inputs.key_dim);
    const float s = inputs.attention_scale;
    std::vector<float> mean(head.query_means + at * dim, head.query_means + (at + 1) * dim);
    inputs.rotation->Apply(turn, mean.data());
    const std::span<float> logits = share;
    if (covariance_) {
      const float* triangle = head.query_covariances + at * kernels::TriangleSize(inputs.key_dim);
      const std::vector<float> form = inputs.rotation->ApplyToForm(turn, inputs.key_dim, triangle);
      kernels::QuadraticForms(keys, static_cast<int>(share.size()), inputs.key_dim, form.data(), logits.data());
    }
    float most = -std::numeric_limits<float>::infinity();
    for (size_t j = 0; j < share.size(); ++j) {
      logits[j] = s * Dot(mean.data(), keys + j * dim, dim) + s * s / 2 * logits[j];
      most = std::max(most, logits[j]);
    }
    double total = 0;
    for (float& logit : logits) total += static_cast<double>(logit = std::exp(logit - most));
    for (float& logit : logits) logit /= static_cast<float>(total * inputs.group);
  }

  int future_, sinks_;
  bool covariance_, value_norm_;
  float epsilon_;
};

}  // namespace

StageInfo<Scorer> ExpectedAttentionStage() {
  return {"the attention expected of queries to come, from the mean and covariance of those seen",
          {IntParam("future", 512, 1, 65536, "positions to come that are averaged"),
           IntParam("sinks", 4, 0, 4096, "first tokens that always stay"),
           IntParam("covariance", 1, 0, 1, "0: by the mean query alone"),
           IntParam("vnorm", 1, 0, 1, "0: values do not count"),
           RealParam("epsilon", 0, 0, 1, "added to scores before they are weighed")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<ExpectedAttention>(p); },
          4};
}

}  // namespace pith
