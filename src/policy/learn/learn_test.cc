// Worked examples of EpiCache's and KVSharer's specifications, and allocators that read a file.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <numeric>
#include <set>

#include "policy/learn/episodes.h"
#include "policy/learn/key_stability.h"
#include "policy/learn/layer_budgets.h"
#include "policy/learn/layer_sharing.h"
#include "policy/policy.h"
#include "policy/policy_test_util.h"

namespace pith {
namespace {

TEST(EpiCacheExample, Budgets) {
  const std::vector<double> sigma = {.95, .80, .90, .60};
  EXPECT_EQ(EpiCacheBudgets(sigma, 100, 1, EpiCacheForm::kRescaled), (std::vector<int>{25, 102, 34, 239}));
  EXPECT_EQ(EpiCacheBudgets(sigma, 100, 1, EpiCacheForm::kCode), (std::vector<int>{25, 109, 36, 254}));
  EXPECT_EQ(EpiCacheBudgets(sigma, 100, 2, EpiCacheForm::kCode), (std::vector<int>{25, 61, 25, 332}));
  const std::vector<double> paper = EpiCachePaperBudgets(sigma, 100, 1);
  const double expected[] = {26.7, 106.7, 53.3, 213.3};
  for (size_t l = 0; l < 4; ++l) EXPECT_NEAR(paper[l], expected[l], 0.05);
  EXPECT_EQ(EpiCacheBudgets(std::vector<double>(3, 0.5), 7, 1, EpiCacheForm::kRescaled), (std::vector<int>{7, 7, 7}));
}

TEST(EpiCacheExample, Matching) {
  // Means of (1, 0), (-.28, .96) and of (.6, -.8), (.8, -.6); k-means itself would cut otherwise.
  const Episodes episodes{{0, 0, 1, 1}, {{.36, .48}, {.7, -.7}}, 0};
  const std::vector<float> question = {5 / std::sqrt(26.0F), 1 / std::sqrt(26.0F)};
  const std::vector<double> dot = MatchScores(question, episodes, false),
                            cosine = MatchScores(question, episodes, true);
  EXPECT_NEAR(dot[0], .4472, 1e-4);
  EXPECT_NEAR(dot[1], .5491, 1e-4);
  EXPECT_EQ(BestMatch(dot), 1);
  EXPECT_NEAR(cosine[0], .7452, 1e-4);
  EXPECT_NEAR(cosine[1], .5547, 1e-4);
  EXPECT_EQ(BestMatch(cosine), 0);
}

// Points around corners of a square.
std::vector<float> Corners(size_t per_corner) {
  std::mt19937 random(5);
  std::vector<float> points;
  for (size_t i = 0; i < 4 * per_corner; ++i) {
    const auto noise = [&] { return static_cast<float>(random() % 100) / 1000; };
    points.push_back(static_cast<float>(i % 2) + noise());
    points.push_back(static_cast<float>(i / 2 % 2) + noise());
  }
  return points;
}

TEST(Episodes, SeededClustersAreFoundAndRepeatable) {
  const std::vector<float> points = Corners(10);
  const Embeddings segments{points.data(), 40, 2};
  const Episodes once = ClusterFromSeed(segments, 4);
  ASSERT_EQ(once.centroids.size(), 4U);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(once.labels[i], once.labels[i % 4]) << "a corner was split";
  EXPECT_EQ(std::set<int>(once.labels.begin(), once.labels.begin() + 4).size(), 4U) << "corners were joined";
  EXPECT_EQ(ClusterFromSeed(segments, 4).labels, once.labels);
  for (const auto& members : Representatives(segments, once, 3)) {
    ASSERT_EQ(members.size(), 3U);
    EXPECT_TRUE(std::is_sorted(members.begin(), members.end()));
  }
}

TEST(Episodes, FewerSegmentsThanEpisodesGiveFewer) {
  const std::vector<float> points = {0, 0, 0, 0, 1, 1};
  EXPECT_EQ(ClusterFromSeed({points.data(), 3, 2}, 8).centroids.size(), 2U) << "two of the three are the same";
  EXPECT_TRUE(ClusterFromSeed({nullptr, 0, 2}, 4).centroids.empty());
  // An episode that nobody is nearest to is left out.
  const Episodes episodes = Cluster({points.data(), 3, 2}, {{0, 0}, {50, 50}, {1, 1}});
  EXPECT_EQ(episodes.labels, (std::vector<int>{0, 0, 1}));
}

TEST(KeyStability, WindowsAndTokens) {
  const std::vector<float> a = {1, 0, 0, 1, 1, 0}, b = {1, 0, 1, 0, 1, 0};
  const KeyPair keys{a.data(), b.data(), 1, 3, 2};
  EXPECT_NEAR(KeySimilarity(keys, 1), 2.0 / 3, 1e-9);
  EXPECT_NEAR(KeySimilarity(keys, 2), (0.5 + 1) / 2, 1e-9);  // the shorter last window counts as one
}

TEST(KvSharerExample, TheMostDissimilarPairsFirst) {
  const std::vector<MeanCache> caches = {{{0, 0, 0, 0}, {0, 0, 0, 0}},
                                         {{1, 0, 0, 1}, {0, 2, 2, 0}},
                                         {{3, 4, 0, 0}, {0, 1, 0, 1}},
                                         {{1, 1, 1, 1}, {3, 0, 3, 0}}};
  std::vector<std::vector<double>> distance(4, std::vector<double>(4, 0));
  for (size_t l = 0; l < 4; ++l) {
    for (size_t m = 0; m < l; ++m) distance[l][m] = CacheDistance(caches[l], caches[m], 2);
  }
  EXPECT_NEAR(distance[3][2], 2.8361, 1e-4);
  EXPECT_NEAR(distance[1][0], 1.5, 1e-4);
  const auto order = DissimilarFirst(distance);
  EXPECT_EQ(order, (std::vector<std::pair<int, int>>{{3, 2}, {3, 0}, {2, 1}, {2, 0}, {3, 1}, {1, 0}}));
  const auto mock = [](const SharingMap& map) -> Result<double> { return map[2] == 1 ? 0.6 : 0.7; };
  const Result<SharingSearch> search = FindSharing(4, order, 2, 0.5, mock);
  ASSERT_TRUE(search.has_value());
  EXPECT_EQ(search->map, (SharingMap{0, 1, 1, 1}));
  EXPECT_EQ(search->tries.size(), 2U) << "(3, 0) must be skipped: 3 shares already";
  EXPECT_EQ(WithPair({0, 0, 2, 2}, 2, 1), (SharingMap{0, 0, 0, 0})) << "followers move to the root";
  const auto broken = [](const SharingMap&) -> Result<double> { return InvalidArgument("no"); };
  EXPECT_FALSE(FindSharing(4, order, 2, 0.5, broken));
}

TEST(ShareByWeights, AddsUpAndRespectsTheLeast) {
  std::mt19937 random(8);
  for (int i = 0; i < 300; ++i) {
    std::vector<double> weights(1 + random() % 9);
    for (double& w : weights) w = random() % 4 == 0 ? 0 : static_cast<double>(random() % 1000);
    const int least = static_cast<int>(random() % 20);
    const auto total = static_cast<int64_t>(weights.size()) * (least + static_cast<int64_t>(random() % 50));
    const std::vector<int> shares = ShareByWeights(total, weights, least);
    EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), int64_t{0}), total);
    for (int share : shares) EXPECT_GE(share, least);
  }
}

class LayerFiles : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) {
    const std::string path = ::testing::TempDir() + fmt::format("pith_{}_{}.json", getpid(), paths_.size());
    std::ofstream(path) << text;
    paths_.push_back(path);
    return path;
  }
  void TearDown() override {
    for (const std::string& path : paths_) std::remove(path.c_str());
  }
  std::string ErrorOf(const std::string& recipe) {
    const Result<Recipe> parsed = ParseRecipe(recipe);
    return parsed ? "parsed" : parsed.error().message;
  }
  std::vector<std::string> paths_;
};

TEST_F(LayerFiles, SharesOfLayersAreFollowed) {
  const std::string path = Write(R"({"layers": [3, 2, 1, 0]})");
  for (const char* level : {"uniform", "pair"}) {
    const Result<Recipe> recipe = ParseRecipe(fmt::format("snapkv:window=2 alloc=file:{},level={}", path, level));
    ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
    EXPECT_EQ(ParseRecipe(recipe->text)->text, recipe->text);
    LayerShapeForTest shape;
    shape.entries = {60, 60};
    std::vector<LayerScores> scores(4);
    for (int l = 0; l < 4; ++l) {
      shape.layer = l;
      const TestLayer layer(shape, *recipe->policy, static_cast<uint32_t>(l));
      recipe->policy->Score(layer.inputs(), scores[static_cast<size_t>(l)]);
    }
    Budget budget;
    budget.keep = 18;
    std::vector<size_t> sums;
    std::vector<KeptHeads> selected = recipe->policy->SelectAll(scores, budget).value();
    for (const KeptHeads& layer : selected)
      sums.push_back(layer[0].size() + layer[1].size());
    EXPECT_EQ(sums, (std::vector<size_t>{72, 48, 24, 0})) << level;
    budget.keep = 36;  // the first layer's share is longer than its heads: the next ones get the rest
    sums.clear();
    selected = recipe->policy->SelectAll(scores, budget).value();
    for (const KeptHeads& layer : selected)
      sums.push_back(layer[0].size() + layer[1].size());
    EXPECT_EQ(sums, (std::vector<size_t>{120, 120, 48, 0})) << level;
  }
}

TEST_F(LayerFiles, AModelOfOtherLayersIsRefusedInOneSentence) {
  for (const char* stage : {"file", "epicache"}) {
    const std::string path = Write(R"({"layers": [1, 2, 3], "similarity": [0.9, 0.8, 0.7]})");
    const Result<Recipe> recipe = ParseRecipe(fmt::format("snapkv alloc={}:{}", stage, path));
    ASSERT_TRUE(recipe.has_value()) << recipe.error().message;
    EXPECT_TRUE(recipe->policy->CheckLayers(3));
    const Status status = recipe->policy->CheckLayers(30);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().message,
              fmt::format("alloc={}: {} has 3 layers, and this model has 30 with a cache to share", stage, path));
  }
}

TEST_F(LayerFiles, BrokenFilesAreRefusedInOneSentence) {
  EXPECT_EQ(ErrorOf("snapkv alloc=file"), "alloc=file needs a file, as in alloc=file:budgets.json");
  EXPECT_EQ(ErrorOf("snapkv alloc=epicache"), "alloc=epicache needs a file, as in alloc=epicache:similarity.json");
  EXPECT_EQ(ErrorOf("snapkv alloc=file:/no/such"), "/no/such is no file");
  EXPECT_EQ(ErrorOf("snapkv alloc=file:/dev/zero"), "/dev/zero is no file");
  EXPECT_EQ(ErrorOf("snapkv alloc=file:path="), "path of 'file' is empty");
  const std::string form = " is not of the form {\"layers\": [one number per layer]}";
  for (const char* text : {"", "[1, 2]", "{\"layers\": 3}", "{\"layer\": [1]}", "{\"layers\": [1"}) {
    const std::string path = Write(text);
    EXPECT_EQ(ErrorOf("snapkv alloc=file:" + path), path + form) << text;
  }
  for (const char* text : {"{\"layers\": [1, -2]}", "{\"layers\": [1, \"x\"]}", "{\"layers\": [1, null]}"}) {
    const std::string path = Write(text);
    EXPECT_EQ(ErrorOf("snapkv alloc=file:" + path), path + ": \"layers\"[1] is no number of at least 0") << text;
  }
  const std::string empty = Write(R"({"layers": []})");
  EXPECT_EQ(ErrorOf("snapkv alloc=file:" + empty), empty + ": \"layers\" is empty");
}

}  // namespace
}  // namespace pith
