// D2O's layer budgets (arXiv:2406.13035; policy/allocate/layer_density.h): layers whose attention is spread evenly get
// more. The variance is taken over the scores of each kv head (with score=h2o, the attention that its
// entries received, mean over the group), where the authors' code has each query head's own.
//
// The code gives layer l the share w_l L rho of its entries, cut at 1 and never made up for, and leaves
// layers 0, 1 and the last whole beside the budget. Under a hard budget what is cut goes to the others,
// and layers are left whole only with ends=whole, at the others' cost.
#include "policy/allocate/layer_density.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Density final : public Allocator {
 public:
  explicit Density(bool whole_ends) : whole_ends_(whole_ends) {}

  bool layer_local() const override { return false; }

  void Prepare(const LayerInputs&, LayerScores& scores) const override {
    std::vector<std::vector<float>> finite(scores.heads.size());
    std::vector<std::span<const float>> heads;
    for (size_t h = 0; h < finite.size(); ++h) {
      std::copy_if(scores.heads[h].begin(), scores.heads[h].end(), std::back_inserter(finite[h]),
                   [](float s) { return std::abs(s) < 1e30F; });
      heads.emplace_back(finite[h]);
    }
    scores.NotesOf(this).numbers = {LayerDensity(heads)};
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    std::vector<double> weights, room;
    size_t num_heads = 0;
    for (const LayerScores& layer : layers) {
      double entries = 0;
      for (const auto& head : layer.heads) entries += static_cast<double>(head.size());
      weights.push_back(std::exp(-layer.NotesOf(this).numbers.front()));
      room.push_back(entries);
      num_heads += layer.heads.size();
    }
    const int64_t total = TotalEntries(budget, num_heads);
    std::vector<double> share(layers.size(), 0);
    std::vector<bool> full(layers.size(), false);
    auto left = static_cast<double>(total);
    const auto fill = [&](size_t l) {
      share[l] = std::min(room[l], left);
      left -= share[l];
      full[l] = true;
    };
    if (whole_ends_ && layers.size() > 3) fill(0), fill(1), fill(layers.size() - 1);
    for (bool again = true; again;) {
      again = false;
      double sum = 0;
      for (size_t l = 0; l < layers.size(); ++l) sum += full[l] ? 0 : weights[l];
      const double rest = left;
      for (size_t l = 0; l < layers.size() && sum > 0; ++l) {
        if (full[l]) continue;
        share[l] = rest * weights[l] / sum;
        if (share[l] < room[l]) continue;
        fill(l);
        again = true;
        break;
      }
    }
    Spread(layers, share, total, out);
  }

 private:
  // Heads of a layer are equal; entries that rounding leaves over go to the first heads with room.
  static void Spread(std::span<const LayerScores> layers, const std::vector<double>& share, int64_t total,
                     Allocation& out) {
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < out[l].size(); ++h) {
        const int keep = static_cast<int>(share[l] / static_cast<double>(out[l].size()) + 1e-9);
        out[l][h] = {std::min(keep, static_cast<int>(layers[l].heads[h].size())), 0};
        total -= out[l][h].keep;
      }
    }
    for (bool any = true; any && total > 0;) {
      any = false;
      for (size_t l = 0; l < layers.size(); ++l) {
        for (size_t h = 0; h < out[l].size() && total > 0; ++h) {
          if (out[l][h].keep >= static_cast<int>(layers[l].heads[h].size())) continue;
          ++out[l][h].keep;
          --total;
          any = true;
        }
      }
    }
  }

  bool whole_ends_;
};

}  // namespace

StageInfo<Allocator> DensityStage() {
  return {
      "layers whose attention is spread evenly over their entries get more",
      {ChoiceParam("ends", "shared|whole", "whether layers 0, 1 and the last keep all they hold")},
      [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<Density>(p.Choice("ends") == 1); }};
}

}  // namespace pith
