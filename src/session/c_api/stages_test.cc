// Aggregators, modifiers and allocators that come through the C interface, on plain arrays.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "pith/pith.h"
#include "policy/policy_test_util.h"
#include "policy/registered.h"
#include "policy/registry.h"
#include "policy/select.h"

namespace pith {
namespace {

// Scores of two layers by a recipe that parses.
struct Scored {
  explicit Scored(const std::string& text) : recipe(ParseRecipe(text).value()) {
    for (int l = 0; l < 2; ++l) {
      LayerShapeForTest shape{.entries = {40, 25, 33}, .layer = l, .num_layers = 2, .pinned = 2};
      layers.push_back(std::make_unique<TestLayer>(shape, *recipe.policy, static_cast<uint32_t>(l + 3)));
      recipe.policy->Score(layers.back()->inputs(), scores.emplace_back());
    }
  }
  Result<std::vector<KeptHeads>> Select() const {
    const Budget budget{.keep = 10, .keep_fraction = 0.3};
    if (!recipe.policy->layer_local()) return recipe.policy->SelectAll(scores, budget);
    std::vector<KeptHeads> kept;
    for (size_t l = 0; l < layers.size(); ++l) {
      PITH_ASSIGN_OR_RETURN(KeptHeads own, recipe.policy->Select(layers[l]->inputs(), scores[l], budget));
      kept.push_back(std::move(own));
    }
    return kept;
  }
  std::string Fault() const {
    for (const LayerScores& layer : scores) {
      if (!layer.fault.empty()) return layer.fault;
    }
    const Result<std::vector<KeptHeads>> kept = Select();
    return kept ? "" : kept.error().message;
  }

  Recipe recipe;
  std::vector<std::unique_ptr<TestLayer>> layers;
  std::vector<LayerScores> scores;
};

std::vector<KeptHeads> Choose(const std::string& recipe) {
  const Scored scored(recipe);
  EXPECT_EQ(scored.Fault(), "") << recipe;
  return scored.Select().value();
}

// agg=mean and agg=max.
bool MeanOfRows(void*, const pith_window_rows* rows, float* numbers) {
  for (int g = 0; g < rows->group; ++g) {
    std::vector<float> mean(static_cast<size_t>(rows->num_entries), 0.0F);
    for (int t = 0; t < rows->num_rows; ++t) {
      const float* row = rows->probabilities + static_cast<size_t>(g) * rows->group_stride +
                         static_cast<size_t>(t) * rows->row_stride;
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += row[i];
    }
    for (size_t i = 0; i < mean.size(); ++i)
      numbers[i] += mean[i] / static_cast<float>(rows->num_rows) / static_cast<float>(rows->group);
  }
  return true;
}

TEST(CApiStages, AnAggregatorFromOutsideChoosesLikeTheSameOneInside) {
  ASSERT_EQ(pith_register_aggregator("outside_mean", MeanOfRows, nullptr, nullptr), PITH_OK) << pith_last_error();
  auto pools = PITH_INIT(pith_aggregator_options);
  pools.pools = true;
  ASSERT_EQ(pith_register_aggregator("unpooled_mean", MeanOfRows, nullptr, &pools), PITH_OK) << pith_last_error();
  for (const char* rest : {"", " alloc=ada", " alloc=global", " mod=criticalkv"}) {
    EXPECT_EQ(Choose(fmt::format("score=snapkv:window=4 agg=outside_mean{}", rest)),
              Choose(fmt::format("score=snapkv:window=4 agg=mean{}", rest)))
        << rest;
  }
  EXPECT_EQ(Choose("score=snapkv:window=4,pool=1 agg=unpooled_mean"), Choose("score=snapkv:window=4,pool=1"));
  EXPECT_NE(Choose("score=snapkv:window=4,pool=9 agg=unpooled_mean"), Choose("score=snapkv:window=4,pool=9"))
      << "the control: pith pools unless the function says that it does";
  EXPECT_NE(Choose("score=snapkv:window=4 agg=outside_mean"), Choose("score=snapkv:window=4 agg=max")) << "the control";
}

// mod=criticalkv, but for negative scores.
bool RememberNorms(void*, const pith_layer_input* layer, float* const*) {
  for (int h = 0; h < layer->num_heads; ++h) {
    std::copy_n(layer->heads[h]->value_norms, layer->heads[h]->num_entries, layer->remembered[h]);
  }
  return true;
}
bool TwoStages(void*, const pith_head_ranking* head, float* scores) {
  const std::span<float> own(scores, static_cast<size_t>(head->num_entries));
  const std::span<const uint8_t> pinned =
      head->pinned == nullptr ? std::span<const uint8_t>() : std::span(head->pinned, own.size());
  const int first = std::max(static_cast<int>(head->params[0] * head->keep), head->floor);
  const std::vector<int32_t> sure = SelectTop(own, {}, pinned, first);
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i] != INFINITY) own[i] = (own[i] + 1e-4F) * head->remembered[i];
  }
  for (const int32_t i : sure) {
    float& score = own[static_cast<size_t>(i)];
    if (score != INFINITY) score = std::numeric_limits<float>::max();
  }
  return true;
}

TEST(CApiStages, AModifierFromOutsideChoosesLikeTheSameOneInside) {
  const pith_param first = {sizeof first, "share", "that the score alone decides", 0.5, 0, 1, false};
  auto options = PITH_INIT(pith_modifier_options);
  options.needs = PITH_NEED_VALUE_NORMS;
  options.params = &first;
  options.num_params = 1;
  options.rerank = TwoStages;
  options.remembers = true;
  ASSERT_EQ(pith_register_modifier("two_stages", RememberNorms, nullptr, &options), PITH_OK) << pith_last_error();
  for (const char* rest : {"", " alloc=ada", " alloc=global", " agg=max alloc=pyramid"}) {
    EXPECT_EQ(Choose(fmt::format("snapkv:window=4 mod=two_stages{}", rest)),
              Choose(fmt::format("snapkv:window=4 mod=criticalkv{}", rest)))
        << rest;
    EXPECT_EQ(Choose(fmt::format("snapkv:window=4 mod=two_stages:share=0.2{}", rest)),
              Choose(fmt::format("snapkv:window=4 mod=criticalkv:first=0.2{}", rest)))
        << rest;
  }
  EXPECT_NE(Choose("snapkv:window=4 mod=two_stages:share=0"), Choose("snapkv:window=4")) << "the control";
}

TEST(CApiStages, TwoModifiersRememberEachItsOwn) {
  const pith_modify_fn remember = [](void* user, const pith_layer_input* layer, float* const*) {
    for (int h = 0; h < layer->num_heads; ++h) {
      for (int i = 0; i < layer->heads[h]->num_entries; ++i) {
        if (layer->remembered[h][i] != 0) return false;
        layer->remembered[h][i] =
            static_cast<float>(*static_cast<int*>(user) * (1000 * layer->layer + 100 * h + i + 1));
      }
    }
    return true;
  };
  auto options = PITH_INIT(pith_modifier_options);
  options.remembers = true;
  options.rerank = [](void* user, const pith_head_ranking* head, float*) {
    for (int i = 0; i < head->num_entries; ++i) {
      const int sign = *static_cast<int*>(user);
      if (head->remembered[i] != static_cast<float>(sign * (1000 * head->layer + 100 * head->head + i + 1)))
        return false;
    }
    return head->num_layers == 2;
  };
  static int plus = 1, minus = -1;
  ASSERT_EQ(pith_register_modifier("plus", remember, &plus, &options), PITH_OK) << pith_last_error();
  ASSERT_EQ(pith_register_modifier("minus", remember, &minus, &options), PITH_OK) << pith_last_error();
  EXPECT_EQ(Choose("score=keydiff mod=plus mod=minus alloc=global"), Choose("score=keydiff alloc=global"));
}

// alloc=global where no scores are the same.
bool AllCompete(void*, const pith_division* division, int32_t* const* keep) {
  std::vector<float> free;
  auto left = division->total;
  const auto each = [&](const auto& visit) {
    for (int l = 0; l < division->num_layers; ++l) {
      const pith_scored_layer& layer = *division->layers[l];
      for (int h = 0; h < layer.num_heads; ++h) {
        for (int i = 0; i < layer.num_entries[h]; ++i) {
          visit(keep[l][h], layer.scores[h][i], layer.pinned != nullptr && layer.pinned[h][i] != 0);
        }
      }
    }
  };
  each([&](int32_t&, float score, bool pinned) {
    if (pinned) --left;
    else free.push_back(score);
  });
  std::sort(free.begin(), free.end(), std::greater<>());
  const float last = left > 0 ? free[static_cast<size_t>(left) - 1] : INFINITY;
  each([&](int32_t& here, float score, bool pinned) { here += pinned || score >= last; });
  return true;
}

TEST(CApiStages, AnAllocatorFromOutsideChoosesLikeTheSameOneInside) {
  const pith_allocate_fn same = [](void*, const pith_division* division, int32_t* const* keep) {
    for (int h = 0; h < division->layers[0]->num_heads; ++h) keep[0][h] = division->keep;
    return division->num_layers == 1;
  };
  ASSERT_EQ(pith_register_allocator("outside_uniform", same, nullptr, nullptr), PITH_OK) << pith_last_error();
  auto across = PITH_INIT(pith_allocator_options);
  across.across_layers = true;
  ASSERT_EQ(pith_register_allocator("outside_global", AllCompete, nullptr, &across), PITH_OK) << pith_last_error();
  for (const char* start : {"score=keydiff", "score=h2o", "score=knorm mod=caote"}) {
    EXPECT_EQ(Choose(fmt::format("{} alloc=outside_uniform", start)), Choose(fmt::format("{} alloc=uniform", start)));
    EXPECT_EQ(Choose(fmt::format("{} alloc=outside_global", start)), Choose(fmt::format("{} alloc=global", start)));
    EXPECT_NE(Choose(fmt::format("{} alloc=outside_global", start)), Choose(start)) << "the control";
  }
}

TEST(CApiStages, NotesReachTheAllocatorAndTooMuchIsTakenBack) {
  const pith_prepare_fn note = [](void*, const pith_layer_input* layer, double* const* notes) {
    for (int h = 0; h < layer->num_heads; ++h) {
      notes[h][0] = layer->heads[h]->keys[0];
      notes[h][1] = 10 * layer->layer + h;
    }
    return true;
  };
  const pith_allocate_fn greedy = [](void*, const pith_division* division, int32_t* const* keep) {
    for (int l = 0; l < division->num_layers; ++l) {
      const pith_scored_layer& layer = *division->layers[l];
      for (int h = 0; h < layer.num_heads; ++h) {
        if (layer.notes[h][0] == 0 || layer.notes[h][1] != 10 * layer.layer + h) return false;
        keep[l][h] = h > 0 ? 1 << 30 : 0;
      }
    }
    return division->total == 60;
  };
  auto options = PITH_INIT(pith_allocator_options);
  options.needs = PITH_NEED_KEYS;
  options.across_layers = true;
  options.prepare = note;
  options.num_notes = 2;
  ASSERT_EQ(pith_register_allocator("greedy", greedy, nullptr, &options), PITH_OK) << pith_last_error();
  const std::vector<KeptHeads> kept = Choose("score=random alloc=greedy");
  size_t total = 0, emptied = 0;
  for (const KeptHeads& layer : kept) {
    for (const auto& head : layer) total += head.size(), emptied += head.size() == 3;  // those that are pinned
  }
  EXPECT_EQ(total, 60U);
  EXPECT_EQ(emptied, 2U);
}

// By another test, perhaps.
bool IsRegistered(const StageEntry& entry) {
  return std::ranges::any_of(RegisteredStages(), [&](const RegisteredStage* stage) { return &stage->entry == &entry; });
}

TEST(CApiStages, MixWithEveryStageInside) {
  ASSERT_EQ(pith_register_aggregator("mixed", MeanOfRows, nullptr, nullptr), PITH_OK) << pith_last_error();
  const pith_modify_fn double_all = [](void*, const pith_layer_input* layer, float* const* scores) {
    for (int h = 0; h < layer->num_heads; ++h) {
      for (int i = 0; i < layer->heads[h]->num_entries; ++i) scores[h][i] *= 2;
    }
    return true;
  };
  ASSERT_EQ(pith_register_modifier("mixed", double_all, nullptr, nullptr), PITH_OK) << pith_last_error();
  auto across = PITH_INIT(pith_allocator_options);
  across.across_layers = true;
  ASSERT_EQ(pith_register_allocator("mixed", AllCompete, nullptr, &across), PITH_OK) << pith_last_error();
  struct Case {
    StageKind kind;
    const char *outside, *inside;
  };
  const Case cases[] = {{StageKind::kAggregate, "agg=mixed", "agg=mean"},
                        {StageKind::kModify, "mod=mixed", "mod=none"},
                        {StageKind::kAllocate, "alloc=mixed", "alloc=global"}};
  int num_mixed = 0;
  for (const Case& one : cases) {
    for (const StageEntry* entry : Stages()) {
      if (entry->kind == one.kind || entry->kind == StageKind::kPrefill || IsRegistered(*entry)) continue;
      if (!entry->params.empty() && entry->params.front().kind == ParamSpec::Kind::kText) continue;
      std::string text = fmt::format("{}={} ", KeyOf(entry->kind), entry->name);
      if (entry->kind != StageKind::kScore) text += "score=snapkv ";
      const Result<Recipe> inside = ParseRecipe(text + one.inside), outside = ParseRecipe(text + one.outside);
      EXPECT_EQ(inside.has_value(), outside.has_value()) << text << one.outside;
      if (!inside || !outside || outside->policy->keeps_everything()) continue;
      size_t kept = 0;
      for (const KeptHeads& layer : Choose(text + one.outside)) {
        for (const auto& head : layer) kept += head.size();
      }
      EXPECT_LE(kept, 60U) << text << one.outside;
      EXPECT_GE(kept, 18U) << text << one.outside;
      ++num_mixed;
    }
  }
  EXPECT_GE(num_mixed, 50);
}

TEST(CApiStages, WhatTheyGiveIsChecked) {
  const auto numbers = [](void* user, const pith_window_rows* rows, float* out) {
    (void)MeanOfRows(nullptr, rows, out);
    if (rows->num_entries > 2) out[2] = *static_cast<const float*>(user);
    return *static_cast<const float*>(user) != 7;
  };
  const auto changes = [](void* user, const pith_layer_input*, float* const* scores) {
    scores[1][3] = *static_cast<const float*>(user);
    return *static_cast<const float*>(user) != 7;
  };
  const auto reorders = [](void* user, const pith_head_ranking*, float* scores) {
    scores[3] = *static_cast<const float*>(user);
    return *static_cast<const float*>(user) != 7;
  };
  const auto divides = [](void* user, const pith_division* division, int32_t* const* keep) {
    keep[0][1] = *static_cast<const float*>(user) == -INFINITY ? -5 : 1;
    division->floors[0][0] = std::isnan(*static_cast<const float*>(user)) ? -1 : 0;
    return *static_cast<const float*>(user) != 7;
  };
  const auto notes = [](void* user, const pith_layer_input*, double* const* out) {
    out[2][0] = static_cast<double>(*static_cast<const float*>(user));
    return *static_cast<const float*>(user) != 7;
  };
  static const float values[] = {NAN, -INFINITY, 7, INFINITY, 0.5F};
  const char* names[] = {"nan", "low", "false", "high", "fine"};
  const auto fault = [](const std::string& recipe) { return Scored(recipe).Fault(); };
  for (size_t i = 0; i < std::size(values); ++i) {
    void* user = const_cast<float*>(&values[i]);
    const std::string name = fmt::format("gives_{}", names[i]), again = name + "_later";
    auto reranks = PITH_INIT(pith_modifier_options);
    reranks.rerank = reorders;
    auto prepares = PITH_INIT(pith_allocator_options);
    prepares.prepare = notes;
    prepares.num_notes = 1;
    ASSERT_EQ(pith_register_aggregator(name.c_str(), numbers, user, nullptr), PITH_OK) << pith_last_error();
    ASSERT_EQ(pith_register_modifier(name.c_str(), changes, user, nullptr), PITH_OK) << pith_last_error();
    ASSERT_EQ(pith_register_modifier(again.c_str(), nullptr, user, &reranks), PITH_OK) << pith_last_error();
    ASSERT_EQ(pith_register_allocator(name.c_str(), divides, user, nullptr), PITH_OK) << pith_last_error();
    ASSERT_EQ(pith_register_allocator(again.c_str(), divides, user, &prepares), PITH_OK) << pith_last_error();
  }
  EXPECT_EQ(fault("snapkv agg=gives_nan"), "agg=gives_nan made nan of what entry 2 got, which is no number in layer 0");
  EXPECT_EQ(fault("snapkv agg=gives_high"),
            "agg=gives_high made inf of what entry 2 got, which is no number in layer 0");
  EXPECT_EQ(fault("snapkv agg=gives_false"), "agg=gives_false failed in layer 0");
  EXPECT_EQ(fault("knorm mod=gives_nan"),
            "mod=gives_nan gave entry 3 of head 1 in layer 0 the score nan, which is no number to compare");
  EXPECT_EQ(fault("knorm mod=gives_low"),
            "mod=gives_low gave entry 3 of head 1 in layer 0 the score -inf, which is no number to compare");
  EXPECT_EQ(fault("knorm mod=gives_false"), "mod=gives_false failed in layer 0");
  for (const char* alloc : {"uniform", "global"}) {
    EXPECT_EQ(fault(fmt::format("knorm mod=gives_nan_later alloc={}", alloc)),
              "mod=gives_nan_later gave entry 3 of head 0 in layer 0 the score nan, which is no number to compare");
    EXPECT_EQ(fault(fmt::format("knorm mod=gives_false_later alloc={}", alloc)),
              "mod=gives_false_later failed in layer 0");
  }
  EXPECT_EQ(fault("knorm alloc=gives_low"), "alloc=gives_low gave head 1 in layer 0 -5 entries");
  EXPECT_EQ(fault("knorm alloc=gives_nan"), "alloc=gives_nan gave head 0 in layer 0 -1 entries");
  EXPECT_EQ(fault("knorm alloc=gives_false"), "alloc=gives_false failed in layer 0");
  EXPECT_EQ(fault("knorm alloc=gives_high_later"),
            "alloc=gives_high_later noted inf of head 2 in layer 0, which is no number");
  EXPECT_EQ(fault("knorm alloc=gives_false_later"), "alloc=gives_false_later failed in layer 0");
  for (const char* fine : {"agg=gives_fine", "mod=gives_fine", "mod=gives_high", "mod=gives_fine_later",
                           "alloc=gives_fine", "alloc=gives_fine_later"}) {
    EXPECT_EQ(fault(fmt::format("snapkv {}", fine)), "") << fine;
  }
}

TEST(CApiStages, WhatMakesNoSenseIsRefused) {
  const pith_modify_fn modify = [](void*, const pith_layer_input*, float* const*) { return true; };
  const pith_allocate_fn allocate = [](void*, const pith_division*, int32_t* const*) { return true; };
  const auto why = [](pith_status status) {
    EXPECT_EQ(status, PITH_ERROR_INVALID_ARGUMENT);
    return std::string(pith_last_error());
  };
  EXPECT_EQ(why(pith_register_aggregator("mean", MeanOfRows, nullptr, nullptr)), "agg=mean is there already");
  EXPECT_EQ(why(pith_register_modifier("none", modify, nullptr, nullptr)), "mod=none is there already");
  EXPECT_EQ(why(pith_register_allocator("ada", allocate, nullptr, nullptr)), "alloc=ada is there already");
  // A name is taken within its kind alone.
  EXPECT_EQ(pith_register_modifier("ada", modify, nullptr, nullptr), PITH_OK) << pith_last_error();
  EXPECT_NE(why(pith_register_allocator("No", allocate, nullptr, nullptr)).find("'No' is no name for an allocator"),
            std::string::npos);
  why(pith_register_aggregator("refused", nullptr, nullptr, nullptr));
  why(pith_register_modifier("refused", nullptr, nullptr, nullptr));
  why(pith_register_allocator("refused", nullptr, nullptr, nullptr));
  why(pith_register_modifier(nullptr, modify, nullptr, nullptr));
  auto modifier = PITH_INIT(pith_modifier_options);
  modifier.needs = PITH_NEED_EVERY_QUERY;
  EXPECT_NE(why(pith_register_modifier("refused", modify, nullptr, &modifier)).find("a modifier needs keys"),
            std::string::npos);
  modifier.needs = 0;
  modifier.remembers = true;
  why(pith_register_modifier("refused", modify, nullptr, &modifier));
  modifier.remembers = false;
  modifier.window = 5000;
  why(pith_register_modifier("refused", modify, nullptr, &modifier));
  auto allocator = PITH_INIT(pith_allocator_options);
  allocator.num_notes = 3;
  EXPECT_EQ(why(pith_register_allocator("refused", allocate, nullptr, &allocator)), "prepare() and notes go together");
  allocator.num_notes = 0;
  allocator.needs = PITH_NEED_KEYS;
  why(pith_register_allocator("refused", allocate, nullptr, &allocator));
  for (const StageKind kind : {StageKind::kAggregate, StageKind::kModify, StageKind::kAllocate}) {
    EXPECT_EQ(FindStage(kind, "refused"), nullptr);
  }
  // A window of one's own is a parameter; else it is the scorer's.
  modifier = PITH_INIT(pith_modifier_options);
  modifier.needs = PITH_NEED_WINDOW_PROBS;
  ASSERT_EQ(pith_register_modifier("adopts", modify, nullptr, &modifier), PITH_OK) << pith_last_error();
  modifier.window = 12;
  ASSERT_EQ(pith_register_modifier("has_window", modify, nullptr, &modifier), PITH_OK) << pith_last_error();
  EXPECT_EQ(ParseRecipe("score=snapkv:window=7 mod=adopts")->policy->window(), 7);
  EXPECT_EQ(ParseRecipe("score=knorm mod=adopts")->policy->window(), 32);
  EXPECT_EQ(ParseRecipe("score=knorm mod=has_window")->policy->window(), 12);
  EXPECT_EQ(ParseRecipe("score=knorm mod=has_window:window=20")->policy->window(), 20);
}

}  // namespace
}  // namespace pith
