// LESS (arXiv:2402.09398): features, the state that takes in what is evicted, and outputs with and without it, by what
// the engine calls.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/feature_maps.h"
#include "policy/act/less.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

class LessCase {
 public:
  explicit LessCase(const GgufFile& file)
      : file_(file),
        kv_heads_(static_cast<size_t>(file.param("kv_heads"))),
        group_(static_cast<size_t>(file.param("heads")) / kv_heads_),
        dim_(static_cast<size_t>(file.param("head_dim"))),
        rank_(static_cast<size_t>(file.param("rank"))),
        hidden_(static_cast<size_t>(file.param("hidden"))),
        n_(static_cast<size_t>(file.param("n"))),
        steps_(static_cast<size_t>(file.param("steps"))),
        all_(n_ + steps_),
        scores_(kv_heads_ * all_, 0),
        evicted_(kv_heads_ * all_, -1),
        maps_(MapsOf(file)),
        psi_(kv_heads_ * all_ * rank_),
        states_(kv_heads_ * StateSize()) {
    for (size_t h = 0; h < kv_heads_; ++h) {
      kernels::MapFeatures(maps_->KeyMap(0, static_cast<int>(h)), Row("in/k", h, 0).data(), dim_, all_,
                           psi_.data() + h * all_ * rank_, rank_);
    }
  }

  void Run() {
    for (size_t p = 0; p < n_; ++p) {
      for (size_t g = 0; g < group_ * kv_heads_; ++g) (void)Attend(g, p);
    }
    Evict(n_ - 1);
    const auto keep = [this](std::vector<float>& sums, std::vector<float>& mass) {
      for (size_t h = 0; h < kv_heads_; ++h) {
        const auto state = states_.begin() + static_cast<ptrdiff_t>(h * StateSize());
        const auto masses = state + static_cast<ptrdiff_t>(rank_ * dim_);
        sums.insert(sums.end(), state, masses);
        mass.insert(mass.end(), masses, masses + static_cast<ptrdiff_t>(rank_));
      }
    };
    keep(first_sums_, first_mass_);
    for (size_t p = n_; p < all_; ++p) {
      for (size_t g = 0; g < group_ * kv_heads_; ++g) {
        const Attended seen = Attend(g, p);
        std::vector<float> phi(rank_), joined(seen.output.begin(), seen.output.end());
        kernels::MapFeatures(maps_->QueryMap(0, static_cast<int>(g)), Row("in/q", g, p).data(), dim_, 1, phi.data(),
                             rank_);
        kernels::JoinState(phi, states_.data() + g / group_ * StateSize(), static_cast<float>(seen.log_sum), joined);
        phi_.insert(phi_.end(), phi.begin(), phi.end());
        out_.insert(out_.end(), joined.begin(), joined.end());
        sparse_.insert(sparse_.end(), seen.output.begin(), seen.output.end());
      }
      Evict(p);
    }
    keep(sums_, mass_);
  }

  void Check() const {
    const auto expect = [this](const std::vector<float>& ours, const std::string& name) {
      ExpectNumbers(ours, file_.tensor("out/less/" + name).f32, name, {1e-5, 1e-4});
    };
    expect(phi_, "phi");
    std::vector<float> scores;
    expect(psi_, "psi");
    ExpectExactly(evicted_, file_.tensor("out/less/evicted_after").i64, "evicted_after");
    expect(first_sums_, "h_first");
    expect(first_mass_, "z_first");
    expect(sums_, "h");
    expect(mass_, "z");
    for (size_t i = 0; i < scores_.size(); ++i)
      scores.push_back(evicted_[i] >= 0 ? -1 : static_cast<float>(scores_[i]));
    expect(scores, "score");
    expect(sparse_, "out_sparse");
    expect(out_, "out");
  }

 private:
  struct Attended {
    double log_sum;
    std::vector<double> output;
  };

  std::span<const float> Part(const std::string& name, size_t head, size_t count) const {
    return std::span(file_.tensor(name).f32).subspan(head * count, count);
  }
  std::span<const float> Row(const std::string& name, size_t head, size_t at) const {
    return Part(name, head * all_ + at, dim_);
  }
  size_t StateSize() const { return kernels::StateFloats(static_cast<int>(rank_), static_cast<int>(dim_)); }

  static std::shared_ptr<const LessMaps> MapsOf(const GgufFile& file) {
    const LessLayer layer{.num_heads = file.param("heads"),
                          .num_kv_heads = file.param("kv_heads"),
                          .dim = file.param("head_dim"),
                          .hidden = file.param("hidden"),
                          .query_w1 = file.tensor("in/phi/w1").f32,
                          .query_w2 = file.tensor("in/phi/w2").f32,
                          .key_w1 = file.tensor("in/psi/w1").f32,
                          .key_w2 = file.tensor("in/psi/w2").f32,
                          .key_w3 = file.tensor("in/psi/w3").f32,
                          .key_s1 = file.tensor("in/psi/s1").f32,
                          .key_s2 = file.tensor("in/psi/s2").f32};
    auto maps = LessMaps::Make(file.param("rank"), {layer});
    EXPECT_TRUE(maps) << maps.error().message;
    return *maps;
  }

  // Query head g at position p over what is there; scores are summed over the group.
  Attended Attend(size_t g, size_t p) {
    const size_t h = g / group_;
    const std::span<const float> query = Row("in/q", g, p);
    std::vector<double> logits(p + 1, 0);
    double most = -1e300, sum = 0;
    for (size_t j = 0; j <= p; ++j) {
      if (evicted_[h * all_ + j] >= 0) continue;
      const std::span<const float> key = Row("in/k", h, j);
      for (size_t d = 0; d < dim_; ++d) logits[j] += static_cast<double>(query[d]) * static_cast<double>(key[d]);
      logits[j] /= std::sqrt(static_cast<double>(dim_));
      most = std::max(most, logits[j]);
    }
    Attended seen{0, std::vector<double>(dim_, 0)};
    for (size_t j = 0; j <= p; ++j) {
      if (evicted_[h * all_ + j] < 0) sum += std::exp(logits[j] - most);
    }
    seen.log_sum = most + std::log(sum);
    for (size_t j = 0; j <= p; ++j) {
      if (evicted_[h * all_ + j] >= 0) continue;
      const double weight = std::exp(logits[j] - seen.log_sum);
      scores_[h * all_ + j] += weight;
      for (size_t d = 0; d < dim_; ++d) seen.output[d] += weight * static_cast<double>(Row("in/v", h, j)[d]);
    }
    return seen;
  }

  void Evict(size_t p) {
    const auto recent = static_cast<size_t>(file_.param("recent")), heavy = static_cast<size_t>(file_.param("heavy"));
    const bool sinks = file_.param("host") == 1;
    if (p + 1 <= recent) return;
    for (size_t h = 0; h < kv_heads_; ++h) {
      std::vector<size_t> rivals;
      for (size_t j = 0; j + recent <= p; ++j) {
        if (evicted_[h * all_ + j] < 0) rivals.push_back(j);
      }
      if (!sinks) {
        std::ranges::stable_sort(rivals, [&](size_t a, size_t b) {
          return scores_[h * all_ + a] > scores_[h * all_ + b];
        });
      }
      for (size_t i = heavy; i < rivals.size(); ++i) {
        evicted_[h * all_ + rivals[i]] = static_cast<int64_t>(p);
        kernels::AddToState(std::span(psi_).subspan((h * all_ + rivals[i]) * rank_, rank_), Row("in/v", h, rivals[i]),
                            states_.data() + h * StateSize());
      }
    }
  }

  const GgufFile& file_;
  const size_t kv_heads_, group_, dim_, rank_, hidden_, n_, steps_, all_;
  std::vector<double> scores_;
  std::vector<int64_t> evicted_;
  const std::shared_ptr<const LessMaps> maps_;
  std::vector<float> psi_, states_;
  std::vector<float> phi_, out_, sparse_, first_sums_, first_mass_, sums_, mass_;
};

PITH_GOLDEN_TEST(Methods, less, "in/phi/w1") {
  LessCase test(file);
  test.Run();
  test.Check();
}

}  // namespace
}  // namespace pith::testing
