// Scorers that come through the C interface, on plain arrays.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "pith/pith.h"
#include "policy/policy_test_util.h"
#include "policy/registered.h"
#include "policy/registry.h"

namespace pith {
namespace {

// The registry lasts as long as the process, so that every test has names of its own.
bool ByPosition(void*, const pith_layer_input* layer, float* const* scores) {
  for (int h = 0; h < layer->num_heads; ++h) {
    for (int i = 0; i < layer->heads[h]->num_entries; ++i)
      scores[h][i] = static_cast<float>(layer->heads[h]->positions[i]);
  }
  return true;
}

// snapkv, from outside.
bool ByWindow(void*, const pith_layer_input* layer, float* const* scores) {
  for (int h = 0; h < layer->num_heads; ++h) (void)pith_window_attention(layer, h, 5, scores[h]);
  return true;
}

// peak, from outside.
bool ByColumn(void*, const pith_layer_input* layer, float* const* scores) {
  for (int h = 0; h < layer->num_heads; ++h) {
    std::copy_n(layer->heads[h]->columns[0], layer->heads[h]->num_entries, scores[h]);
  }
  return true;
}
void KeepLargestSeen(void*, const pith_observation* seen, float* const* columns) {
  for (int i = 0; i < seen->num_entries; ++i) columns[0][i] = std::max(columns[0][i], seen->largest[i]);
}

pith_scorer_options WindowOptions() {
  pith_scorer_options options = PITH_INIT(pith_scorer_options);
  options.needs = PITH_NEED_WINDOW_PROBS;
  options.window = 4;
  options.aggregates = true;
  return options;
}

KeptHeads Choose(const std::string& recipe, LayerShapeForTest shape = {}) {
  const Result<Recipe> parsed = ParseRecipe(recipe);
  EXPECT_TRUE(parsed) << recipe << ": " << (parsed ? "" : parsed.error().message);
  if (!parsed) return {};
  const TestLayer layer(shape, *parsed->policy, 3);
  LayerScores scores;
  parsed->policy->Score(layer.inputs(), scores);
  EXPECT_EQ(scores.fault, "");
  const Budget budget{.keep = 10};
  return parsed->policy->layer_local() ? parsed->policy->Select(layer.inputs(), scores, budget).value()
                                       : parsed->policy->SelectAll({&scores, 1}, budget).value().front();
}

TEST(CApiPolicy, AScorerFromOutsideChoosesLikeTheSameOneInside) {
  const pith_scorer_options window = WindowOptions();
  ASSERT_EQ(pith_register_scorer("outside_snapkv", ByWindow, nullptr, &window), PITH_OK) << pith_last_error();
  pith_scorer_options peak = PITH_INIT(pith_scorer_options);
  peak.needs = PITH_NEED_EVERY_QUERY | PITH_NEED_LARGEST;
  const pith_column column = {sizeof column, "most", 0};
  peak.columns = &column;
  peak.num_columns = 1;
  peak.observe = KeepLargestSeen;
  ASSERT_EQ(pith_register_scorer("outside_peak", ByColumn, nullptr, &peak), PITH_OK) << pith_last_error();
  for (const char* rest : {"", " agg=max", " alloc=ada", " agg=defensive alloc=global", " mod=criticalkv"}) {
    EXPECT_EQ(Choose(fmt::format("score=outside_snapkv{}", rest)), Choose(fmt::format("score=snapkv:window=4{}", rest)))
        << rest;
  }
  EXPECT_EQ(Choose("score=outside_snapkv:window=3"), Choose("score=snapkv:window=3"));
  EXPECT_NE(Choose("score=outside_snapkv:window=3"), Choose("score=snapkv:window=4")) << "the control";
  EXPECT_EQ(Choose("score=outside_peak"), Choose("score=peak"));
  EXPECT_NE(Choose("score=outside_peak"), Choose("score=outside_snapkv")) << "the control";
}

TEST(CApiPolicy, MixesWithEveryStageThatTheSameOneInsideMixesWith) {
  const pith_scorer_options window = WindowOptions();
  ASSERT_EQ(pith_register_scorer("mixing", ByWindow, nullptr, &window), PITH_OK) << pith_last_error();
  int num_mixed = 0;
  for (const StageEntry* entry : Stages()) {
    // Those that other tests have registered are none of its business.
    const bool registered =
        std::ranges::any_of(RegisteredStages(), [&](const RegisteredStage* s) { return &s->entry == entry; });
    if (entry->kind == StageKind::kScore || registered) continue;
    const bool reads = !entry->params.empty() && entry->params.front().kind == ParamSpec::Kind::kText;
    const std::string word = fmt::format(" {}={}{}", KeyOf(entry->kind), entry->name, reads ? ":missing.json" : "");
    const Result<Recipe> inside = ParseRecipe("score=snapkv" + word), outside = ParseRecipe("score=mixing" + word);
    EXPECT_EQ(inside.has_value(), outside.has_value()) << word;
    if (!inside || !outside || reads) continue;
    EXPECT_EQ(inside->policy->layer_local(), outside->policy->layer_local()) << word;
    size_t kept = 0;
    for (const auto& head : Choose("score=mixing" + word)) kept += head.size();
    if (!outside->policy->keeps_everything()) {
      EXPECT_LE(kept, 30U) << word;
    }
    ++num_mixed;
  }
  EXPECT_GE(num_mixed, 15);
}

TEST(CApiPolicy, MomentsAndRotationAreThoseThatTheLayerHas) {
  struct Seen {
    std::vector<const float*> means, covariances;
    std::vector<pith_rotated_pair> rotation;
  } seen;
  const pith_score_fn note = [](void* user, const pith_layer_input* layer, float* const* scores) {
    auto& own = *static_cast<Seen*>(user);
    for (int h = 0; h < layer->num_heads; ++h) {
      own.means.push_back(layer->heads[h]->query_means);
      own.covariances.push_back(layer->heads[h]->query_covariances);
    }
    own.rotation.assign(layer->rotation, layer->rotation + layer->num_rotated);
    return ByPosition(nullptr, layer, scores);
  };
  pith_scorer_options options = PITH_INIT(pith_scorer_options);
  options.needs = PITH_NEED_KEYS | PITH_NEED_QUERY_MOMENTS;
  ASSERT_EQ(pith_register_scorer("with_moments", note, &seen, &options), PITH_OK) << pith_last_error();
  const Result<Recipe> recipe = ParseRecipe("score=with_moments");
  ASSERT_TRUE(recipe);
  const TestLayer layer({}, *recipe->policy, 5);
  LayerScores scores;
  recipe->policy->Score(layer.inputs(), scores);
  for (size_t h = 0; h < 3; ++h) {
    EXPECT_EQ(seen.means[h], layer.head(h).query_means);
    EXPECT_EQ(seen.covariances[h], layer.head(h).query_covariances);
  }
  const std::vector<RotatedPair>& pairs = layer.inputs().rotation->pairs;
  ASSERT_EQ(seen.rotation.size(), pairs.size());
  EXPECT_EQ(seen.rotation[1].imaginary, pairs[1].imaginary);
  EXPECT_EQ(seen.rotation[1].angle, pairs[1].angle);
}

TEST(CApiPolicy, ParametersComeFromTheRecipe) {
  struct Seen {
    double share = 0, count = 0;
  } seen;
  const pith_score_fn note = [](void* user, const pith_layer_input* layer, float* const* scores) {
    *static_cast<Seen*>(user) = {layer->params[0], layer->params[1]};
    return ByPosition(nullptr, layer, scores);
  };
  const pith_param params[] = {{sizeof(pith_param), "share", "of it", 0.5, 0, 1, false},
                               {sizeof(pith_param), "count", "of them", 3, 1, 9, true}};
  pith_scorer_options options = PITH_INIT(pith_scorer_options);
  options.params = params;
  options.num_params = 2;
  ASSERT_EQ(pith_register_scorer("with_params", note, &seen, &options), PITH_OK) << pith_last_error();
  Choose("score=with_params");
  EXPECT_EQ(seen.share, 0.5);
  EXPECT_EQ(seen.count, 3);
  Choose("score=with_params:share=0.25,count=7");
  EXPECT_EQ(seen.share, 0.25);
  EXPECT_EQ(seen.count, 7);
  const Result<Recipe> wrong = ParseRecipe("score=with_params:count=11");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, "count=11 of 'with_params' is out of range; the nearest valid value is 9");
  struct Found {
    std::string name, parameters;
  } found;
  pith_list_stages(
      [](void* user, const pith_stage_info* stage) {
        if (std::string(stage->name) == "with_params") *static_cast<Found*>(user) = {stage->name, stage->parameters};
      },
      &found);
  EXPECT_EQ(found.parameters, "share=0.5 (0..1), count=3 (1..9)");
}

TEST(CApiPolicy, ScoresThatAreNoNumbersAndFailuresAreFaults) {
  struct Case {
    const char* name;
    float score;
    bool result;
    const char* fault;
  };
  static const Case cases[] = {
      {"gives_nan", NAN, true, "score=gives_nan gave entry 7 of head 1 in layer 0 the score nan"},
      {"gives_low", -INFINITY, true, "score=gives_low gave entry 7 of head 1 in layer 0 the score -inf"},
      {"gives_false", 0, false, "score=gives_false failed in layer 0"},
      {"gives_high", INFINITY, true, ""},
  };
  for (const Case& one : cases) {
    const pith_score_fn score = [](void* user, const pith_layer_input* layer, float* const* scores) {
      (void)ByPosition(nullptr, layer, scores);
      scores[1][7] = static_cast<const Case*>(user)->score;
      return static_cast<const Case*>(user)->result;
    };
    ASSERT_EQ(pith_register_scorer(one.name, score, const_cast<Case*>(&one), nullptr), PITH_OK) << pith_last_error();
    const Result<Recipe> recipe = ParseRecipe(fmt::format("score={}", one.name));
    ASSERT_TRUE(recipe);
    const TestLayer layer({}, *recipe->policy, 5);
    LayerScores scores;
    recipe->policy->Score(layer.inputs(), scores);
    EXPECT_TRUE(scores.fault.starts_with(one.fault)) << scores.fault;
    EXPECT_EQ(scores.fault.empty(), *one.fault == '\0') << scores.fault;
  }
}

TEST(CApiPolicy, WhatMakesNoSenseIsRefused) {
  const auto refused = [](const char* name, const pith_scorer_options& options) {
    EXPECT_EQ(pith_register_scorer(name, ByPosition, nullptr, &options), PITH_ERROR_INVALID_ARGUMENT) << name;
    return std::string(pith_last_error());
  };
  pith_scorer_options fine = PITH_INIT(pith_scorer_options);
  EXPECT_EQ(refused("snapkv", fine), "score=snapkv is there already");
  ASSERT_EQ(pith_register_scorer("taken", ByPosition, nullptr, &fine), PITH_OK) << pith_last_error();
  EXPECT_EQ(refused("taken", fine), "score=taken is there already");
  for (const char* name : {"", "Upper", "with space", "a=b", "a:b", "\xff"}) {
    EXPECT_NE(refused(name, fine).find("is no name for a scorer"), std::string::npos) << name;
  }
  EXPECT_EQ(pith_register_scorer("nothing", nullptr, nullptr, &fine), PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(pith_register_scorer(nullptr, ByPosition, nullptr, &fine), PITH_ERROR_INVALID_ARGUMENT);
  pith_scorer_options bad = fine;
  bad.needs = 1u << 31;
  refused("refused", bad);
  bad = fine;
  bad.needs = PITH_NEED_EVERY_QUERY;
  refused("refused", bad);
  bad = fine;
  bad.needs = PITH_NEED_REPEAT;
  refused("refused", bad);
  bad = fine;
  bad.needs = PITH_NEED_LARGEST;
  refused("refused", bad);
  bad = fine;
  bad.aggregates = true;
  refused("refused", bad);
  const pith_param twice[] = {{sizeof(pith_param), "p", "", 1, 0, 2, false},
                              {sizeof(pith_param), "p", "", 1, 0, 2, false}};
  bad = fine;
  bad.params = twice;
  bad.num_params = 2;
  EXPECT_EQ(refused("refused", bad), "the parameter 'p' of score=refused is taken");
  const pith_param outside = {sizeof(pith_param), "p", "", 3, 0, 2, false};
  bad.params = &outside;
  bad.num_params = 1;
  refused("refused", bad);
  EXPECT_EQ(FindStage(StageKind::kScore, "refused"), nullptr);
}

TEST(CApiPolicy, ThreadsMayRegisterAndParseAtOnce) {
  constexpr int kThreads = 8;
  std::vector<pith_status> same(kThreads), own(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      same[static_cast<size_t>(t)] = pith_register_scorer("raced", ByPosition, nullptr, nullptr);
      const std::string name = fmt::format("raced_{}", t);
      own[static_cast<size_t>(t)] = pith_register_scorer(name.c_str(), ByPosition, nullptr, nullptr);
      EXPECT_TRUE(ParseRecipe("score=" + name + " alloc=ada"));
      EXPECT_TRUE(ParseRecipe("snapkv"));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count(same.begin(), same.end(), PITH_OK), 1);
  EXPECT_EQ(std::count(own.begin(), own.end(), PITH_OK), kThreads);
  // A program that was compiled before a field was there: what it lacks is the default.
  pith_scorer_options old{};
  old.struct_size = offsetof(pith_scorer_options, needs);
  old.needs = ~0u;
  EXPECT_EQ(pith_register_scorer("of_an_old_program", ByPosition, nullptr, &old), PITH_OK) << pith_last_error();
}

TEST(CApiPolicy, RecipesAreNormalisedIntoTheCallersBuffer) {
  size_t length = 0;
  ASSERT_EQ(pith_recipe_normalise("snapkv:window=64", nullptr, 0, &length), PITH_OK);
  std::string text(length, 'x');
  char small[6] = "?????";
  ASSERT_EQ(pith_recipe_normalise("snapkv:window=64", small, sizeof small, &length), PITH_OK);
  ASSERT_EQ(pith_recipe_normalise("snapkv:window=64", text.data(), text.size() + 1, &length), PITH_OK);
  EXPECT_EQ(length, text.size());
  EXPECT_EQ(text.substr(0, 5), small);
  EXPECT_EQ(std::strlen(text.c_str()), text.size());
  EXPECT_EQ(pith_recipe_normalise("snapkw", nullptr, 0, &length), PITH_ERROR_NOT_FOUND);
  EXPECT_EQ(length, 0U);
  EXPECT_NE(std::string(pith_last_error()).find("did you mean 'snapkv'?"), std::string::npos) << pith_last_error();
}

}  // namespace
}  // namespace pith
