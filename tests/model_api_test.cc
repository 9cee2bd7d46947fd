// The public interface: what is saved, restored or forked goes on as the original does.
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/paths.h"
#include "base/utf8.h"
#include "pith/pith.h"

namespace pith {
namespace {

const GenerateOptions kGreedy = {.max_tokens = 8, .temperature = 0.0f};

Result<Session> Open(int max_conversations) {
  return Session::Open(DefaultModelPath(),
                       {.recipe = "snapkv", .num_ctx = 512, .num_threads = 1, .max_conversations = max_conversations});
}

std::string Continue(Session& session, const std::string& prompt) {
  const auto generated = session.Generate(prompt, kGreedy);
  EXPECT_TRUE(generated) << generated.error().message;
  return generated ? generated->text : std::string();
}

TEST(ModelApi, SavedAndForkedConversationsGoOnAsTheOriginal) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_api_{}", getpid());
  auto session = Open(2);
  ASSERT_TRUE(session) << session.error().message;
  Continue(*session, "The capital of Austria is");
  ASSERT_TRUE(session->Save(path));
  const std::string second = " The river that flows through it";
  std::string forked;
  {
    auto fork = session->Fork();
    ASSERT_TRUE(fork) << fork.error().message;
    const auto third = session->Fork();
    ASSERT_FALSE(third);
    EXPECT_EQ(third.error().code, ErrorCode::kOutOfBudget);
    forked = Continue(*fork, second);
  }
  EXPECT_TRUE(session->Fork()) << "a fork that has gone leaves its place";
  const std::string expected = Continue(*session, second);
  EXPECT_EQ(forked, expected);

  auto other = Open(1);
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_NE(Continue(*other, second), expected) << "the control: without the beginning";
  const Status restored = other->Restore(path);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(Continue(*other, second), expected);

  const Status missing = other->Restore(path + ".missing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(other->stats().num_tokens, 0);
  EXPECT_FALSE(Continue(*other, "Once upon a time").empty());
  unlink(path.c_str());
}

TEST(ModelApi, CancelEndsOneGeneration) {
  auto session = Open(1);
  ASSERT_TRUE(session) << session.error().message;
  int pieces = 0;
  const auto cancelled = session->Generate("Once upon a time", kGreedy, [&](std::string_view) {
    if (++pieces == 2) session->Cancel();
    return true;
  });
  ASSERT_FALSE(cancelled);
  EXPECT_EQ(cancelled.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(pieces, 2);
  EXPECT_FALSE(Continue(*session, " there was").empty());
}

// Tokens that a prompt is read as, by its effect: the difference of the prompt's tokens from those of another one.
TEST(ModelApi, ALaterTurnReadsTheEndOfTheFirstAndNothingTwice) {
  auto session = Open(1);
  ASSERT_TRUE(session) << session.error().message;
  const GenerateOptions chat = {.max_tokens = 400, .temperature = 0.0f, .chat = true};
  const auto first = session->Generate("Say hello.", chat);
  ASSERT_TRUE(first) << first.error().message;
  ASSERT_TRUE(first->ended) << first->text;
  const int before = session->stats().num_tokens;
  EXPECT_EQ(before, first->prompt_tokens + first->tokens);
  const auto second = session->Generate("Say hello.", chat);
  ASSERT_TRUE(second) << second.error().message;
  // <|im_end|> \n <|im_start|> user \n Say hello . <|im_end|> \n <|im_start|> assistant \n, and no system message
  auto raw = Open(1);
  ASSERT_TRUE(raw);
  const auto turn = raw->Generate("<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n", kGreedy);
  ASSERT_TRUE(turn);
  EXPECT_EQ(second->prompt_tokens, turn->prompt_tokens);
  EXPECT_LT(second->prompt_tokens, first->prompt_tokens);
}

TEST(ModelApi, AnAnswerThatWasCutIsReadToItsEnd) {
  auto session = Open(2);
  ASSERT_TRUE(session) << session.error().message;
  const GenerateOptions chat = {.max_tokens = 3, .temperature = 0.0f, .chat = true};
  const auto first = session->Generate("Tell me a long story.", chat);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->stop, StopReason::kLength);
  EXPECT_FALSE(first->ended);
  const auto second = session->Generate("Go on.", chat);
  ASSERT_TRUE(second);
  EXPECT_EQ(session->stats().num_tokens, first->prompt_tokens + 3 - 1 + second->prompt_tokens + 3 - 1);
}

TEST(ModelApi, TheContextsEndReturnsTheText) {
  auto session = Session::Open(DefaultModelPath(), {.num_ctx = 48, .num_threads = 1});
  ASSERT_TRUE(session) << session.error().message;
  std::string shown;
  const auto generated = session->Generate("One, two, three, four, five, six,", {.max_tokens = 1000, .temperature = 0.0f, .ignore_eos = true},
                                           [&](std::string_view text) {
                                             shown += text;
                                             return true;
                                           });
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->stop, StopReason::kContext);
  EXPECT_FALSE(generated->text.empty());
  EXPECT_EQ(generated->text, shown);
  const auto none = session->Generate(" and so on", kGreedy);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(session->Reset());
  EXPECT_TRUE(session->Generate("One, two", kGreedy));
}

TEST(ModelApi, TheBudgetsEndReturnsTheText) {
  // 9 MiB hold some 320 of the default model's tokens.
  auto session = Session::Open(DefaultModelPath(), {.kv_budget_bytes = size_t{9} << 20, .num_ctx = 1024, .num_threads = 1});
  ASSERT_TRUE(session) << session.error().message;
  const auto generated = session->Generate("One, two, three,", {.max_tokens = 800, .temperature = 0.0f, .ignore_eos = true});
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->stop, StopReason::kBudget);
  EXPECT_FALSE(generated->text.empty());
  EXPECT_FALSE(generated->stop_message.empty());
}

TEST(ModelApi, EachGenerationDrawsItsOwnNumbers) {
  const GenerateOptions wild = {.max_tokens = 12, .temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f};
  std::string firsts[2];
  for (std::string& first : firsts) {
    auto session = Open(3);
    ASSERT_TRUE(session) << session.error().message;
    ASSERT_TRUE(session->Generate("Once upon a time", {.max_tokens = 0}));
    auto fork = session->Fork(), other = session->Fork();
    ASSERT_TRUE(fork && other);
    const auto a = session->Generate(" there was", wild), b = fork->Generate(" there was", wild),
               c = other->Generate(" there was", wild);
    ASSERT_TRUE(a && b && c);
    EXPECT_NE(a->text, b->text);
    EXPECT_NE(b->text, c->text);
    EXPECT_NE(a->text, c->text);
    first = a->text + b->text + c->text;
  }
  EXPECT_EQ(firsts[0], firsts[1]) << "seed and order of calls fix them";
}

TEST(ModelApi, PiecesAreWholeCharactersAndStopStringsEndThem) {
  auto session = Open(1);
  ASSERT_TRUE(session) << session.error().message;
  std::string shown;
  const GenerateOptions wild = {.max_tokens = 60, .temperature = 100.0f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f};
  const auto generated = session->Generate("\xe6\x97\xa5\xe6\x9c\xac", wild, [&](std::string_view text) {
    EXPECT_EQ(FindInvalidUtf8(text), std::string_view::npos);
    shown += text;
    return true;
  });
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->text, shown);
  EXPECT_EQ(FindInvalidUtf8(generated->text), std::string::npos);

  ASSERT_TRUE(session->Reset());
  const GenerateOptions counting = {.max_tokens = 24, .temperature = 0.0f, .repeat_penalty = 1.0f};
  const auto whole = session->Generate("One, two, three, four,", counting);
  ASSERT_TRUE(whole);
  ASSERT_TRUE(session->Reset());
  GenerateOptions stopping = counting;
  stopping.stops = {whole->text.substr(4, 4)};
  const auto stopped = session->Generate("One, two, three, four,", stopping);
  ASSERT_TRUE(stopped);
  EXPECT_EQ(stopped->stop, StopReason::kStopString);
  EXPECT_EQ(stopped->text, whole->text.substr(0, whole->text.find(stopping.stops[0])));
  stopping.stops = {};
  stopping.grammar = "root ::= (";
  const auto broken = session->Generate("One", stopping);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelApi, ASystemMessageIsPinnedAndSavedConversationsGoOn) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_api_chat_{}", getpid());
  const SessionOptions options = {.num_ctx = 512, .num_threads = 1, .system = "Answer in one word."};
  auto session = Session::Open(DefaultModelPath(), options), other = Session::Open(DefaultModelPath(), options);
  ASSERT_TRUE(session && other);
  const GenerateOptions chat = {.max_tokens = 6, .temperature = 0.0f, .chat = true};
  ASSERT_TRUE(session->Generate("My name is Ann.", chat));
  ASSERT_TRUE(session->Save(path));
  ASSERT_TRUE(other->Restore(path));
  const auto expected = session->Generate("What is my name?", chat), found = other->Generate("What is my name?", chat);
  ASSERT_TRUE(expected && found);
  EXPECT_EQ(found->text, expected->text);
  EXPECT_EQ(found->prompt_tokens, expected->prompt_tokens);
  unlink(path.c_str());
}

TEST(ModelApi, ThreadsArePhysicalCoresUnlessGiven) {
  // The same bits as with that number of threads: a thread count fixes the result.
  auto by_default = Session::Open(DefaultModelPath(), {.num_ctx = 256});
  auto by_count = Session::Open(DefaultModelPath(), {.num_ctx = 256, .num_threads = PhysicalCores()});
  ASSERT_TRUE(by_default && by_count);
  EXPECT_EQ(by_default->stats().kv_budget_bytes, by_count->stats().kv_budget_bytes);
  EXPECT_EQ(Continue(*by_default, "The capital of Austria is"), Continue(*by_count, "The capital of Austria is"));
}

}  // namespace
}  // namespace pith
