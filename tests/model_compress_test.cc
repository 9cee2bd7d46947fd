// Prompts that a server compresses once they are whole: what stays is what the engine alone would keep, others' answers
// go on meanwhile, and bytes are what was asked for.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/scheduler_clients.h"

namespace pith::server {
namespace {

using namespace testing;  // NOLINT: requests and their sinks

constexpr const char* kOnce = "kvzip:chunk=64";

ServerSetup SetupOf(const char* recipe) {
  ServerSetup setup;
  setup.recipe = recipe;
  setup.num_ctx = 1024;
  setup.options.max_running = 3;
  setup.options.max_retained = 4;
  return setup;
}

// Positions that no head holds once an engine has read the prompt alone and compressed it.
std::vector<std::pair<int32_t, int32_t>> EvictedAlone(const std::vector<int32_t>& prompt, double keep) {
  EngineOptions options;
  options.num_ctx = 1024;
  options.num_threads = 1;
  options.block_tokens = 64;
  options.recipe = *ParseRecipe(kOnce);
  options.compress = CompressMode::kAfter;
  auto engine = Engine::Create(RandomModel(), options);
  EXPECT_TRUE(engine);
  const SequenceId id = *(*engine)->NewSequence();
  EXPECT_TRUE((*engine)->Prefill(id, prompt));
  EXPECT_TRUE((*engine)->Compress(id, options.recipe, keep));
  std::vector<int> held(prompt.size(), 0);
  int layer = 0;
  for (const LayerShape& shape : RandomModel()->info().layers) {
    if (shape.kind != LayerKind::kGlobal) continue;
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      for (const int32_t at : (*engine)->EntryPositions(id, layer, head)) ++held[static_cast<size_t>(at)];
    }
    ++layer;
  }
  std::vector<std::pair<int32_t, int32_t>> spans;
  for (int32_t at = 0; at < static_cast<int32_t>(held.size()); ++at) {
    if (held[static_cast<size_t>(at)] > 0) continue;
    if (!spans.empty() && spans.back().second == at)
      spans.back().second = at + 1;
    else
      spans.emplace_back(at, at + 1);
  }
  return spans;
}

TEST(ModelCompress, AServerKeepsWhatTheEngineAloneKeeps) {
  Server server = Make(SetupOf(kOnce));
  ASSERT_NE(server.scheduler, nullptr);
  const std::vector<int32_t> prompt = Prompt(300, 1);
  Request request = Greedy(prompt, 1);
  request.keep = 0.2;
  auto sink = Send(server, request);
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  EXPECT_NEAR(sink->cache_.kept_fraction, 0.2, 0.01);
  EXPECT_EQ(sink->cache_.compress, CompressMode::kAfter);
  const auto alone = EvictedAlone(prompt, 0.2);
  EXPECT_EQ(sink->cache_.evicted_spans, alone);
  EXPECT_NE(EvictedAlone(Prompt(300, 2), 0.2), alone) << "control: another prompt";
  const SchedulerStats stats = server.scheduler->stats();
  EXPECT_EQ(stats.compressed, 1U);
  ASSERT_EQ(stats.evicted_entries.size(), 1U);
  EXPECT_EQ(stats.evicted_entries.front().first, kOnce);
  EXPECT_GT(stats.evicted_entries.front().second, 0U);
  EXPECT_GT(stats.compress_seconds, 0);
  // The engine's own share, where nobody says.
  auto usual = Send(server, Greedy(Prompt(300, 3), 1));
  ASSERT_TRUE(usual->Wait());
  EXPECT_NEAR(usual->cache_.kept_fraction, server.scheduler->stats().compressed == 2 ? 0.3 : -1, 0.01);
}

// That another request gets while a prompt of 1,500 tokens is read again and compressed. -1: it did not go on well.
int TokensBesideCompressing(const char* recipe) {
  ServerSetup setup = SetupOf(recipe);
  setup.num_ctx = 2048;
  setup.budget_bytes = size_t{64} << 20;
  Server server = Make(setup);
  if (server.scheduler == nullptr) return -1;
  Request talks = Greedy(Prompt(40, 1), 2000);  // for longer than all else takes
  talks.recipe = *ParseRecipe("full");
  talks.sampling.logit_bias = {{kEndToken, -INFINITY}};
  RequestId id = 0;
  auto running = Send(server, talks, &id);
  if (!running->WaitForTexts(3)) return -1;
  auto sink = Send(server, Greedy(Prompt(1500, 2), 4));
  if (!sink->WaitForTexts(1)) return -1;
  const auto began = std::chrono::steady_clock::now();  // its first token is there: the second reading begins
  if (!sink->Wait()) return -1;
  const auto ended = std::chrono::steady_clock::now();
  EXPECT_FALSE(sink->error_) << sink->error_->message;
  EXPECT_NEAR(sink->cache_.kept_fraction, 0.3, 0.02);
  EXPECT_FALSE(running->over()) << "it ended too early to show anything";
  server.scheduler->Cancel(id);  // nothing more is told
  std::vector<int32_t> tokens = running->tokens();
  tokens.resize(std::min<size_t>(tokens.size(), 900));
  EXPECT_LT(WorstLead(talks.prompt, tokens), kRounding) << "it did not notice";
  return static_cast<int>(
      std::ranges::count_if(running->choices_[0].times, [&](const auto& at) { return at > began && at < ended; }));
}

// A server whose requests are compressed by blocks, unless they say otherwise.
Server ByBlocks(size_t budget_bytes, int max_running) {
  ServerSetup setup;
  setup.recipe = "pith";
  setup.num_ctx = 1024;
  setup.budget_bytes = budget_bytes;
  setup.options.max_running = max_running;
  return Make(setup);
}

TEST(ModelCompress, ARequestMayWantItsPromptCompressedOnce) {
  Server server = ByBlocks(size_t{1534} << 10, 7);
  ASSERT_NE(server.scheduler, nullptr);
  ASSERT_TRUE(server.engine->options().recipe.format) << "control: by blocks its entries are stored in few bits";
  Request request = Greedy(Prompt(300, 1), 20);
  request.compress = CompressMode::kAfter;
  request.keep = 0.3;
  auto sink = Send(server, request);
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  EXPECT_EQ(sink->cache_.compress, CompressMode::kAfter);
  EXPECT_EQ(server.scheduler->stats().compressed, 1U);
  request.compress.reset();
  request.keep = 0;
  auto by_blocks = Send(server, request);
  ASSERT_TRUE(by_blocks->Wait());
  ASSERT_FALSE(by_blocks->error_) << by_blocks->error_->message;
  EXPECT_EQ(by_blocks->cache_.compress, CompressMode::kBlock);
}

// The same words are another recipe where a prompt is whole.
TEST(ModelCompress, SlotsComeBackHoweverTheyWereCompressed) {
  const std::string folder = ::testing::TempDir() + fmt::format("pith_compressed_slots_{}", getpid());
  std::filesystem::create_directories(folder);
  ServerSetup setup;
  setup.recipe = "pith";
  setup.num_ctx = 1024;
  setup.budget_bytes = size_t{4} << 20;
  setup.options.save_folder = folder;
  Server server = Make(setup);
  ASSERT_NE(server.scheduler, nullptr);
  for (const CompressMode compress : {CompressMode::kAfter, CompressMode::kBlock}) {
    Request request = Greedy(Prompt(300, 1), 10);
    request.compress = compress;
    request.keep = compress == CompressMode::kAfter ? 0.3 : 0;
    auto first = Send(server, request);
    ASSERT_TRUE(first->Wait());
    ASSERT_FALSE(first->error_) << first->error_->message;
    const auto saved = server.scheduler->SaveSlot(first->slot_, "a.bin");
    ASSERT_TRUE(saved) << saved.error().message;
    ASSERT_TRUE(server.scheduler->EraseSlot(first->slot_));
    const auto restored = server.scheduler->RestoreSlot(first->slot_, "a.bin");
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(restored->tokens, saved->tokens);
    auto again = Send(server, request);
    ASSERT_TRUE(again->Wait());
    ASSERT_FALSE(again->error_) << again->error_->message;
    EXPECT_EQ(again->cache_.compress, compress);
    EXPECT_EQ(again->tokens(), first->tokens());
    (void)server.scheduler->EraseSlot(again->slot_);
  }
  std::filesystem::remove_all(folder);
}

// The small model's positions end at 512, and a second reading wants some behind the prompt.
TEST(ModelCompress, WhatCannotBeReadAgainForWantOfPositionsIsReadByBlocks) {
  Server server = ByBlocks(size_t{4} << 20, 3);
  ASSERT_NE(server.scheduler, nullptr);
  for (const size_t count : {size_t{300}, size_t{482}}) {
    Request request = Greedy(Prompt(count, 1), 5);
    request.compress = CompressMode::kAfter;
    request.keep = 0.3;
    auto sink = Send(server, request);
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
    EXPECT_EQ(sink->cache_.compress, count == 300 ? CompressMode::kAfter : CompressMode::kBlock);
  }
}

TEST(ModelCompress, AnswersGoOnBesideASecondReading) {
  EXPECT_GE(TokensBesideCompressing(kOnce), 10) << "its tokens came beside the reading's pieces";
}

TEST(ModelCompress, AnswersGoOnBesideWhatIsFitted) {
  int num_heads = 0;
  for (const LayerShape& shape : RandomModel()->info().layers)
    num_heads += shape.kind == LayerKind::kGlobal ? shape.num_kv_heads : 0;
  const int plain = TokensBesideCompressing(kOnce), fitted = TokensBesideCompressing("kvzip:chunk=64 act=residue");
  EXPECT_GT(plain, 0) << "control: what is not fitted takes a few steps";
  EXPECT_GE(fitted, num_heads) << "no two heads of one thread are fitted between two steps";
}

TEST(ModelCompress, WhoLeavesDuringASecondReadingLeavesNothing) {
  ServerSetup setup = SetupOf(kOnce);
  setup.num_ctx = 2048;
  setup.budget_bytes = size_t{64} << 20;
  Server server = Make(setup);
  const size_t idle = server.scheduler->stats().kv.used_bytes;
  RequestId id = 0;
  auto sink = Send(server, Greedy(Prompt(1800, 2), 50), &id);
  ASSERT_TRUE(sink->WaitForTexts(1));
  server.scheduler->Cancel(id);
  auto next = Send(server, Greedy(Prompt(100, 3), 4));
  ASSERT_TRUE(next->Wait());
  EXPECT_FALSE(next->error_);
  EXPECT_FALSE(sink->over());
  EXPECT_EQ(server.scheduler->stats().cancelled, 1U);
  EXPECT_EQ(IdleBytes(server), idle);
}

TEST(ModelCompress, AConversationStaysWithinItsBudgetTurnAfterTurn) {
  Server server = Make(SetupOf(kOnce));
  std::vector<int32_t> text = Prompt(400, 1);
  auto whole = Send(server, [&] {
    Request request = Greedy(text, 1);
    request.recipe = *ParseRecipe("full");
    request.reuse_prefix = false;
    return request;
  }());
  ASSERT_TRUE(whole->Wait());
  const size_t budget = whole->cache_.used_bytes / 2;
  for (unsigned turn = 0; turn < 3; ++turn) {
    SCOPED_TRACE(turn);
    Request request = Greedy(text, 30);
    request.kv_budget_bytes = budget;
    auto sink = Send(server, request);
    ASSERT_TRUE(sink->Wait());
    ASSERT_FALSE(sink->error_) << sink->error_->message;
    EXPECT_EQ(sink->cache_.budget_bytes, budget);
    EXPECT_LE(sink->cache_.used_bytes, budget);
    EXPECT_GT(sink->cache_.used_bytes, budget / 3) << "and not much less than it may hold";
    EXPECT_EQ(sink->choices_[0].result->stop == StopReason::kBudget, false);
    EXPECT_GE(sink->usage_.cached_tokens, turn > 0 ? 400 : 0);
    text.insert(text.end(), sink->tokens().begin(), sink->tokens().end());
    const std::vector<int32_t> more = Prompt(150, 10 + turn);
    text.insert(text.end(), more.begin(), more.end());
  }
}

// An answer without end is compressed on its way.
TEST(ModelCompress, AnAnswerThatOutgrowsItsBudgetGoesOn) {
  Server server = Make(SetupOf("kvzip:chunk=64"));
  Request request = Greedy(Prompt(200, 1), 700);
  request.sampling.logit_bias = {{kEndToken, -INFINITY}};
  auto probe = request;
  probe.recipe = *ParseRecipe("full");
  probe.generation.max_tokens = 1;
  probe.reuse_prefix = false;
  auto whole = Send(server, probe);
  ASSERT_TRUE(whole->Wait());
  request.kv_budget_bytes = whole->cache_.used_bytes * 3 / 2;
  auto sink = Send(server, request);
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  EXPECT_EQ(sink->tokens().size(), 700U);
  EXPECT_LE(sink->cache_.used_bytes, request.kv_budget_bytes);
  EXPECT_GT(server.scheduler->stats().compressed, 1U);
}

TEST(ModelCompress, AllChoicesGoOnFromWhatIsLeft) {
  Server server = Make(SetupOf(kOnce));
  Request request = Greedy(Prompt(300, 1), 12);
  request.num_choices = 3;
  request.sampling.temperature = 1;
  request.sampling.logit_bias = {{kEndToken, -INFINITY}};
  auto sink = Send(server, request);
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  for (int choice = 0; choice < 3; ++choice) EXPECT_EQ(sink->tokens(choice).size(), 12U);
  EXPECT_NEAR(sink->cache_.kept_fraction, 0.3, 0.05);
}

TEST(ModelCompress, WhatIsTooLongForAWholePromptIsReadByBlocksOrRefused) {
  ServerSetup setup = SetupOf("full");
  Server roomy = Make(setup);
  auto whole = Send(roomy, Greedy(Prompt(1000, 1), 4));
  ASSERT_TRUE(whole->Wait());
  setup.budget_bytes = IdleBytes(roomy) + whole->cache_.used_bytes * 3 / 4;
  setup.recipe = "kvzip:chunk=64 or keydiff";
  setup.options.max_running = 1;
  setup.options.compress_after = true;
  Server server = Make(setup);
  ASSERT_NE(server.scheduler, nullptr);
  auto brief = Send(server, Greedy(Prompt(60, 1), 4));
  ASSERT_TRUE(brief->Wait());
  ASSERT_FALSE(brief->error_) << brief->error_->message;
  EXPECT_EQ(brief->cache_.compress, CompressMode::kAfter);
  auto sink = Send(server, Greedy(Prompt(1000, 1), 4));
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  EXPECT_EQ(sink->cache_.compress, CompressMode::kBlock) << "its alternative";
  EXPECT_LT(sink->cache_.kept_fraction, 1);
  Request alone = Greedy(Prompt(1000, 1), 4);
  alone.recipe = *ParseRecipe("kvzip");
  auto refused = Send(server, alone);
  ASSERT_TRUE(refused->Wait());
  ASSERT_TRUE(refused->error_);
  EXPECT_EQ(refused->error_->code, ErrorCode::kOutOfBudget) << refused->error_->message;
  EXPECT_LE(server.scheduler->stats().kv.peak_bytes, setup.budget_bytes);
}

// Keys lose channels, entries stay.
TEST(ModelCompress, KeysArePrunedOnceAPromptIsWhole) {
  ServerSetup setup = SetupOf("score=streamingllm alloc=full act=prune:channels=0.5");
  setup.options.compress_after = true;
  setup.options.keep = 0.8;
  Server server = Make(setup);
  ASSERT_NE(server.scheduler, nullptr);
  auto sink = Send(server, Greedy(Prompt(300, 1), 8));
  ASSERT_TRUE(sink->Wait());
  ASSERT_FALSE(sink->error_) << sink->error_->message;
  Request whole = Greedy(Prompt(300, 1), 8);
  whole.recipe = *ParseRecipe("full");
  auto full = Send(server, whole);
  ASSERT_TRUE(full->Wait());
  EXPECT_LT(sink->cache_.used_bytes, full->cache_.used_bytes * 95 / 100);
}

// Turn by turn through the prefix that is kept between requests, or as one prompt: each turn is compressed once.
TEST(ModelCompress, TurnsOfAConversationAreCompressedOnceEach) {
  for (const char* recipe : {"snapkv:window=8 turns=flowkv:drop=0.6", "kvzip:chunk=64 turns=flowkv:drop=0.6"}) {
    SCOPED_TRACE(recipe);
    Server server = Make(SetupOf(recipe));
    ASSERT_NE(server.scheduler, nullptr);
    std::vector<int32_t> text = Prompt(200, 1);
    std::vector<size_t> ends;
    CacheReport last;
    for (unsigned turn = 0; turn < 3; ++turn) {
      SCOPED_TRACE(turn);
      Request request = Greedy(text, turn < 2 ? 20 : 1);
      request.turn_ends = ends;
      request.sampling.logit_bias = {{kEndToken, -INFINITY}};
      auto sink = Send(server, request);
      ASSERT_TRUE(sink->Wait());
      ASSERT_FALSE(sink->error_) << sink->error_->message;
      EXPECT_EQ(sink->cache_.kept_fraction == 1, turn == 0) << "the first turn is not over";
      // The last token of an answer is read with the next prompt.
      EXPECT_EQ(sink->usage_.cached_tokens, turn == 0 ? 0 : static_cast<int>(ends.back()) - 1);
      last = sink->cache_;
      if (turn == 2) break;
      text.insert(text.end(), sink->tokens().begin(), sink->tokens().end());
      ends.push_back(text.size());
      const std::vector<int32_t> more = Prompt(100, 10 + turn);
      text.insert(text.end(), more.begin(), more.end());
    }
    // 340 tokens of turns that are over, 40% of which stay, and 100 of the last one.
    EXPECT_NEAR(last.kept_fraction, (0.4 * 340 + 100) / 440, 0.03);
    Request whole = Greedy(text, 1);
    whole.turn_ends = ends;
    whole.reuse_prefix = false;
    auto fresh = Send(server, whole);
    ASSERT_TRUE(fresh->Wait());
    ASSERT_FALSE(fresh->error_) << fresh->error_->message;
    EXPECT_EQ(fresh->usage_.cached_tokens, 0);
    EXPECT_EQ(fresh->cache_.evicted_spans, last.evicted_spans);
    whole.turn_ends.clear();
    auto control = Send(server, whole);
    ASSERT_TRUE(control->Wait());
    EXPECT_EQ(control->cache_.kept_fraction, 1) << "control: nobody said where turns end";
  }
}

}  // namespace
}  // namespace pith::server
