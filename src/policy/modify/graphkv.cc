// Near-copies of the best entries are lowered before the cut (GraphKV, arXiv:2509.00388; formulas
// from notes on the paper, there is no released code). The best candidates are sources; each source
// multiplies the scores of its nearest neighbours by 1 - gamma * cos of the keys.
//
// Ours: a source is lowered by higher-ranked sources only, so one of several copies survives
// (form=literal: by any). Sources are chosen once (reselect=1: anew in every round). Cosines are
// clamped to [0, 1] and factors to at least 1e-6, so exact copies keep their order.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

constexpr double kLeastFactor = 1e-6;

class GraphKv final : public Modifier {
 public:
  explicit GraphKv(const Params& p)
      : share_(p.Real("share")),
        sources_(p.Int("sources")),
        neighbours_(p.Int("neighbours")),
        rounds_(p.Int("rounds")),
        gamma_(p.Real("gamma")),
        literal_(p.Choice("form") == 1),
        reselect_(p.Int("reselect") == 1) {}

  uint32_t needs() const override { return kNeedKeys; }
  bool reranks_inputs() const override { return true; }
  void Adjust(const LayerInputs&, LayerScores& scores) const override { MakePositive(scores); }

  void Rerank(HeadRank& rank) const override {
    if (rank.inputs == nullptr || rank.inputs->keys == nullptr) return;
    std::vector<size_t> candidates;
    for (size_t i = 0; i < rank.scores.size(); ++i) {
      const bool pinned = !rank.pinned().empty() && rank.pinned()[i] != 0;
      if (!pinned && rank.scores[i] != kProtected) candidates.push_back(i);
    }
    const int taken = static_cast<int>(rank.scores.size() - candidates.size());
    const int budget = rank.budget.keep - taken;
    if (budget <= 0 || candidates.size() <= static_cast<size_t>(budget)) return;
    const int automatic = std::max(1, static_cast<int>(share_ * budget));
    const int sources = std::min(sources_ > 0 ? sources_ : automatic, static_cast<int>(candidates.size()));
    const int neighbours = neighbours_ > 0 ? neighbours_ : std::max(1, budget / sources);

    std::vector<double> factors;
    for (int round = 0; round < rounds_; ++round) {
      if (round == 0 || reselect_) {
        factors = Factors(rank, candidates, static_cast<size_t>(sources), static_cast<size_t>(neighbours));
      }
      for (size_t c = 0; c < candidates.size(); ++c) {
        float& score = rank.scores[candidates[c]];
        score = static_cast<float>(static_cast<double>(score) * factors[c]);
      }
    }
  }

 private:
  // One factor per candidate. Neighbours are found in float32; their cosines are then taken in double,
  // since 1 - cos of near-copies has few digits left.
  std::vector<double> Factors(const HeadRank& rank, const std::vector<size_t>& candidates, size_t num_sources,
                              size_t num_neighbours) const {
    const auto dim = static_cast<size_t>(rank.key_dim);
    const float* keys = rank.inputs->keys;
    const size_t count = candidates.size();
    const std::vector<float> directions = Directions(keys, candidates, dim);
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return rank.scores[candidates[a]] > rank.scores[candidates[b]]; });
    std::vector<size_t> rank_of(count);
    for (size_t r = 0; r < count; ++r) rank_of[order[r]] = r;

    std::vector<double> factors(count, 1.0);
    std::vector<float> cosine(count);
    std::vector<size_t> near(count);
    for (size_t r = 0; r < num_sources; ++r) {
      const size_t source = order[r];
      std::fill(cosine.begin(), cosine.end(), 0.0F);
      for (size_t d = 0; d < dim; ++d) {
        const float* row = directions.data() + d * count;
        const float x = row[source];
        for (size_t c = 0; c < count; ++c) cosine[c] += x * row[c];
      }
      cosine[source] = -2;  // not its own neighbour
      std::iota(near.begin(), near.end(), size_t{0});
      const size_t wanted = std::min(num_neighbours, count - 1);
      std::partial_sort(near.begin(), near.begin() + static_cast<ptrdiff_t>(wanted), near.end(),
                        [&](size_t a, size_t b) { return cosine[a] != cosine[b] ? cosine[a] > cosine[b] : a < b; });
      for (size_t k = 0; k < wanted; ++k) {
        if (!literal_ && rank_of[near[k]] < r) continue;
        const double exact = Cosine(keys + candidates[source] * dim, keys + candidates[near[k]] * dim, dim);
        factors[near[k]] *= std::max(1 - gamma_ * std::clamp(exact, 0.0, 1.0), kLeastFactor);
      }
    }
    return factors;
  }

  // The candidates' keys at unit length, transposed: [dim, candidates].
  static std::vector<float> Directions(const float* keys, const std::vector<size_t>& candidates, size_t dim) {
    std::vector<float> out(dim * candidates.size());
    for (size_t c = 0; c < candidates.size(); ++c) {
      const float* key = keys + candidates[c] * dim;
      float squares = 0;
      for (size_t d = 0; d < dim; ++d) squares += key[d] * key[d];
      const float scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
      for (size_t d = 0; d < dim; ++d) out[d * candidates.size() + c] = key[d] * scale;
    }
    return out;
  }

  static double Cosine(const float* a, const float* b, size_t dim) {
    double dot = 0, aa = 0, bb = 0;
    for (size_t d = 0; d < dim; ++d) {
      const double x = static_cast<double>(a[d]);
      const double y = static_cast<double>(b[d]);
      dot += x * y;
      aa += x * x;
      bb += y * y;
    }
    const double lengths = std::sqrt(aa * bb);
    return lengths > 0 ? dot / lengths : 0;
  }

  double share_;
  int sources_;
  int neighbours_;
  int rounds_;
  double gamma_;
  bool literal_;
  bool reselect_;
};

}  // namespace

StageInfo<Modifier> GraphKvStage() {
  return {"lowers near-copies of the best entries",
          {RealParam("share", 0.3, 0, 1, "sources, as a share of the budget"),
           IntParam("sources", 0, 0, 65536, "sources; 0: by share"),
           IntParam("neighbours", 0, 0, 65536, "neighbours of each source; 0: budget / sources"),
           IntParam("rounds", 1, 0, 16, "how often scores are lowered"), RealParam("gamma", 1, 0, 1, "strength"),
           ChoiceParam("form", "ours|literal", "whether sources lower higher-ranked ones"),
           IntParam("reselect", 0, 0, 1, "1: choose sources anew in every round")},
          [](const Params& p) -> std::unique_ptr<Modifier> { return std::make_unique<GraphKv>(p); }};
}

}  // namespace pith
