// Prefixes beside each other: forks within their bytes, and what an edit in the middle of a prompt leaves of one.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/prefixes.h"
#include "server/scheduler.h"
#include "tests/support/scheduler_clients.h"

namespace pith::server {
namespace {

using namespace testing;  // NOLINT: requests and their sinks

TEST(ModelReuse, AForkThatTheBytesDoNotHoldLeavesNothingBehind) {
  EngineOptions options;
  options.num_ctx = 512;
  options.num_threads = 1;
  options.max_sequences = 4;
  options.budget_bytes = size_t{4} << 20;
  options.recipe = *ParseRecipe("full");
  auto engine = Engine::Create(RandomModel(), options);
  ASSERT_TRUE(engine) << engine.error().message;
  SequenceOptions own = options;
  own.floor_bytes = 1, own.ceiling_bytes = size_t{3} << 20;
  const SequenceId source = *(*engine)->NewSequence(own);
  ASSERT_TRUE((*engine)->Prefill(source, Prompt(100, 1)));
  const auto promise = [&](size_t left) {
    const KvStats stats = (*engine)->stats();
    const SequenceStats now = (*engine)->stats(source);
    const size_t free = stats.budget_bytes - stats.used_bytes - stats.promised_bytes;
    return std::max(now.used_bytes, now.floor_bytes) + free - left;
  };
  // All that is there is promised to the source: a fork finds bytes only while that promise is lifted.
  const size_t all = promise(0);
  ASSERT_TRUE((*engine)->SetBudget(source, all, all));
  const KvStats before = (*engine)->stats();
  const Result<SequenceId> refused = ForkBeside(**engine, source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfBudget) << refused.error().message;
  EXPECT_EQ((*engine)->stats().used_bytes, before.used_bytes);
  EXPECT_EQ((*engine)->stats().promised_bytes, before.promised_bytes);
  EXPECT_EQ((*engine)->stats(source).floor_bytes, all);
  EXPECT_EQ((*engine)->stats().entries, before.entries) << "the fork is gone";
  ASSERT_TRUE((*engine)->SetBudget(source, all / 2, all));
  const Result<SequenceId> fork = ForkBeside(**engine, source);
  ASSERT_TRUE(fork) << fork.error().message;
  EXPECT_EQ((*engine)->stats(source).floor_bytes, all / 2);
  EXPECT_EQ((*engine)->num_tokens(*fork), 100);
}

// Clients choose recipes, and each one's numbers: what is counted by them has an end.
TEST(ModelReuse, CountersOfManyRecipesShareOne) {
  Server server = Make({});
  SequenceOptions options = server.engine->options();
  options.recipe = *ParseRecipe("keydiff:recent=9");
  options.ceiling_bytes = size_t{8} << 20;
  const size_t bytes = server.engine->Admit(options, 96)->steady_bytes;
  for (int recent = 1; recent <= 80; ++recent) {
    Request request = Greedy(Prompt(250, 1), 1);
    request.recipe = *ParseRecipe(fmt::format("keydiff:recent={}", recent));
    request.kv_budget_bytes = bytes;
    const auto sink = Send(server, std::move(request));
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
  }
  const auto counters = server.scheduler->stats().evicted_entries;
  ASSERT_EQ(counters.size(), 65U);
  const auto others = std::ranges::find(counters, "others", &std::pair<std::string, uint64_t>::first);
  ASSERT_NE(others, counters.end());
  EXPECT_GT(others->second, 10 * counters.front().second) << "of sixteen of them";
}

std::vector<int32_t> Joined(std::initializer_list<std::vector<int32_t>> parts) {
  std::vector<int32_t> all;
  for (const std::vector<int32_t>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Request Reusing(std::vector<int32_t> prompt, int least) {
  Request request = Greedy(std::move(prompt), 4);
  request.cache_reuse = least;
  return request;
}

// Of a prompt's tokens, those that were not read.
int Cached(Server& server, Request request) {
  const auto sink = Send(server, std::move(request));
  EXPECT_TRUE(sink->Wait());
  EXPECT_FALSE(sink->error_) << sink->error_->message;
  return sink->usage_.cached_tokens;
}

class ModelPieces : public ::testing::Test {
 protected:
  const std::vector<int32_t> before_ = Prompt(60, 1), old_ = Prompt(30, 2), edited_ = Prompt(45, 3),
                             text_ = Prompt(200, 4), tail_ = Prompt(10, 5);
  const std::vector<int32_t> prompt_ = Joined({before_, old_, text_, tail_});
};

TEST_F(ModelPieces, AnEditCostsTheEdit) {
  for (const char* recipe : {"full", "pith", "keydiff", "snapkv:window=8", "full format=q4"}) {
    SCOPED_TRACE(recipe);
    ServerSetup setup;
    setup.recipe = recipe;
    setup.options.cache_reuse = 32;
    if (std::string(recipe) == "pith") setup.options.compress_after = false;
    Server server = Make(setup);
    const size_t idle = server.scheduler->stats().kv.used_bytes;
    EXPECT_EQ(Cached(server, Greedy(prompt_, 4)), 0);
    const bool windowed = std::string(recipe).starts_with("snapkv");
    // Longer, shorter, and gone; the last token is read in any case.
    EXPECT_GE(Cached(server, Greedy(Joined({before_, edited_, text_, tail_}), 4)), windowed ? 52 + 202 : 60 + 200);
    EXPECT_GE(Cached(server, Greedy(Joined({before_, Prompt(5, 9), text_, tail_}), 4)), windowed ? 52 + 202 : 60 + 200);
    EXPECT_GE(Cached(server, Greedy(Joined({before_, text_, tail_}), 4)), windowed ? 52 + 202 : 60 + 200);
    EXPECT_GE(Cached(server, Greedy(Joined({Prompt(20, 8), text_, tail_}), 4)), windowed ? 202 : 200)
        << "without a common beginning";
    EXPECT_EQ(Cached(server, Greedy(Joined({Prompt(290, 6), Prompt(31, 7)}), 4)), 0) << "nothing in common";
    const SchedulerStats stats = server.scheduler->stats();
    EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
    EXPECT_EQ(IdleBytes(server), idle) << "bytes were left behind";
  }
}

TEST_F(ModelPieces, OnlyWhoWantsIt) {
  Server server = Make({});
  const std::vector<int32_t> edit = Joined({before_, edited_, text_, tail_});
  EXPECT_EQ(Cached(server, Greedy(prompt_, 4)), 0);
  const int plain = Cached(server, Reusing(edit, 0));
  EXPECT_EQ(plain, 60);
  for (int slot = 0; slot < 8; ++slot) (void)server.scheduler->EraseSlot(slot);
  EXPECT_EQ(Cached(server, Greedy(prompt_, 4)), 0);
  EXPECT_EQ(Cached(server, Reusing(edit, 32)), 60 + 209);
  // Its prefix is one for its like: another one reads.
  EXPECT_EQ(Cached(server, Reusing(edit, 0)), 60);
  EXPECT_GE(Cached(server, Reusing(Joined({edit, Prompt(20, 6)}), 32)), 300);
  EXPECT_EQ(Cached(server, Reusing(Joined({before_, Prompt(7, 8), text_, tail_}), 500)), 60) << "no piece is so long";
  Request other = Reusing(Joined({before_, Prompt(9, 8), text_, tail_}), 32);
  other.tenant = "another";
  EXPECT_EQ(Cached(server, std::move(other)), 0);
}

// What it says is what it would say had it read all, nearly; of a text before it that is another one.
TEST_F(ModelPieces, AnswersAreThoseOfTheEditedText) {
  ServerSetup setup;
  setup.options.cache_reuse = 16;
  Server server = Make(setup);
  const std::vector<int32_t> edit = Joined({before_, text_, Prompt(40, 11)});
  (void)Cached(server, Greedy(Joined({before_, Prompt(2, 2), text_}), 4));
  const auto sink = Send(server, Greedy(edit, 12));
  ASSERT_TRUE(sink->Wait());
  ASSERT_EQ(sink->usage_.cached_tokens, 260);
  const double lead = WorstLead(edit, sink->tokens());
  EXPECT_LT(lead, 0.5 * WorstLead(Joined({before_, Prompt(200, 12), Prompt(40, 13)}), sink->tokens()));
}

TEST_F(ModelPieces, ManyEditsInASmallBudget) {
  ServerSetup setup;
  setup.options.cache_reuse = 24;
  setup.options.max_running = 3;
  setup.options.max_retained = 4;
  setup.budget_bytes = size_t{3} << 20;
  Server server = Make(setup);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  std::mt19937 random(7);
  std::vector<std::shared_ptr<Collector>> sinks;
  const auto below = [&random](unsigned count) { return static_cast<unsigned>(random() % count); };
  for (unsigned i = 0; i < 60; ++i) {
    const std::vector<int32_t> prompt =
        Joined({Prompt(below(80), below(3)), Prompt(1 + below(20), 100 + i), text_, Prompt(below(40), below(3))});
    RequestId id = 0;
    const auto sink = Send(server, Greedy(prompt, static_cast<int>(below(30))), &id);
    if (i % 5 == 4) {
      server.scheduler->Cancel(id);
    } else {
      sinks.push_back(sink);
    }
    if (i % 7 == 6) {
      ASSERT_TRUE(sinks.back()->Wait());
    }
  }
  int cached = 0;
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->Wait());
    EXPECT_FALSE(sink->error_) << sink->error_->message;
    cached += sink->usage_.cached_tokens;
  }
  EXPECT_GT(cached, 1000);
  server.scheduler->Drain(60);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
  EXPECT_EQ(IdleBytes(server), idle) << "bytes were left behind";
}

TEST_F(ModelPieces, ModelsThatCannotReadAll) {
  for (const char* architecture : {"gemma3", "lfm2"}) {
    SCOPED_TRACE(architecture);
    ServerSetup setup;
    setup.architecture = architecture;
    setup.options.cache_reuse = 16;
    Server server = Make(setup);
    EXPECT_EQ(Cached(server, Greedy(prompt_, 4)), 0);
    EXPECT_LE(Cached(server, Greedy(Joined({before_, edited_, text_, tail_}), 4)), 60);
  }
}

}  // namespace
}  // namespace pith::server
