// Worked examples of the methods' papers and code, small enough to check by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "policy/policy.h"
#include "policy/policy_test_util.h"
#include "policy/registry.h"
#include "policy/select.h"
#include "policy/terms/caote_change.h"

namespace pith {
namespace {

std::vector<int32_t> Iota(int n) {
  std::vector<int32_t> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

std::shared_ptr<const Policy> PolicyOf(const std::string& text) {
  const Result<Recipe> recipe = ParseRecipe(text);
  EXPECT_TRUE(recipe.has_value()) << (recipe ? "" : recipe.error().message);
  return recipe->policy;
}

struct OneHead {
  HeadInputs head;
  LayerInputs layer;
  std::vector<int32_t> positions;
  LayerScores scores;

  explicit OneHead(std::vector<int32_t> at) : positions(std::move(at)) {
    head.num_entries = static_cast<int>(positions.size());
    head.positions = positions;
    layer.num_layers = 1;
    layer.next_position = positions.back() + 1;
  }

  std::vector<int32_t> Keep(const Policy& policy, int keep) {
    layer.heads = {&head, 1};
    policy.Score(layer, scores);
    Budget budget;
    budget.keep = keep;
    std::vector<int32_t> kept;
    const KeptHeads indices = policy.Select(layer, scores, budget).value();
    for (int32_t i : indices.front()) kept.push_back(positions[static_cast<size_t>(i)]);
    return kept;
  }
};

using Positions = std::vector<int32_t>;

TEST(StreamingLlmExample, SinksAndNewest) {
  // s = 2, r = 3
  const auto policy = PolicyOf("streamingllm:sinks=2");
  EXPECT_EQ(OneHead({0, 1, 2, 3, 4}).Keep(*policy, 5), (Positions{0, 1, 2, 3, 4}));
  EXPECT_EQ(OneHead({0, 1, 2, 3, 4, 5}).Keep(*policy, 5), (Positions{0, 1, 3, 4, 5}));
  EXPECT_EQ(OneHead({0, 1, 3, 4, 5, 6}).Keep(*policy, 5), (Positions{0, 1, 4, 5, 6}));
  EXPECT_EQ(OneHead({0, 1, 4, 5, 6, 7}).Keep(*policy, 5), (Positions{0, 1, 5, 6, 7}));
  EXPECT_EQ(OneHead(Iota(10)).Keep(*PolicyOf("streamingllm"), 5), (Positions{0, 1, 2, 3, 9}));
  EXPECT_EQ(OneHead(Iota(10)).Keep(*PolicyOf("window"), 3), (Positions{7, 8, 9}));
}

TEST(LazyEvictionExample, BothForms) {
  const std::vector<std::pair<std::string, Positions>> forms = {{"code", {0, 4, 5, 6}}, {"paper", {0, 3, 5, 6}}};
  for (const auto& [form, last_kept] : forms) {
    const auto policy = PolicyOf("lazyeviction:window=2,alpha=0.2,form=" + form);
    Positions positions = {0, 1, 2};
    std::vector<float> last(3, 0), longest(3, 0);
    const auto step = [&](int query, std::vector<float> row, int num_queries = 1) {
      if (num_queries == 1) {
        positions.push_back(query);
        last.push_back(0);
        longest.push_back(0);
      }
      Positions queries(static_cast<size_t>(num_queries));
      std::iota(queries.begin(), queries.end(), query - num_queries + 1);
      Observation seen;
      seen.num_queries = num_queries;
      seen.num_entries = static_cast<int>(positions.size());
      seen.probabilities = row.data();
      seen.query_positions = queries;
      seen.positions = positions;
      float* columns[] = {last.data(), longest.data()};
      policy->Observe(seen, columns);
    };
    const auto evict = [&](int keep) {
      OneHead one(positions);
      float* columns[] = {last.data(), longest.data()};
      one.head.columns = columns;
      const Positions kept = one.Keep(*policy, keep);
      std::vector<float> new_last, new_longest;
      for (int32_t p : kept) {
        const auto i = static_cast<size_t>(std::find(positions.begin(), positions.end(), p) - positions.begin());
        new_last.push_back(last[i]);
        new_longest.push_back(longest[i]);
      }
      positions = kept;
      last = new_last;
      longest = new_longest;
      return one.scores.heads.front();
    };
    const auto times = [&] {  // in decode steps: t = position - 2
      std::vector<float> t;
      for (float l : last) t.push_back(l - 2);
      return t;
    };
    step(2, std::vector<float>(9, 0.33F), 3);
    step(3, {.5F, .2F, .1F, .2F});
    EXPECT_EQ(times(), (std::vector<float>{1, 1, 0, 1}));
    EXPECT_EQ(longest, (std::vector<float>{1, 1, 0, 1}));
    step(4, {.6F, .05F, .05F, .1F, .2F});
    EXPECT_EQ(times(), (std::vector<float>{2, 1, 0, 1, 2}));
    EXPECT_EQ(longest, (std::vector<float>{1, 1, 0, 1, 1}));
    const std::vector<float> first = evict(4);
    EXPECT_EQ(positions, (Positions{0, 1, 3, 4}));
    if (form == "code") {
      EXPECT_NEAR(first[0], 1.5379, 1e-4);
      EXPECT_NEAR(first[1], 1.2384, 1e-4);
      EXPECT_NEAR(first[2], 0, 1e-4);
    }
    step(5, {.5F, .05F, .25F, .1F, .1F});
    EXPECT_EQ(times(), (std::vector<float>{3, 1, 3, 2, 2}));
    EXPECT_EQ(longest, (std::vector<float>{1, 1, 2, 1, 0}));
    step(6, {.3F, .05F, .3F, .05F, .1F, .2F});
    EXPECT_EQ(times(), (std::vector<float>{4, 1, 4, 2, 2, 4}));
    EXPECT_EQ(longest, (std::vector<float>{1, 1, 2, 1, 0, 1}));
    evict(4);
    EXPECT_EQ(positions, last_kept) << form;
  }
}

TEST(LazyEviction, CountersGrowBeyondSixteenBits) {
  const auto policy = PolicyOf("lazyeviction:window=1,alpha=0.5");
  Positions positions = {0, 99999};
  float last[] = {10, 99999}, longest[] = {0, 1}, row[] = {1, 0};
  Positions query = {100001};
  Observation seen{0, 0, 1, 1, 2, row, query, positions};
  float* columns[] = {last, longest};
  policy->Observe(seen, columns);
  EXPECT_EQ(last[0], 100001);
  EXPECT_EQ(longest[0], 99991);
}

TEST(DBudgetExample, CodeAndPaperForms) {
  const std::vector<float> rows = {.40F, .10F, .02F, .01F, .02F, .05F, .10F, .30F,
                                   .60F, .05F, .01F, .03F, .01F, .05F, .05F, .20F};
  const auto keep = [&](const std::string& form, int cap) {
    OneHead one(Iota(8));
    one.head.window_probs = rows.data();
    one.layer.group = 2;
    one.layer.window = 1;
    return one.Keep(*PolicyOf("dbudgetkv:threshold=0.01,sinks=2,skip=0,floor=0,form=" + form), cap);
  };
  EXPECT_EQ(keep("code", 8), (Positions{0, 1, 5, 6, 7}));
  EXPECT_EQ(keep("paper", 8), (Positions{0, 1, 6, 7}));
  EXPECT_EQ(keep("code", 4), (Positions{0, 1, 6, 7}));  // the budget caps it
}

TEST(RkvExample, TimeOrder) {
  const std::vector<float> keys = {1, 0, 1, .1F, 0, 1, .9F, .2F, -1, 0, .1F, 1, 1, 1, 0, -1};
  const std::vector<float> queries = {1, 0, 0, 1, 0, 2, -1, 0};
  OneHead one(Iota(8));
  one.head.keys = keys.data();
  one.head.window_queries = queries.data();
  one.layer.group = 2;
  one.layer.key_dim = 2;
  one.layer.window = 2;
  EXPECT_EQ(one.Keep(*PolicyOf("rkv:window=2,pool=3,lambda=0.1"), 5), (Positions{2, 4, 5, 6, 7}));
  const float expected[] = {-.1401F, -.1133F, -.0980F, -.1165F, -.0428F, -.0904F};
  for (size_t j = 0; j < 6; ++j) EXPECT_NEAR(one.scores.heads[0][j], expected[j], 1e-4F);
}

TEST(GraphKvExample, SourcesLowerTheirNeighbours) {
  const std::vector<float> keys = {1, 0, .96F, .28F, .6F, .8F, 0, 1, -1, 0, .28F, .96F};
  const auto run = [&](const std::string& settings) {
    Params params(FindStage(StageKind::kModify, "graphkv")->params);
    std::map<std::string, std::string> values = {{"neighbours", "2"}};
    for (std::string_view word : {std::string_view(settings)}) {
      size_t at = 0;
      while (at < word.size()) {
        const size_t end = std::min(word.find(',', at), word.size());
        const std::string_view part = word.substr(at, end - at);
        values[std::string(part.substr(0, part.find('=')))] = std::string(part.substr(part.find('=') + 1));
        at = end + 1;
      }
    }
    for (const auto& [name, value] : values) EXPECT_TRUE(params.Set("graphkv", name, value).has_value());
    LayerScores layer;
    layer.heads = {{.9F, .8F, .7F, .5F, .3F, .2F}};
    HeadInputs inputs;
    inputs.num_entries = 6;
    inputs.keys = keys.data();
    std::vector<float> ties;
    HeadRank rank{0, {3, 0}, &layer, &inputs, 2, layer.heads[0], &ties};
    MakeModifier("graphkv", params)->Rerank(rank);
    return std::pair(layer.heads[0], SelectTop(layer.heads[0], {}, {}, 3));
  };
  const auto expect = [](const std::vector<float>& ours, std::vector<float> theirs) {
    for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(ours[i], theirs[i], 1e-4F + 1e-3F * theirs[i]) << i;
  };
  const auto [one, one_kept] = run("sources=1");
  expect(one, {.9F, .032F, .28F, .5F, .3F, .2F});
  EXPECT_EQ(one_kept, (Positions{0, 3, 4}));
  const auto [two, two_kept] = run("sources=2");
  expect(two, {.9F, .032F, .056F, .5F, .3F, .2F});
  EXPECT_EQ(two_kept, (Positions{0, 3, 4}));
  const auto [literal, literal_kept] = run("sources=2,form=literal");
  expect(literal, {.036F, .032F, .056F, .5F, .3F, .2F});
  EXPECT_EQ(literal_kept, (Positions{3, 4, 5}));
  const auto [twice, twice_kept] = run("sources=2,rounds=2");
  expect(twice, {.9F, .0013F, .0045F, .5F, .3F, .2F});
  EXPECT_EQ(run("rounds=0").second, (Positions{0, 1, 2}));
  EXPECT_EQ(run("sources=2,gamma=0").second, (Positions{0, 1, 2}));
}

TEST(Caote, EqualsTheChangeByBruteForce) {
  std::mt19937 random(4);
  std::uniform_real_distribution<float> uniform(0.01F, 1);
  const size_t n = 9;
  const int dim = 5;
  std::vector<float> weights(n), values(n * static_cast<size_t>(dim)), change(n);
  for (float& w : weights) w = uniform(random);
  for (float& v : values) v = uniform(random) - 0.5F;
  OutputChange(weights, values.data(), dim, false, change);
  const auto output = [&](size_t without) {
    std::vector<double> out(static_cast<size_t>(dim), 0);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      if (i == without) continue;
      sum += static_cast<double>(weights[i]);
      for (size_t d = 0; d < out.size(); ++d) {
        out[d] += static_cast<double>(weights[i]) * static_cast<double>(values[i * out.size() + d]);
      }
    }
    for (double& x : out) x /= sum;
    return out;
  };
  const std::vector<double> with = output(n);
  for (size_t j = 0; j < n; ++j) {
    const std::vector<double> without = output(j);
    double squares = 0;
    for (size_t d = 0; d < with.size(); ++d) squares += (with[d] - without[d]) * (with[d] - without[d]);
    EXPECT_NEAR(static_cast<double>(change[j]), std::sqrt(squares), 1e-6);
  }
  const std::vector<float> certain = {0, 1, 0};
  std::vector<float> result(3);
  OutputChange(certain, values.data(), dim, false, result);
  EXPECT_TRUE(std::isinf(result[1]));
  EXPECT_EQ(result[0], 0);
}

TEST(H2o, TheNewestHalfStaysAndTheHeaviestOfTheOthers) {
  const auto policy = PolicyOf("h2o");
  OneHead one(Iota(6));
  float sums[] = {5, 1, 4, 3, .1F, .1F};
  float* columns[] = {sums};
  one.head.columns = columns;
  EXPECT_EQ(one.Keep(*policy, 4), (Positions{0, 2, 4, 5}));
  EXPECT_EQ(one.Keep(*policy, 5), (Positions{0, 2, 3, 4, 5}));
}

TEST(Roco, NeverTakesAnUnstableEntryWhileAnotherIsLeft) {
  // Budget below 30: the newest 10 would be needed to fill the feasible set.
  const auto policy = PolicyOf("roco");
  OneHead one(Iota(12));
  std::vector<float> sum(12, 1), squares(12, 1), count(12, 1);
  sum[0] = 9;
  squares[0] = 81;
  float* columns[] = {sum.data(), squares.data(), count.data()};
  one.head.columns = columns;
  const Positions kept = one.Keep(*policy, 11);
  EXPECT_EQ(kept.front(), 0);  // the larger mean stays, entry 1 goes
  EXPECT_EQ(kept[1], 2);
}

TEST(Select, PinnedEntriesStayWhateverTheBudget) {
  const std::vector<float> scores = {9, 8, 7, 6, 5};
  const std::vector<uint8_t> pinned = {0, 0, 1, 0, 1};
  EXPECT_EQ(SelectTop(scores, {}, pinned, 3), (Positions{0, 2, 4}));
  EXPECT_EQ(SelectTop(scores, {}, pinned, 1), (Positions{2, 4}));
  EXPECT_EQ(SelectTop(scores, {}, pinned, 0), (Positions{2, 4}));
  EXPECT_EQ(SelectTop(scores, {}, pinned, 99), (Positions{0, 1, 2, 3, 4}));
}

TEST(Select, TiesGoToTheTieBreakerThenToTheNewer) {
  const std::vector<float> scores = {1, 1, 1, 1};
  EXPECT_EQ(SelectTop(scores, {}, {}, 2), (Positions{2, 3}));
  EXPECT_EQ(SelectTop(scores, std::vector<float>{4, 3, 2, 1}, {}, 2), (Positions{0, 1}));
}

TEST(Select, PoolingCountsThePaddingInTheDivisor) {
  const std::vector<float> in = {5, 0, 0, 10};
  std::vector<float> out(4);
  Pool(in, {5, false}, out);
  EXPECT_EQ(out, (std::vector<float>{1, 3, 3, 2}));
  Pool(in, {3, true}, out);
  EXPECT_EQ(out, (std::vector<float>{5, 5, 10, 10}));
}

// Worked example of the specification of KVzip: one layer, two heads, four context entries.
TEST(KvZipExample, FourWaysToCut) {
  LayerScores layer;
  layer.num_layers = 1;
  layer.heads = {{.1688F, .5238F, .6185F, .2377F}, {.5964F, .2797F, .1029F, .5519F}};
  Budget budget;
  budget.keep = 2;
  const auto cut = [&](const std::string& allocator) {
    return PolicyOf("score=peak alloc=" + allocator)->SelectAll({&layer, 1}, budget).value().front();
  };
  EXPECT_EQ(cut("global"), (KeptHeads{{1, 2}, {0, 3}}));
  EXPECT_EQ(cut("global:strict=1"), (KeptHeads{{2}, {0, 3}}));
  EXPECT_EQ(cut("heads"), (KeptHeads{{0, 1, 2, 3}, {}}));
  EXPECT_EQ(cut("heads:strict=1"), (KeptHeads{{}, {}}));
  layer.pinned = {{1, 0, 0, 0}, {1, 0, 0, 0}};
  EXPECT_EQ(cut("heads"), (KeptHeads{{0}, {0}})) << "pinned entries leave no room for a whole head";
  budget.keep = 3;
  EXPECT_EQ(cut("heads"), (KeptHeads{{0, 1, 2, 3}, {0}}));
}

TEST(Random, AnEntryKeepsItsDraw) {
  // Evicting in two steps ends where evicting at once does.
  const auto policy = PolicyOf("random");
  const Positions at_once = OneHead(Iota(100)).Keep(*policy, 20);
  EXPECT_EQ(OneHead(OneHead(Iota(100)).Keep(*policy, 50)).Keep(*policy, 20), at_once);
  EXPECT_NE(OneHead(Iota(100)).Keep(*PolicyOf("random:seed=1"), 20), at_once);
}

}  // namespace
}  // namespace pith
