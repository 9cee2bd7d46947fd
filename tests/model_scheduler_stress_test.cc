// Many short loads of a server whose budget is small: requests of all lengths and kinds, clients that leave. Whatever
// fits alone is answered, however full the server is; bytes are never over, and none stay behind.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/scheduler.h"
#include "tests/support/scheduler_clients.h"

namespace pith::server {
namespace {

using namespace testing;  // NOLINT: requests and their sinks

struct Load {
  ServerSetup setup;
  std::vector<Request> requests;
};

template <typename T>
const T& OneOf(const std::vector<T>& list, std::mt19937& random) {
  return list[random() % list.size()];
}

// Prompts of a conversation begin alike, so that prefixes are of use.
Request RandomRequest(const ServerSetup& setup, std::mt19937& random) {
  std::vector<int32_t> prompt = Prompt(random() % 160, static_cast<unsigned>(random() % 3));
  const std::vector<int32_t> more =
      Prompt(10 + random() % (random() % 3 == 0 ? 700 : 120), static_cast<unsigned>(random()));
  prompt.insert(prompt.end(), more.begin(), more.end());
  Request request = Greedy(std::move(prompt), 1 + static_cast<int>(random() % 60));
  request.sampling.temperature = 1;
  request.sampling.seed = static_cast<uint32_t>(random());
  request.sampling.logit_bias = {{kEndToken, -INFINITY}};
  if (random() % 4 == 0) request.num_pinned = random() % std::min<size_t>(request.prompt.size(), 60);
  if (random() % 8 == 0) request.num_choices = 2;
  if (random() % 8 == 0) request.reuse_prefix = false;
  if (random() % 8 == 0) request.compress = CompressMode::kAfter;
  if (random() % 12 == 0) request.generation.max_tokens = -1;
  if (setup.recipe != "full" && random() % 10 == 0) request.recipe = *ParseRecipe("snapkv:window=8");
  return request;
}

Load RandomLoad(unsigned seed) {
  std::mt19937 random(seed);
  Load load;
  ServerSetup& setup = load.setup;
  setup.recipe = OneOf<std::string>(
      {"pith", "pith", "snapkv:window=8", "keydiff", "score=keydiff alloc=global", "keydiff format=q8"}, random);
  setup.num_ctx = 1024;
  setup.options.max_running = 2 + static_cast<int>(random() % 7);
  setup.options.max_retained = OneOf<int>({0, 4, 64}, random);
  setup.options.cache_reuse = random() % 4 == 0 ? 32 : 0;
  setup.options.compress_after = random() % 4 == 0;
  setup.budget_bytes = (size_t{900} + random() % 3000) << 10;
  for (int i = 0; i < 24; ++i) load.requests.push_back(RandomRequest(setup, random));
  return load;
}

struct Count {
  int answered = 0, cut = 0, left = 0, failed = 0;
  int64_t evicted = 0;
};

// Some clients leave, at once or after some tokens. What ends early for want of bytes is counted, too.
void Play(Load load, unsigned seed, Count& count) {
  SCOPED_TRACE(fmt::format("seed {}: {}, {} at once, {} bytes", seed, load.setup.recipe, load.setup.options.max_running,
                           load.setup.budget_bytes));
  Server server = Make(load.setup);
  ASSERT_NE(server.scheduler, nullptr);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  std::mt19937 random(seed + 1);
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<bool> left;
  for (Request& request : load.requests) {
    RequestId id = 0;
    sinks.push_back(Send(server, request, &id));
    left.push_back(random() % 5 == 0);
    if (!left.back()) continue;
    if (random() % 2 == 0) (void)sinks.back()->WaitForTexts(1 + static_cast<int>(random() % 5), 2);
    server.scheduler->Cancel(id);
  }
  for (size_t i = 0; i < sinks.size(); ++i) {
    if (left[i]) {
      ++count.left;
      continue;
    }
    ASSERT_TRUE(sinks[i]->Wait());
    if (sinks[i]->error_) {
      ++count.failed;
      ADD_FAILURE() << "request " << i << " of " << load.requests[i].prompt.size() << " tokens, "
                    << load.requests[i].num_pinned << " pinned, " << load.requests[i].num_choices
                    << " choices: " << sinks[i]->error_->message;
      continue;
    }
    ++count.answered;
    count.evicted += sinks[i]->cache_.evicted_tokens;
    for (const auto& [index, choice] : sinks[i]->choices_) {
      ASSERT_TRUE(choice.result);
      if (choice.result->stop == StopReason::kLength || choice.result->stop == StopReason::kContext) continue;
      // Forks of one compressed prompt cannot be compressed again: an answer without a limit ends with the budget.
      const Request& asked = load.requests[i];
      if (choice.result->stop == StopReason::kBudget && asked.generation.max_tokens < 0 && asked.num_choices > 1)
        continue;
      ++count.cut;
      ADD_FAILURE() << "request " << i << " of " << load.requests[i].prompt.size() << " tokens, choice " << index
                    << ", was cut after " << choice.tokens.size() << ": " << choice.result->stop_message;
    }
  }
  server.scheduler->Drain(60);
  EXPECT_EQ(IdleBytes(server), idle);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
  EXPECT_EQ(stats.live_sequences, 0);
}

TEST(ModelSchedulerStress, WhatFitsAloneIsAnswered) {
  // Other loads: --gtest_random_seed=N.
  const auto first = static_cast<unsigned>(GTEST_FLAG_GET(random_seed)) * 1000;
  Count count;
  for (unsigned seed = first; seed < first + 12; ++seed) Play(RandomLoad(seed), seed, count);
  EXPECT_GT(count.answered, 150);
  EXPECT_GT(count.left, 20);
  EXPECT_GT(count.evicted, 1000) << "control: budgets were small";
}

}  // namespace
}  // namespace pith::server
