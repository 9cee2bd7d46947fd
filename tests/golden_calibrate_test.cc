// EpiCache (arXiv:2509.17396) and KVSharer (arXiv:2410.18517): what they calibrate, against the authors'
// code, and EpiCache's eviction block by block.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <numeric>

#include "policy/learn/episodes.h"
#include "policy/learn/key_stability.h"
#include "policy/learn/layer_budgets.h"
#include "policy/learn/layer_sharing.h"
#include "policy/policy.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

std::vector<int64_t> Wide(const std::vector<int>& numbers) { return {numbers.begin(), numbers.end()}; }
std::vector<float> Narrow(const std::vector<double>& numbers) {
  std::vector<float> narrow;
  for (double x : numbers) narrow.push_back(static_cast<float>(x));
  return narrow;
}
size_t Size(const GgufFile& file, const std::string& name) { return static_cast<size_t>(file.param(name)); }

std::vector<double> Similarities(const GgufFile& file, size_t window) {
  std::vector<double> similarities;
  for (size_t l = 0; l < Size(file, "layers"); ++l) {
    const KeyPair keys{file.tensor(fmt::format("in/l{}/cal_k_full", l)).f32.data(),
                       file.tensor(fmt::format("in/l{}/cal_k_block", l)).f32.data(), Size(file, "kv_heads"),
                       Size(file, "calibration"), Size(file, "head_dim")};
    similarities.push_back(KeySimilarity(keys, window));
  }
  return similarities;
}

void CheckBudgets(const GgufFile& file) {
  const std::vector<double> sigma = Similarities(file, Size(file, "sim_window"));
  const std::vector<double> per_token = Similarities(file, 1);
  const double alpha = file.number("pith.param.alpha");
  ExpectNumbers(Narrow(sigma), file.tensor("out/epicache/sigma").f32, "sigma");
  ExpectNumbers(Narrow(per_token), file.tensor("out/epicache/sigma_token").f32, "sigma_token");
  const std::vector<int> ours = EpiCacheBudgets(sigma, file.param("budget"), alpha, EpiCacheForm::kRescaled);
  ExpectExactly(Wide(ours), file.tensor("out/epicache/budget").i64, "budget");
  EXPECT_EQ(std::accumulate(ours.begin(), ours.end(), 0), file.param("layers") * file.param("budget"));
  ExpectExactly(Wide(EpiCacheBudgets(sigma, file.param("budget"), alpha, EpiCacheForm::kCode)),
                file.tensor("out/epicache/budget_code").i64, "budget_code");
  ExpectNumbers(Narrow(EpiCachePaperBudgets(per_token, file.param("budget"), alpha)),
                file.tensor("out/epicache/budget_paper").f32, "budget_paper");
}

// A file of similarities for alloc=epicache, gone at the end of the scope.
class SimilarityFile {
 public:
  explicit SimilarityFile(const std::vector<float>& similarities)
      : path_(::testing::TempDir() + "pith_golden_similarity.json") {
    std::ofstream(path_) << fmt::format("{{\"similarity\": [{:.9g}]}}", fmt::join(similarities, ","));
  }
  ~SimilarityFile() { std::remove(path_.c_str()); }
  SimilarityFile(const SimilarityFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Entries of one layer that are in the cache, and their scores by the patched prompt of one block.
struct CachedLayer {
  std::vector<std::vector<int32_t>> entries;  // [kv heads], token indices

  LayerScores Score(const GgufFile& file, const Policy& policy, size_t layer, size_t block,
                    std::vector<float>& shown) const {
    const size_t n = Size(file, "n"), dim = Size(file, "head_dim"), patch = Size(file, "patch");
    const size_t group = Size(file, "heads") / entries.size();
    std::vector<HeadInputs> heads(entries.size());
    std::vector<std::vector<float>> columns(entries.size());
    std::vector<float*> pointers(entries.size());
    shown.assign(entries.size() * n, -1.0F);
    for (size_t h = 0; h < entries.size(); ++h) {
      std::vector<float> keys;
      for (int32_t i : entries[h]) {
        const float* key =
            file.tensor(fmt::format("in/l{}/k", layer)).f32.data() + (h * n + static_cast<size_t>(i)) * dim;
        keys.insert(keys.end(), key, key + dim);
      }
      const std::vector<int32_t> after(patch, static_cast<int32_t>(n));
      const float* queries = file.tensor(fmt::format("in/l{}/patch_q", layer)).f32.data() +
                             (block * Size(file, "heads") + h * group) * patch * dim;
      const std::vector<float> probs = Attention(queries, patch * dim, static_cast<int>(group), after, keys.data(),
                                                 entries[h], static_cast<int>(dim));
      columns[h].assign(entries[h].size(), 0.0F);
      pointers[h] = columns[h].data();
      Observation seen;
      seen.group = static_cast<int>(group);
      seen.num_queries = static_cast<int>(patch);
      seen.num_entries = static_cast<int>(entries[h].size());
      seen.probabilities = probs.data();
      seen.query_positions = after;
      seen.positions = entries[h];
      policy.Observe(seen, {&pointers[h], 1});
      heads[h].num_entries = seen.num_entries;
      heads[h].positions = entries[h];
      heads[h].columns = {&pointers[h], 1};
      for (size_t j = 0; j < entries[h].size(); ++j) shown[h * n + static_cast<size_t>(entries[h][j])] = columns[h][j];
    }
    LayerInputs inputs;
    inputs.layer = static_cast<int>(layer);
    inputs.num_layers = file.param("layers");
    inputs.group = static_cast<int>(group);
    inputs.heads = heads;
    LayerScores scores;
    policy.Score(inputs, scores);
    return scores;
  }

  int64_t count() const {
    int64_t sum = 0;
    for (const auto& head : entries) sum += static_cast<int64_t>(head.size());
    return sum;
  }
};

void CheckEviction(const GgufFile& file, const std::string& method, const std::string& level) {
  const SimilarityFile similarities(file.tensor("out/epicache/sigma").f32);
  const std::string recipe = fmt::format("score=guide alloc=epicache:{},alpha={:.9g},level={}", similarities.path(),
                                         file.number("pith.param.alpha"), level);
  const std::shared_ptr<const Policy> policy = RecipeOf(recipe).policy;
  Budget budget;
  budget.keep = file.param("budget");
  budget.keep_exact = file.param("budget");
  const size_t n = Size(file, "n"), num_layers = Size(file, "layers"), kv_heads = Size(file, "kv_heads");
  std::vector<CachedLayer> cache(num_layers, {std::vector<std::vector<int32_t>>(kv_heads)});
  for (size_t b = 0; b < Size(file, "blocks"); ++b) {
    std::vector<LayerScores> scores;
    for (size_t l = 0; l < num_layers; ++l) {
      for (auto& head : cache[l].entries) {
        for (size_t i = b * Size(file, "block"); i < (b + 1) * Size(file, "block"); ++i)
          head.push_back(static_cast<int32_t>(i));
      }
      std::vector<float> shown;
      scores.push_back(cache[l].Score(file, *policy, l, b, shown));
      const auto& expected = file.tensor(fmt::format("out/{}/l{}/score", method, l)).f32;
      const auto first = expected.begin() + static_cast<ptrdiff_t>(b * kv_heads * n);
      ExpectNumbers(shown, {first, first + static_cast<ptrdiff_t>(kv_heads * n)}, fmt::format("score l{} b{}", l, b));
    }
    const std::vector<KeptHeads> kept = policy->SelectAll(scores, budget).value();
    for (size_t l = 0; l < num_layers; ++l) {
      std::vector<int64_t> mask(kv_heads * n, 0);
      const int64_t most = file.tensor("out/epicache/budget").i64[l] * static_cast<int64_t>(kv_heads);
      if (cache[l].count() > most) {
        for (size_t h = 0; h < kv_heads; ++h) {
          std::vector<int32_t> stay;
          for (int32_t i : kept[l][h]) stay.push_back(cache[l].entries[h][static_cast<size_t>(i)]);
          cache[l].entries[h] = std::move(stay);
        }
        EXPECT_LE(cache[l].count(), most);
      }
      for (size_t h = 0; h < kv_heads; ++h) {
        for (int32_t i : cache[l].entries[h]) mask[h * n + static_cast<size_t>(i)] = 1;
      }
      const auto& expected = file.tensor(fmt::format("out/{}/l{}/kept", method, l)).i64;
      const auto first = expected.begin() + static_cast<ptrdiff_t>(b * kv_heads * n);
      ExpectExactly(mask, {first, first + static_cast<ptrdiff_t>(kv_heads * n)}, fmt::format("kept l{} b{}", l, b));
    }
  }
}

void CheckEpisodes(const GgufFile& file) {
  const size_t dim = Size(file, "embedding");
  const Embeddings segments{file.tensor("in/embeddings").f32.data(), Size(file, "segments"), dim};
  std::vector<std::vector<double>> centroids;
  for (size_t e = 0; e < Size(file, "episodes"); ++e) {
    const float* row = file.tensor("in/centroids").f32.data() + e * dim;
    centroids.emplace_back(row, row + dim);
  }
  const Episodes episodes = Cluster(segments, centroids);
  ASSERT_EQ(episodes.centroids.size(), Size(file, "episodes"));
  ExpectExactly(Wide(episodes.labels), file.tensor("out/epicache/labels").i64, "labels");
  std::vector<double> flat;
  for (const auto& c : episodes.centroids) flat.insert(flat.end(), c.begin(), c.end());
  ExpectNumbers(Narrow(flat), file.tensor("out/epicache/centroids").f32, "centroids");
  ExpectNumbers(Narrow(CentroidCosines(segments, episodes)), file.tensor("out/epicache/centroid_cos").f32,
                "centroid_cos");
  std::vector<int64_t> chosen;
  for (const std::vector<int>& members : Representatives(segments, episodes, file.param("n_rep"))) {
    for (size_t i = 0; i < Size(file, "n_rep"); ++i) chosen.push_back(i < members.size() ? members[i] : -1);
  }
  ExpectExactly(chosen, file.tensor("out/epicache/representatives").i64, "representatives");
  std::vector<double> scores;
  std::vector<int64_t> by_dot, by_cosine;
  for (size_t i = 0; i < Size(file, "questions"); ++i) {
    const std::span<const float> question(file.tensor("in/questions").f32.data() + i * dim, dim);
    const std::vector<double> dot = MatchScores(question, episodes, false);
    scores.insert(scores.end(), dot.begin(), dot.end());
    by_dot.push_back(BestMatch(dot));
    by_cosine.push_back(BestMatch(MatchScores(question, episodes, true)));
  }
  ExpectNumbers(Narrow(scores), file.tensor("out/epicache/match_score").f32, "match_score");
  ExpectExactly(by_dot, file.tensor("out/epicache/match_dot").i64, "match_dot");
  ExpectExactly(by_cosine, file.tensor("out/epicache/match_cos").i64, "match_cos");
}

PITH_GOLDEN_TEST(Calibrate, epicache, "in/embeddings") {
  CheckBudgets(file);
  CheckEpisodes(file);
  CheckEviction(file, "epicache", "pair");
}

PITH_GOLDEN_TEST(Calibrate, epicache_uniform, "in/embeddings") { CheckEviction(file, "epicache_uniform", "uniform"); }

PITH_GOLDEN_TEST(Calibrate, kvsharer, "in/similarity") {
  const size_t num_layers = Size(file, "layers"), texts = Size(file, "texts");
  std::vector<MeanCache> caches;
  for (size_t l = 0; l < num_layers; ++l) {
    caches.push_back({MeanOverTexts(file.tensor(fmt::format("in/l{}/k", l)).f32, texts),
                      MeanOverTexts(file.tensor(fmt::format("in/l{}/v", l)).f32, texts)});
  }
  std::vector<std::vector<double>> distance(num_layers, std::vector<double>(num_layers, 0.0));
  std::vector<double> flat;
  for (size_t l = 0; l < num_layers; ++l) {
    for (size_t m = 0; m < l; ++m) distance[l][m] = CacheDistance(caches[l], caches[m], Size(file, "head_dim"));
    flat.insert(flat.end(), distance[l].begin(), distance[l].end());
  }
  ExpectNumbers(Narrow(flat), file.tensor("out/kvsharer/distance").f32, "distance");
  const std::vector<std::pair<int, int>> order = DissimilarFirst(distance);
  std::vector<int64_t> pairs;
  for (const auto& [l, m] : order) pairs.insert(pairs.end(), {l, m});
  ExpectExactly(pairs, file.tensor("out/kvsharer/order").i64, "order");
  const std::vector<float>& given = file.tensor("in/similarity").f32;
  size_t next = 0;
  const Result<SharingSearch> search =
      FindSharing(static_cast<int>(num_layers), order, file.param("share"), file.number("pith.param.threshold"),
                  [&](const SharingMap&) -> Result<double> {
                    if (next == given.size()) return InvalidArgument("more tries than the authors' code makes");
                    return static_cast<double>(given[next++]);
                  });
  ASSERT_TRUE(search.has_value()) << search.error().message;
  std::vector<int64_t> tried, accepted;
  for (const auto& attempt : search->tries) {
    tried.insert(tried.end(), attempt.map.begin(), attempt.map.end());
    accepted.push_back(attempt.accepted);
  }
  ExpectExactly(tried, file.tensor("out/kvsharer/tried").i64, "tried");
  ExpectExactly(accepted, file.tensor("out/kvsharer/accepted").i64, "accepted");
  ExpectExactly(Wide(search->map), file.tensor("out/kvsharer/map").i64, "map");
}

}  // namespace
}  // namespace pith::testing
