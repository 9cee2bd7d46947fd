// Methods that do more with entries than drop them: ThinK, D2O, MiKV.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "policy/act/merge.h"
#include "policy/act/think.h"
#include "policy/allocate/layer_density.h"
#include "policy/select.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

constexpr Tolerance kLoose{1e-5, 1e-4};

std::vector<int32_t> Iota(size_t n) {
  std::vector<int32_t> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// A ratio that was stored as float32.
double Ratio(const GgufFile& file, const std::string& name) {
  return std::round(file.number("pith.param." + name) * 1e6) / 1e6;
}

std::span<const float> Part(const GgufFile& file, const std::string& name, size_t part, size_t size) {
  return std::span(file.tensor(name).f32).subspan(part * size, size);
}
std::vector<float> Rows(const GgufFile& file, const std::string& name, size_t part, size_t size) {
  const std::span<const float> from = Part(file, name, part, size);
  return {from.begin(), from.end()};
}
std::vector<int64_t> Numbers(const GgufFile& file, const std::string& name, size_t part, size_t size) {
  const auto& all = file.tensor(name).i64;
  return {all.begin() + static_cast<ptrdiff_t>(part * size), all.begin() + static_cast<ptrdiff_t>((part + 1) * size)};
}

PITH_GOLDEN_TEST(Methods, think, "out/think/l0/channels_kept") {
  const auto n = static_cast<size_t>(file.param("n")), dim = static_cast<size_t>(file.param("head_dim"));
  const auto kv_heads = static_cast<size_t>(file.param("kv_heads")), window = static_cast<size_t>(file.param("window"));
  const size_t group = static_cast<size_t>(file.param("heads")) / kv_heads;
  for (int l = 0; l < file.param("layers"); ++l) {
    const std::string name = fmt::format("out/think/l{}/channels_kept", l);
    std::vector<int64_t> mask(kv_heads * dim, 0);
    for (size_t h = 0; h < kv_heads; ++h) {
      std::vector<float> queries;
      for (size_t g = 0; g < group; ++g) {
        const std::vector<float> all = Rows(file, fmt::format("in/l{}/q", l), h * group + g, n * dim);
        queries.insert(queries.end(), all.end() - static_cast<ptrdiff_t>(window * dim), all.end());
      }
      ChannelEnergies energies(dim);
      energies.AddQueries(queries);
      energies.AddKeys(Part(file, fmt::format("in/l{}/k", l), h, n * dim));
      for (const uint16_t c : KeptChannels(energies.Scores(), 0.5)) mask[h * dim + c] = 1;
    }
    ExpectExactly(mask, file.tensor(name).i64, name);
  }
}

// The worked example of the paper's rule in plain numbers.
TEST(GoldenThink, ExampleByHand) {
  const std::vector<float> queries = {1, 0, 2, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1};
  const std::vector<float> keys = {1, 2, 0, 1, 0, 1, 1, 2, 2, 0, 1, 0, 1, 1, 0, 3, 0, 2, 1, 1};
  ChannelEnergies energies(4);
  energies.AddQueries(queries);
  energies.AddKeys(std::span(keys).first(8));
  energies.AddKeys(std::span(keys).subspan(8));
  const std::vector<float> scores = energies.Scores();
  ExpectNumbers(scores, {0.9F, 1.0F, 0.6F, 1.5F}, "scores");
  EXPECT_EQ(KeptChannels(scores, 0.5), (std::vector<uint16_t>{1, 3}));
  EXPECT_EQ(KeptChannels(scores, 0), (std::vector<uint16_t>{0, 1, 2, 3}));
  EXPECT_EQ(KeptChannels(std::vector<float>{1, 1, 1, 1}, 0.25), (std::vector<uint16_t>{1, 2, 3}));
  EXPECT_EQ(KeptChannels(std::vector<float>(64), 0.4).size(), 39U);
}

// One layer's cache, kv head by kv head.
struct Head {
  std::vector<float> keys, values, sums;
  std::vector<int32_t> positions;
};

class D2oLayer {
 public:
  D2oLayer(const GgufFile& file, int layer, int heavy, int recent, bool by_slot)
      : file_(file), in_(fmt::format("in/l{}/", layer)), heavy_(heavy), recent_(recent),
        n_(static_cast<size_t>(file.param("n"))), dim_(static_cast<size_t>(file.param("head_dim"))),
        group_(static_cast<size_t>(file.param("heads") / file.param("kv_heads"))),
        heads_(static_cast<size_t>(file.param("kv_heads"))), plans_(heads_.size()) {
    options_.alpha = Ratio(file, "alpha");
    options_.beta = Ratio(file, "beta");
    options_.by_slot = by_slot;
    for (size_t h = 0; h < heads_.size(); ++h) {
      heads_[h].keys = Rows(file, in_ + "k", h, n_ * dim_);
      heads_[h].values = Rows(file, in_ + "v", h, n_ * dim_);
      heads_[h].positions = Iota(n_);
      heads_[h].sums.assign(n_, 0);
      for (size_t g = 0; g < group_; ++g) {
        const std::span<const float> sums = Part(file, in_ + "colsum", h * group_ + g, n_);
        for (size_t j = 0; j < n_; ++j) heads_[h].sums[j] += sums[j];
      }
    }
  }

  void Step(int t) {
    std::vector<std::vector<int32_t>> kept(heads_.size());
    for (size_t h = 0; h < heads_.size(); ++h) {
      Append(t, h);
      kept[h] = Select(heads_[h]);
      FindNearest(heads_[h].keys.data(), static_cast<int>(heads_[h].positions.size()), static_cast<int>(dim_), kept[h],
                  plans_[h]);
    }
    threshold_ = NextThreshold(options_, threshold_, plans_);
    ChooseMerged(options_, threshold_, plans_);
    targets_.assign(heads_.size(), {});
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      for (const int32_t c : plans_[h].target) targets_[h].push_back(head.positions[static_cast<size_t>(c)]);
      std::vector<int32_t> changed;
      MergeEntries(options_, plans_[h], head.keys.data(), static_cast<int>(dim_), head.values.data(),
                   static_cast<int>(dim_), changed);
      evicted_.resize(heads_.size());
      evicted_[h].clear();
      for (const int32_t e : plans_[h].evicted) evicted_[h].push_back(head.positions[static_cast<size_t>(e)]);
      Compact(head, kept[h]);
    }
  }

  const std::vector<Head>& heads() const { return heads_; }
  const std::vector<MergePlan>& plans() const { return plans_; }
  double threshold() const { return threshold_; }
  const std::vector<int64_t>& evicted(size_t h) const { return evicted_[h]; }
  const std::vector<int64_t>& targets(size_t h) const { return targets_[h]; }
  size_t size() const { return static_cast<size_t>(heavy_ + recent_); }

 private:
  void Append(int t, size_t h) {
    Head& head = heads_[h];
    const size_t at = static_cast<size_t>(t) * heads_.size() + h;
    for (const float x : Part(file_, in_ + "k_dec", at, dim_)) head.keys.push_back(x);
    for (const float x : Part(file_, in_ + "v_dec", at, dim_)) head.values.push_back(x);
    head.positions.push_back(static_cast<int32_t>(n_) + t);
    head.sums.push_back(0);
    const std::vector<float> queries = Rows(file_, in_ + "q_dec", at, group_ * dim_);
    const std::vector<int32_t> now = {head.positions.back()};
    const std::vector<float> attention = Attention(queries.data(), dim_, static_cast<int>(group_), now,
                                                   head.keys.data(), head.positions, static_cast<int>(dim_));
    for (size_t i = 0; i < attention.size(); ++i) head.sums[i % head.sums.size()] += attention[i];
  }

  std::vector<int32_t> Select(const Head& head) const {
    std::vector<float> scores = head.sums;
    std::fill_n(scores.begin(), file_.param("n_sink"), kProtected);
    ProtectNewest(scores, recent_);
    return SelectTop(scores, {}, {}, heavy_ + recent_);
  }

  void Compact(Head& head, const std::vector<int32_t>& kept) const {
    Head out;
    for (const int32_t i : kept) {
      const auto row = static_cast<ptrdiff_t>(static_cast<size_t>(i) * dim_), width = static_cast<ptrdiff_t>(dim_);
      out.keys.insert(out.keys.end(), head.keys.begin() + row, head.keys.begin() + row + width);
      out.values.insert(out.values.end(), head.values.begin() + row, head.values.begin() + row + width);
      out.positions.push_back(head.positions[static_cast<size_t>(i)]);
      out.sums.push_back(head.sums[static_cast<size_t>(i)]);
    }
    head = std::move(out);
  }

  const GgufFile& file_;
  const std::string in_;
  const int heavy_, recent_;
  const size_t n_, dim_, group_;
  MergeOptions options_;
  std::vector<Head> heads_;
  std::vector<MergePlan> plans_;
  std::vector<std::vector<int64_t>> evicted_, targets_;
  double threshold_ = std::nan("");
};

// All heads' part of one step.
void ExpectStep(const GgufFile& file, const std::string& out, const std::string& kind, size_t part,
                const D2oLayer& layer) {
  std::vector<int64_t> evicted, targets, merged;
  std::vector<float> similarity;
  for (size_t h = 0; h < layer.heads().size(); ++h) {
    evicted.insert(evicted.end(), layer.evicted(h).begin(), layer.evicted(h).end());
    targets.insert(targets.end(), layer.targets(h).begin(), layer.targets(h).end());
    merged.insert(merged.end(), layer.plans()[h].merged.begin(), layer.plans()[h].merged.end());
    similarity.insert(similarity.end(), layer.plans()[h].similarity.begin(), layer.plans()[h].similarity.end());
  }
  const std::string at = out + kind;
  ExpectExactly(evicted, Numbers(file, at + "_evicted", part, evicted.size()), at + "_evicted");
  ExpectExactly(targets, Numbers(file, at + "_target", part, targets.size()), at + "_target");
  ExpectExactly(merged, Numbers(file, at + "_recalled", part, merged.size()), at + "_recalled");
  ExpectNumbers(similarity, Rows(file, at + "_u", part, similarity.size()), at + "_u");
}

void ExpectCache(const GgufFile& file, const std::string& out, const std::string& prefix, const D2oLayer& layer) {
  std::vector<float> keys, values;
  for (const Head& head : layer.heads()) {
    keys.insert(keys.end(), head.keys.begin(), head.keys.end());
    values.insert(values.end(), head.values.begin(), head.values.end());
  }
  ExpectNumbers(keys, file.tensor(out + prefix + "k").f32, out + prefix + "k", kLoose);
  ExpectNumbers(values, file.tensor(out + prefix + "v").f32, out + prefix + "v", kLoose);
}

void CheckLayer(const GgufFile& file, const std::string& method, int l, int heavy, int recent) {
  const std::string out = fmt::format("out/{}/l{}/", method, l);
  D2oLayer layer(file, l, heavy, recent, method == "d2o_slot");
  for (int t = 0; t < file.param("steps"); ++t) {
    SCOPED_TRACE(fmt::format("{} step {}", out, t));
    layer.Step(t);
    ExpectNumbers({static_cast<float>(layer.threshold())}, Rows(file, out + "tau", static_cast<size_t>(t), 1), "tau");
    std::vector<int64_t> positions;
    for (const Head& head : layer.heads())
      positions.insert(positions.end(), head.positions.begin(), head.positions.end());
    ExpectExactly(positions, Numbers(file, out + "pos", static_cast<size_t>(t), positions.size()), "pos");
    ExpectStep(file, out, t == 0 ? "first" : "later", t == 0 ? 0 : static_cast<size_t>(t - 1), layer);
    if (t == 0) ExpectCache(file, out, "first_", layer);
  }
  ExpectCache(file, out, "", layer);
  std::vector<float> sums;
  for (const Head& head : layer.heads()) {
    sums.insert(sums.end(), static_cast<size_t>(file.param("n_sink")), -1.0F);
    sums.insert(sums.end(), head.sums.begin() + file.param("n_sink"), head.sums.end());
  }
  ExpectNumbers(sums, file.tensor(out + "sum").f32, out + "sum");
}

void CheckD2o(const GgufFile& file, const std::string& method) {
  const auto n = static_cast<size_t>(file.param("n"));
  std::vector<double> densities;
  std::vector<float> f;
  for (int l = 0; l < file.param("layers"); ++l) {
    std::vector<std::span<const float>> heads;
    for (size_t h = 0; h < static_cast<size_t>(file.param("heads")); ++h) {
      heads.push_back(Part(file, fmt::format("in/l{}/colsum", l), h, n));
    }
    densities.push_back(LayerDensity(heads));
    f.push_back(static_cast<float>(densities.back()));
  }
  ExpectNumbers(f, file.tensor("out/d2o/f").f32, "out/d2o/f");
  const double heavy = Ratio(file, "hh_ratio"), recent = Ratio(file, "recent_ratio"), rho = heavy + recent;
  std::vector<float> ratios;
  std::vector<int64_t> budgets;
  for (const double ratio : LayerRatios(densities, rho)) {
    ratios.push_back(static_cast<float>(ratio));
    budgets.push_back(static_cast<int64_t>(static_cast<double>(n + 1) * ratio * heavy / rho));
    budgets.push_back(static_cast<int64_t>(static_cast<double>(n + 1) * ratio * recent / rho));
  }
  ExpectNumbers(ratios, file.tensor("out/d2o/ratio").f32, "out/d2o/ratio");
  ExpectExactly(budgets, file.tensor("out/d2o/budgets").i64, "out/d2o/budgets");
  for (int l = file.param("first_layer"); l <= file.param("last_layer"); ++l) {
    CheckLayer(file, method, l, static_cast<int>(budgets[2 * static_cast<size_t>(l)]),
               static_cast<int>(budgets[2 * static_cast<size_t>(l) + 1]));
  }
}

PITH_GOLDEN_TEST(Methods, d2o, "out/d2o/f") { CheckD2o(file, "d2o"); }
PITH_GOLDEN_TEST(Methods, d2o_slot, "out/d2o/f") { CheckD2o(file, "d2o_slot"); }

TEST(GoldenD2o, LayersByHand) {
  const std::vector<double> ratios = LayerRatios(std::vector<double>{0.2, 0.5, 0.3, 0.4}, 0.2);
  ExpectNumbers({ratios.begin(), ratios.end()}, {.230921F, .171071F, .208946F, .189062F}, "ratios");
  const std::vector<std::vector<float>> sums = {{3, 1, .5F, .5F}, {2, 1, 1, 1}, {1.25F, 1.25F, 1.25F, 1.25F}};
  const std::vector<std::span<const float>> heads(sums.begin(), sums.end());
  EXPECT_NEAR(LayerDensity(heads), 0.392157, 1e-6);
}

// The worked example of the specification, with the paper's convex weights too.
TEST(GoldenD2o, ExampleByHand) {
  const std::vector<int32_t> kept = {0, 2, 5, 6, 7};
  for (const bool convex : {false, true}) {
    std::vector<float> keys = {1, 0, .9F, .1F, 0, 1, .6F, .8F, .1F, 1, .8F, .6F, 1, 1, 0, 1};
    std::vector<float> values(16);
    std::iota(values.begin(), values.end(), 0.0F);
    std::vector<MergePlan> plans(1);
    MergeOptions options;
    options.weigh_exp = convex;
    FindNearest(keys.data(), 8, 2, kept, plans[0]);
    EXPECT_EQ(plans[0].evicted, (std::vector<int32_t>{1, 3, 4}));
    EXPECT_EQ(plans[0].target, (std::vector<int32_t>{0, 6, 2}));
    const double threshold = NextThreshold(options, std::nan(""), plans);
    EXPECT_NEAR(threshold, 0.992957, 1e-6);
    EXPECT_NEAR(NextThreshold(options, 0.5, plans), 0.25 + threshold / 2, 1e-9);
    ChooseMerged(options, threshold, plans);
    EXPECT_EQ(plans[0].merged, (std::vector<uint8_t>{1, 0, 1}));
    std::vector<int32_t> changed;
    MergeEntries(options, plans[0], keys.data(), 2, values.data(), 2, changed);
    EXPECT_EQ(changed, (std::vector<int32_t>{0, 2}));
    const std::vector<float> merged = {keys[0], keys[1], values[0], values[1], keys[4], keys[5], values[4], values[5]};
    ExpectNumbers(
        merged,
        convex ? std::vector<float>{.950153F, .049847F, .996942F, 1.996942F, .049876F, 1, 5.995037F, 6.995037F}
               : std::vector<float>{.947248F, .049694F, .993884F, 1.990826F, .049752F, .997519F, 5.980149F, 6.977667F},
        "merged");
    EXPECT_EQ(keys[6], .6F);  // entry 3 changed nothing
  }
}

}  // namespace
}  // namespace pith::testing
