// Many requests over one engine: each text is what its request gets alone, bytes are never over and none stay behind.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "server/scheduler.h"
#include "tests/support/scheduler_clients.h"

namespace pith::server {
namespace {

using namespace testing;  // NOLINT: requests and their sinks

TEST(ModelScheduler, OneRequestIsWhatTheEngineSaysAlone) {
  Server server = Make({});
  const std::vector<int32_t> prompt = Prompt(150, 1);
  auto sink = Send(server, Greedy(prompt, 40));
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  const GenerationResult& result = *sink->choices_[0].result;
  EXPECT_EQ(result.tokens, sink->tokens());
  EXPECT_EQ(result.text, sink->choices_[0].text);
  EXPECT_FALSE(result.tokens.empty());
  EXPECT_LT(WorstLead(prompt, sink->tokens()), kRounding);
  EXPECT_GT(WorstLead(Prompt(150, 2), sink->tokens()), 10 * kRounding) << "control: another prompt";
  EXPECT_EQ(sink->usage_.prompt_tokens, 150);
  EXPECT_EQ(sink->usage_.cached_tokens, 0);
  EXPECT_EQ(sink->usage_.completion_tokens, static_cast<int>(result.tokens.size()));
  EXPECT_EQ(sink->cache_.recipe, "full");
  EXPECT_EQ(sink->cache_.evicted_tokens, 0);
  EXPECT_GT(sink->cache_.used_bytes, 0U);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_EQ(stats.finished, 1U);
  EXPECT_EQ(stats.live_sequences, 0);
  EXPECT_EQ(stats.retained_sequences, 1);
}

TEST(ModelScheduler, ManyRequestsWithCancelsEachAsAlone) {
  ServerSetup setup;
  setup.options.max_running = 5;
  setup.budget_bytes = size_t{5} << 20;
  Server server = Make(setup);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  std::mt19937 random(5);
  struct Sent {
    std::vector<int32_t> prompt;
    std::shared_ptr<Collector> sink;
    RequestId id = 0;
    bool cancelled = false;
    int calls = 0;
  };
  std::vector<Sent> all(40);
  for (size_t i = 0; i < all.size(); ++i) {
    Sent& sent = all[i];
    sent.prompt = Prompt(20 + random() % 300, static_cast<unsigned>(i));
    sent.sink = Send(server, Greedy(sent.prompt, static_cast<int>(random() % 60)), &sent.id);
    if (i % 4 == 3) {
      Sent& victim = all[i - random() % 4];
      if (random() % 2 == 0) (void)victim.sink->WaitForTexts(1 + static_cast<int>(random() % 5));
      server.scheduler->Cancel(victim.id);
      victim.cancelled = true;
      victim.calls = victim.sink->num_calls();
    }
  }
  for (Sent& sent : all) {
    ASSERT_TRUE(sent.cancelled || sent.sink->Wait());
  }
  server.scheduler->Drain(60);
  int compared = 0;
  for (Sent& sent : all) {
    if (sent.cancelled) {
      EXPECT_EQ(sent.sink->num_calls(), sent.calls) << "its sink was called after Cancel() had returned";
      continue;
    }
    ASSERT_FALSE(sent.sink->error_) << sent.sink->error_->message;
    EXPECT_LT(WorstLead(sent.prompt, sent.sink->tokens()), kRounding);
    ++compared;
  }
  EXPECT_GE(compared, 30);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
  EXPECT_EQ(stats.live_sequences, 0);
  EXPECT_EQ(stats.live_bytes, 0U);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(IdleBytes(server), idle) << "bytes were left behind";
}

// A budget in which so many sequences hold so many tokens each, beside what an idle engine takes.
size_t BudgetFor(ServerSetup setup, int sequences, size_t num_tokens) {
  setup.budget_bytes = size_t{64} << 20;
  const Server ample = Make(setup);
  const KvStats idle = ample.engine->stats();
  SequenceOptions options = ample.engine->options();
  options.ceiling_bytes = size_t{32} << 20;
  return idle.used_bytes + idle.promised_bytes +
         static_cast<size_t>(sequences) * ample.engine->Admit(options, num_tokens)->steady_bytes;
}

TEST(ModelScheduler, EvictingRequestsShareABudgetThatHoldsFewOfThem) {
  ServerSetup setup;
  setup.recipe = "snapkv:window=8";
  setup.options.max_running = 4;
  setup.budget_bytes = BudgetFor(setup, 4, 150);
  Server server = Make(setup);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  std::vector<std::shared_ptr<Collector>> sinks;
  for (unsigned i = 0; i < 16; ++i) sinks.push_back(Send(server, Greedy(Prompt(60 + i * 25, i), 30)));
  int64_t evicted = 0;
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
    evicted += sink->cache_.evicted_tokens;
    int64_t in_spans = 0;
    for (const auto& [from, to] : sink->cache_.evicted_spans) {
      EXPECT_LT(from, to);
      in_spans += to - from;
    }
    EXPECT_EQ(in_spans, sink->cache_.evicted_tokens);
    EXPECT_LE(sink->cache_.used_bytes, sink->cache_.budget_bytes);
  }
  EXPECT_GT(evicted, 0);
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
  ASSERT_EQ(stats.evicted_entries.size(), 1U);
  EXPECT_GT(stats.evicted_entries[0].second, 0U);
  EXPECT_EQ(IdleBytes(server), idle);
}

// What a turn gives up that fills its bytes in the middle is chosen between steps, by pieces.
TEST(ModelScheduler, TurnsThatFillTheirBytesMakeRoomBetweenSteps) {
  const auto run = [](const std::string& recipe) {
    ServerSetup setup;
    setup.recipe = recipe;
    setup.options.max_running = 2;
    setup.budget_bytes = BudgetFor(setup, 2, 150);
    Server server = Make(setup);
    const size_t idle = server.scheduler->stats().kv.used_bytes;
    std::vector<std::shared_ptr<Collector>> sinks;
    for (unsigned i = 0; i < 2; ++i) {
      Request request = Greedy(Prompt(300, i), 200);
      request.sampling.ignore_eos = true;
      sinks.push_back(Send(server, std::move(request)));
    }
    for (const auto& sink : sinks) {
      EXPECT_TRUE(sink->Wait());
      EXPECT_FALSE(sink->error_) << sink->error_->message;
      EXPECT_LT(sink->cache_.kept_fraction, 1);
      EXPECT_EQ(sink->tokens().size(), 200U);
    }
    const SchedulerStats stats = server.scheduler->stats();
    EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
    EXPECT_EQ(IdleBytes(server), idle);
    return stats.compress_seconds;
  };
  EXPECT_GT(run("keydiff turns=flowkv:drop=0.6"), 0);
  EXPECT_EQ(run("keydiff"), 0) << "control: without turns steps evict";
}

TEST(ModelScheduler, SeveralChoicesReadThePromptOnce) {
  ServerSetup setup;
  setup.options.max_running = 4;
  Server server = Make(setup);
  Request request = Greedy(Prompt(100, 1), 25);
  request.num_choices = 3;
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 7;
  request.generation.num_logprobs = 2;
  auto sink = Send(server, request);
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  ASSERT_EQ(sink->choices_.size(), 3U);
  size_t tokens = 0;
  for (auto& [index, choice] : sink->choices_) {
    ASSERT_TRUE(choice.result);
    EXPECT_EQ(choice.result->tokens, choice.tokens);
    tokens += choice.tokens.size();
    // A choice is what its seed gives alone.
    Request alone = request;
    alone.num_choices = 1;
    alone.sampling.seed = 7 + static_cast<uint32_t>(index);
    alone.reuse_prefix = false;
    auto other = Send(server, alone);
    ASSERT_TRUE(other->Wait());
    EXPECT_EQ(other->tokens(), choice.tokens) << index;
  }
  EXPECT_NE(sink->tokens(0), sink->tokens(1));
  EXPECT_EQ(sink->num_logprobs_, tokens);
  EXPECT_EQ(static_cast<size_t>(sink->usage_.completion_tokens), tokens);
  request.num_choices = 5;
  EXPECT_FALSE(server.scheduler->Submit(request, sink)) << "more than run at once";
}

TEST(ModelScheduler, BadRequestsAreRefusedOrFailAlone) {
  ServerSetup setup;
  setup.num_ctx = 200;
  const size_t holds_100 = BudgetFor(setup, 1, 100) - BudgetFor(setup, 0, 1);
  Server server = Make(setup);
  auto sink = std::make_shared<Collector>();
  const auto code = [&](const Request& request) {
    const Result<RequestId> sent = server.scheduler->Submit(request, sink);
    EXPECT_FALSE(sent);
    return sent ? ErrorCode::kIo : sent.error().code;
  };
  EXPECT_EQ(code(Greedy({}, 5)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(Greedy({5, 100000}, 5)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(Greedy({5, -1}, 5)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(Greedy(Prompt(201, 1), 5)), ErrorCode::kOutOfContext);
  Request request = Greedy(Prompt(20, 1), 5);
  request.sampling.top_p = 7;
  EXPECT_EQ(code(request), ErrorCode::kInvalidArgument);
  request = Greedy(Prompt(20, 1), 5);
  request.slot = 99;
  EXPECT_EQ(code(request), ErrorCode::kInvalidArgument);

  auto good = Send(server, Greedy(Prompt(100, 1), 30));
  request = Greedy(Prompt(150, 2), 5);
  request.kv_budget_bytes = holds_100;
  request.refuse_eviction = true;
  auto refused = Send(server, request);
  ASSERT_TRUE(refused->Wait());
  ASSERT_TRUE(refused->error_);
  EXPECT_EQ(refused->error_->code, ErrorCode::kOutOfContext);
  EXPECT_NE(refused->error_->message.find("150 tokens"), std::string::npos) << refused->error_->message;
  ASSERT_TRUE(good->Wait());
  EXPECT_FALSE(good->error_);
  // To the end of the context, and no further.
  auto whole = Send(server, Greedy(Prompt(190, 3), -1));
  ASSERT_TRUE(whole->Wait());
  ASSERT_FALSE(whole->error_) << whole->error_->message;
  const GenerationResult& result = *whole->choices_[0].result;
  EXPECT_TRUE(result.stop == StopReason::kContext || result.stop == StopReason::kEnd);
  EXPECT_LE(result.tokens.size(), 11U);
  // Nothing is sampled where nothing is wanted.
  auto nothing = Send(server, Greedy(Prompt(50, 4), 0));
  ASSERT_TRUE(nothing->Wait());
  ASSERT_FALSE(nothing->error_);
  EXPECT_TRUE(nothing->choices_[0].result->tokens.empty());
  EXPECT_EQ(nothing->usage_.completion_tokens, 0);
}

TEST(ModelScheduler, AFullQueueRefusesAndDrainLetsRunningOnesEnd) {
  ServerSetup setup;
  setup.options.max_running = 1;
  setup.options.max_waiting = 2;
  Server server = Make(setup);
  auto running = Send(server, Greedy(Prompt(100, 1), 300));
  ASSERT_TRUE(running->WaitForTexts(1));
  auto second = Send(server, Greedy(Prompt(50, 2), 5)), third = Send(server, Greedy(Prompt(50, 3), 5));
  auto sink = std::make_shared<Collector>();
  const Result<RequestId> refused = server.scheduler->Submit(Greedy(Prompt(50, 4), 5), sink);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kBusy);
  EXPECT_EQ(server.scheduler->stats().refused, 1U);
  server.scheduler->Drain(60);
  for (const auto& one : {running, second, third}) {
    EXPECT_TRUE(one->over_);
    EXPECT_FALSE(one->error_);
  }
  EXPECT_FALSE(server.scheduler->Submit(Greedy(Prompt(50, 4), 5), sink));

  Server other = Make(setup);
  auto endless = Send(other, Greedy(Prompt(100, 1), 400));
  ASSERT_TRUE(endless->WaitForTexts(1));
  auto waiting = Send(other, Greedy(Prompt(100, 2), 5));
  other.scheduler->Drain(0);
  EXPECT_TRUE(waiting->over_);
  EXPECT_TRUE(endless->over_);
  EXPECT_TRUE(!waiting->error_ || waiting->error_->code == ErrorCode::kCancelled);
}

TEST(ModelScheduler, ANextTurnReadsOnlyWhatIsNew) {
  for (const char* recipe : {"full", "snapkv:window=8"}) {
    SCOPED_TRACE(recipe);
    ServerSetup setup;
    setup.recipe = recipe;
    setup.budget_bytes = std::string(recipe) == "full" ? size_t{16} << 20 : size_t{2} << 20;
    setup.options.max_running = 2;
    Server server = Make(setup);
    std::vector<int32_t> text = Prompt(300, 1);
    auto first = Send(server, Greedy(text, 20));
    ASSERT_TRUE(first->Wait());
    ASSERT_FALSE(first->error_);
    const std::vector<int32_t> answer = first->tokens();
    text.insert(text.end(), answer.begin(), answer.end());
    const std::vector<int32_t> more = Prompt(30, 2);
    text.insert(text.end(), more.begin(), more.end());
    Request stranger = Greedy(text, 20);
    stranger.tenant = "another";
    auto apart = Send(server, stranger);
    ASSERT_TRUE(apart->Wait());
    EXPECT_EQ(apart->usage_.cached_tokens, 0) << "another tenant's prefix";
    auto second = Send(server, Greedy(text, 20));
    ASSERT_TRUE(second->Wait());
    ASSERT_FALSE(second->error_);
    // The last sampled token was not read.
    EXPECT_GE(second->usage_.cached_tokens, static_cast<int>(300 + answer.size()) - 1);
    EXPECT_LT(second->usage_.cached_tokens, static_cast<int>(text.size()));
    if (std::string(recipe) == "full") {
      EXPECT_LT(WorstLead(text, second->tokens()), kRounding);
    }
  }
}

// Another ending of the same beginning: what they have in common is not read again, and both stay.
TEST(ModelScheduler, AnEditCostsTheEditWhereTheRecipeDropsNothing) {
  Server server = Make({});
  const std::vector<int32_t> text = Prompt(300, 1);
  auto first = Send(server, Greedy(text, 10));
  ASSERT_TRUE(first->Wait());
  std::vector<int32_t> edited = text;
  edited[200] = edited[200] == 50 ? 51 : 50;
  auto second = Send(server, Greedy(edited, 20));
  ASSERT_TRUE(second->Wait());
  EXPECT_EQ(second->usage_.cached_tokens, 200);
  EXPECT_LT(WorstLead(edited, second->tokens()), kRounding);
  auto again = Send(server, Greedy(text, 20));
  ASSERT_TRUE(again->Wait());
  EXPECT_EQ(again->usage_.cached_tokens, 299) << "the last token is read for its logits";
  EXPECT_LT(WorstLead(text, again->tokens()), kRounding);
}

TEST(ModelScheduler, ARunningTextIsForkedForAnotherThatBeginsAlike) {
  ServerSetup setup;
  setup.options.max_running = 2;
  Server server = Make(setup);
  const std::vector<int32_t> text = Prompt(200, 1);
  Request request = Greedy(text, 250);
  request.sampling.logit_bias = {{kEndToken, -INFINITY}};
  auto running = Send(server, request);
  ASSERT_TRUE(running->WaitForTexts(3));
  std::vector<int32_t> other = text;
  other.resize(180);
  const std::vector<int32_t> more = Prompt(40, 2);
  other.insert(other.end(), more.begin(), more.end());
  auto forked = Send(server, Greedy(other, 20));
  ASSERT_TRUE(forked->Wait());
  EXPECT_EQ(forked->usage_.cached_tokens, 180);
  EXPECT_FALSE(running->over());
  EXPECT_LT(WorstLead(other, forked->tokens()), kRounding);
  ASSERT_TRUE(running->Wait());
  EXPECT_EQ(running->tokens().size(), 250U);
  EXPECT_LT(WorstLead(text, running->tokens()), kRounding) << "it did not notice";
}

// What an evicting recipe cannot rewind rests after the pinned tokens, for others that begin with them.
TEST(ModelScheduler, PinnedTokensOfAnEvictingRecipeAreReadOnce) {
  ServerSetup setup;
  setup.recipe = "snapkv:window=8";
  setup.budget_bytes = size_t{3} << 20;
  setup.options.max_running = 2;
  Server server = Make(setup);
  const std::vector<int32_t> system = Prompt(100, 1);
  for (unsigned i = 0; i < 3; ++i) {
    std::vector<int32_t> text = system;
    const std::vector<int32_t> more = Prompt(300, 10 + i);
    text.insert(text.end(), more.begin(), more.end());
    Request request = Greedy(text, 10);
    request.num_pinned = system.size();
    auto sink = Send(server, request);
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
    EXPECT_EQ(sink->usage_.cached_tokens, i == 0 ? 0 : 100);
    for (const auto& [from, to] : sink->cache_.evicted_spans) EXPECT_GE(from, 100) << "pinned";
  }
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
}

std::vector<float> Logprobs(Collector& sink) {
  std::vector<float> all;
  for (const TokenLogprobs& one : sink.choices_[0].result->logprobs) all.push_back(one.chosen.logprob);
  return all;
}

// Bit for bit, while others run whose steps differ each time.
TEST(ModelScheduler, DeterministicReuseGivesTheSameBits) {
  for (const char* recipe : {"full", "snapkv:window=8"}) {
    SCOPED_TRACE(recipe);
    ServerSetup setup;
    setup.recipe = recipe;
    setup.block_tokens = 32;
    setup.budget_bytes = std::string(recipe) == "full" ? size_t{16} << 20 : size_t{3} << 20;
    setup.options.max_running = 4;
    setup.options.deterministic_reuse = true;
    Server server = Make(setup);
    const std::vector<int32_t> system = Prompt(150, 1);
    std::vector<float> expected;
    for (unsigned i = 0; i < 4; ++i) {
      auto noise = Send(server, Greedy(Prompt(40 + 37 * i, 50 + i), 40));
      std::vector<int32_t> text = system;
      const std::vector<int32_t> more = Prompt(120, i == 0 ? 7 : 8);
      text.insert(text.end(), more.begin(), more.end());
      Request request = Greedy(text, 30);
      request.sampling.temperature = 1;
      request.num_pinned = 130;
      request.generation.num_logprobs = 0;
      request.reuse_prefix = i != 2;
      auto sink = Send(server, request);
      ASSERT_TRUE(sink->Wait());
      ASSERT_FALSE(sink->error_) << sink->error_->message;
      EXPECT_EQ(sink->usage_.cached_tokens % 32, 0);
      EXPECT_EQ(sink->usage_.cached_tokens > 0, i == 1 || i == 3) << i;
      if (i == 1) expected = Logprobs(*sink);
      if (i > 1) {
        EXPECT_EQ(Logprobs(*sink), expected);
      }
      ASSERT_TRUE(noise->Wait());
    }
    EXPECT_FALSE(expected.empty());
  }
}

// Texts without a limit begin with little that is promised; who came last makes room and goes on later.
TEST(ModelScheduler, TextsThatOutgrowTheBudgetTakeTurns) {
  ServerSetup setup;
  setup.options.max_running = 3;
  setup.options.max_retained = 0;
  setup.budget_bytes = BudgetFor(setup, 1, 500) + BudgetFor(setup, 1, 330) - BudgetFor(setup, 0, 1);
  Server server = Make(setup);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (unsigned i = 0; i < 3; ++i) {
    Request request = Greedy(Prompt(40, i), -1);
    request.sampling.logit_bias = {{kEndToken, -INFINITY}};
    sinks.push_back(Send(server, request));
  }
  for (unsigned i = 0; i < 3; ++i) {
    ASSERT_TRUE(sinks[i]->Wait());
    ASSERT_FALSE(sinks[i]->error_) << sinks[i]->error_->message;
    EXPECT_EQ(sinks[i]->choices_[0].result->stop, StopReason::kContext);
    EXPECT_LT(WorstLead(Prompt(40, i), sinks[i]->tokens()), kRounding);
  }
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_GT(stats.preempted, 0U);
  EXPECT_LE(stats.kv.peak_bytes, stats.kv.budget_bytes);
}

TEST(ModelScheduler, SlotsGoToFilesAndComeBack) {
  const std::string folder = ::testing::TempDir() + fmt::format("pith_slots_{}", getpid());
  std::filesystem::create_directories(folder);
  ServerSetup setup;
  setup.options.save_folder = folder;
  std::vector<int32_t> text = Prompt(120, 1);
  int slot = -1;
  {
    Server server = Make(setup);
    auto sink = Send(server, Greedy(text, 10));
    ASSERT_TRUE(sink->Wait());
    slot = sink->slot_;
    for (const char* name : {"", "../x", "a/b", "..", ".hidden", "a\\b", "a b"}) {
      const auto refused = server.scheduler->SaveSlot(slot, name);
      ASSERT_FALSE(refused) << name;
      EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument) << name;
    }
    EXPECT_EQ(server.scheduler->SaveSlot(99, "a.bin").error().code, ErrorCode::kNotFound);
    EXPECT_EQ(server.scheduler->RestoreSlot(slot, "none.bin").error().code, ErrorCode::kNotFound);
    const auto saved = server.scheduler->SaveSlot(slot, "a.bin");
    ASSERT_TRUE(saved) << saved.error().message;
    EXPECT_GE(saved->tokens, 120);
    EXPECT_EQ(saved->bytes, std::filesystem::file_size(folder + "/a.bin"));
    EXPECT_EQ(*server.scheduler->EraseSlot(slot), saved->tokens);
    EXPECT_FALSE(server.scheduler->SaveSlot(slot, "a.bin")) << "it holds nothing";
    EXPECT_EQ(server.scheduler->stats().retained_bytes, 0U);
  }
  Server server = Make(setup);
  const auto restored = server.scheduler->RestoreSlot(slot, "a.bin");
  ASSERT_TRUE(restored) << restored.error().message;
  const std::vector<int32_t> more = Prompt(30, 2);
  text.insert(text.end(), more.begin(), more.end());
  auto sink = Send(server, Greedy(text, 20));
  ASSERT_TRUE(sink->Wait());
  EXPECT_EQ(sink->usage_.cached_tokens, 120);
  EXPECT_LT(WorstLead(text, sink->tokens()), kRounding);
  std::filesystem::remove_all(folder);
}

// Also before the thread has taken their requests up.
TEST(ModelScheduler, WhoLeavesAtOnceLeavesNothing) {
  ServerSetup setup;
  setup.options.max_running = 4;
  Server server = Make(setup);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  Request talks = Greedy(Prompt(20, 1), 400);
  talks.sampling.logit_bias = {{kEndToken, -INFINITY}};
  auto sink = Send(server, talks);
  ASSERT_TRUE(sink->WaitForTexts(1));
  constexpr uint64_t kLeave = 300;
  for (uint64_t i = 0; i < kLeave; ++i) {
    RequestId id = 0;
    (void)Send(server, Greedy(Prompt(30, static_cast<unsigned>(i)), 50), &id);
    server.scheduler->Cancel(id);
    if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_TRUE(sink->Wait());
  EXPECT_FALSE(sink->error_);
  server.scheduler->Drain(5);
  EXPECT_EQ(IdleBytes(server), idle);
  EXPECT_EQ(server.scheduler->stats().cancelled, kLeave) << "and none went on to fail";
  EXPECT_EQ(server.scheduler->stats().live_sequences, 0);
}

// By when the scheduler gave them, whenever the test gets to run. Both are over.
bool FirstTextIsEarlier(Collector& a, Collector& b) {
  return a.choices_[0].times.front() < b.choices_[0].times.front();
}

// A short request that comes while a long prompt is read does not wait for its end.
TEST(ModelScheduler, AShortPromptDoesNotWaitForALongOne) {
  ServerSetup setup;
  setup.num_ctx = 4096;
  setup.budget_bytes = size_t{64} << 20;
  setup.options.max_running = 3;
  Server server = Make(setup);
  auto longest = Send(server, Greedy(Prompt(4000, 1), 5));
  auto brief = Send(server, Greedy(Prompt(30, 2), 1));
  ASSERT_TRUE(brief->Wait());
  ASSERT_TRUE(longest->Wait());
  EXPECT_FALSE(longest->error_);
  EXPECT_TRUE(FirstTextIsEarlier(*brief, *longest));
}

// Of those that wait the shortest is read first; control: in the order in which they came.
TEST(ModelScheduler, AShortPromptOvertakesLongOnesThatWait) {
  for (const double seconds : {60.0, 0.0}) {
    ServerSetup setup;
    setup.num_ctx = 4096;
    setup.budget_bytes = size_t{64} << 20;
    setup.options.max_running = 1;
    setup.options.overtaking_seconds = seconds;
    Server server = Make(setup);
    auto first = Send(server, Greedy(Prompt(500, 1), 1500));
    ASSERT_TRUE(first->WaitForTexts(1)) << "from here on it is known what reading takes";
    auto longer = Send(server, Greedy(Prompt(3000, 2), 1)), brief = Send(server, Greedy(Prompt(30, 3), 1));
    ASSERT_TRUE(brief->Wait());
    ASSERT_TRUE(longer->Wait());
    EXPECT_FALSE(longer->error_);
    EXPECT_EQ(FirstTextIsEarlier(*brief, *longer), seconds > 0);
    ASSERT_TRUE(first->Wait());
  }
}

TEST(ModelScheduler, QuestionsAboutSlotsDoNotHoldUpAnswers) {
  ServerSetup setup;
  setup.options.max_running = 2;
  Server server = Make(setup);
  ASSERT_NE(server.scheduler, nullptr);
  constexpr int kTokens = 60, kAsking = 6;
  Request talks = Greedy(Prompt(20, 1), kTokens);
  talks.sampling.logit_bias = {{kEndToken, -INFINITY}};
  auto sink = Send(server, talks);
  ASSERT_TRUE(sink->WaitForTexts(2));
  std::atomic<int> asked{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kAsking; ++i) {
    threads.emplace_back([&] {
      while (!sink->over()) {
        EXPECT_FALSE(server.scheduler->TokenInSlot(1, 0, ""));  // empty
        if (!sink->over()) ++asked;
      }
    });
  }
  EXPECT_TRUE(sink->Wait());
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(asked, 5) << "control";
  EXPECT_LE(asked, kTokens + 2 * kAsking) << "one for each step";
}

TEST(ModelScheduler, HybridModelsAreServedToo) {
  ServerSetup setup;
  setup.architecture = "lfm2";
  setup.options.max_running = 3;
  setup.options.max_retained = 8;
  Server server = Make(setup);
  ASSERT_NE(server.scheduler, nullptr);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (unsigned i = 0; i < 5; ++i) sinks.push_back(Send(server, Greedy(Prompt(50 + 30 * i, i), 20)));
  std::vector<std::vector<int32_t>> alone;
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
  }
  for (unsigned i = 0; i < 5; ++i) {
    Request request = Greedy(Prompt(50 + 30 * i, i), 20);
    request.reuse_prefix = false;
    auto sink = Send(server, request);
    ASSERT_TRUE(sink->Wait());
    EXPECT_EQ(sink->tokens(), sinks[i]->tokens());
  }
  // A conversation goes on from its state.
  std::vector<int32_t> text = Prompt(50, 0);
  text.insert(text.end(), sinks[0]->tokens().begin(), sinks[0]->tokens().end());
  const std::vector<int32_t> more = Prompt(10, 9);
  text.insert(text.end(), more.begin(), more.end());
  auto next = Send(server, Greedy(text, 5));
  ASSERT_TRUE(next->Wait());
  EXPECT_GE(next->usage_.cached_tokens, 50);
}

}  // namespace
}  // namespace pith::server
