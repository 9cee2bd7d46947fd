// The public interface: what is saved, restored or forked goes on as the original does.
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/cores.h"
#include "base/paths.h"
#include "base/utf8.h"
#include "pith/pith.hpp"

namespace pith {
namespace {

const SamplingOptions kMostProbable = {.temperature = 0.0f};
const GenerateOptions kGreedy = {.max_tokens = 8, .sampling = kMostProbable};
const SamplingOptions kWild = {.temperature = 1.5f, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f};

const Model& DefaultModel() {
  static const Result<Model> model = Model::Load(DefaultModelPath(), {.num_threads = 1});
  EXPECT_TRUE(model) << model.error().message;
  return *model;
}

Result<Conversation> Open(EngineOptions options, const ConversationOptions& conversation = {}) {
  options.num_threads = options.num_threads > 0 ? options.num_threads : 1;
  PITH_ASSIGN_OR_RETURN(const Engine engine, Engine::Create(DefaultModel(), options));
  return Conversation::Create(engine, conversation);
}

Result<Conversation> Open(int max_sequences) {
  return Open({.num_ctx = 512, .max_sequences = max_sequences, .recipe = "snapkv"});
}

std::string Continue(Conversation& conversation, const std::string& prompt) {
  const auto generated = conversation.Complete(prompt, kGreedy);
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
  EXPECT_EQ(other->num_tokens(), 0);
  EXPECT_FALSE(Continue(*other, "Once upon a time").empty());
  unlink(path.c_str());
}

TEST(ModelApi, CancelEndsOneGeneration) {
  auto session = Open(1);
  ASSERT_TRUE(session) << session.error().message;
  int pieces = 0;
  const auto cancelled = session->Complete("Once upon a time", kGreedy, [&](std::string_view) {
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
  // So that any model ends its answer.
  const GenerateOptions chat = {.max_tokens = 40, .sampling = {.temperature = 0.0f, .grammar = "root ::= \"Hello!\""}};
  const auto first = session->Say("Say hello.", chat);
  ASSERT_TRUE(first) << first.error().message;
  ASSERT_TRUE(first->ended()) << first->text;
  const int before = session->num_tokens();
  EXPECT_EQ(before, first->prompt_tokens + static_cast<int>(first->tokens.size()));
  const auto second = session->Say("Say hello.", chat);
  ASSERT_TRUE(second) << second.error().message;
  // <|im_end|> \n <|im_start|> user \n Say hello . <|im_end|> \n <|im_start|> assistant \n, and no system message
  auto raw = Open(1);
  ASSERT_TRUE(raw);
  const auto turn =
      raw->Complete("<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n", kGreedy);
  ASSERT_TRUE(turn);
  EXPECT_EQ(second->prompt_tokens, turn->prompt_tokens);
  EXPECT_LT(second->prompt_tokens, first->prompt_tokens);
}

TEST(ModelApi, AnAnswerThatWasCutIsReadToItsEnd) {
  auto session = Open(2);
  ASSERT_TRUE(session) << session.error().message;
  const GenerateOptions chat = {.max_tokens = 3, .sampling = kMostProbable};
  const auto first = session->Say("Tell me a long story.", chat);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->stop, StopReason::kLength);
  EXPECT_FALSE(first->ended());
  const auto second = session->Say("Go on.", chat);
  ASSERT_TRUE(second);
  EXPECT_EQ(session->num_tokens(), first->prompt_tokens + 3 - 1 + second->prompt_tokens + 3 - 1);
}

TEST(ModelApi, TheContextsEndReturnsTheText) {
  auto session = Open({.num_ctx = 48});
  ASSERT_TRUE(session) << session.error().message;
  std::string shown;
  const auto generated = session->Complete("One, two, three, four, five, six,",
                                           {.max_tokens = 1000, .sampling = {.temperature = 0.0f, .ignore_eos = true}},
                                           [&](std::string_view text) {
                                             shown += text;
                                             return true;
                                           });
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->stop, StopReason::kContext);
  EXPECT_FALSE(generated->text.empty());
  EXPECT_EQ(generated->text, shown);
  const auto none = session->Complete(" and so on", kGreedy);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(session->Reset());
  EXPECT_TRUE(session->Complete("One, two", kGreedy));
}

TEST(ModelApi, TheBudgetsEndReturnsTheText) {
  // 9 MiB hold some 320 of the default model's tokens.
  auto session = Open({.budget_bytes = size_t{9} << 20, .num_ctx = 1024});
  ASSERT_TRUE(session) << session.error().message;
  const auto generated =
      session->Complete("One, two, three,", {.max_tokens = 800, .sampling = {.temperature = 0.0f, .ignore_eos = true}});
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->stop, StopReason::kBudget);
  EXPECT_FALSE(generated->text.empty());
  EXPECT_FALSE(generated->stop_message.empty());
}

TEST(ModelApi, EachGenerationDrawsItsOwnNumbers) {
  const GenerateOptions wild = {.max_tokens = 12, .sampling = kWild};
  std::string firsts[2];
  for (std::string& first : firsts) {
    auto session = Open(3);
    ASSERT_TRUE(session) << session.error().message;
    ASSERT_TRUE(session->Read("Once upon a time"));
    auto fork = session->Fork(), other = session->Fork();
    ASSERT_TRUE(fork && other);
    const auto a = session->Complete(" there was", wild), b = fork->Complete(" there was", wild),
               c = other->Complete(" there was", wild);
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
  GenerateOptions wild = {.max_tokens = 60, .sampling = kWild};
  wild.sampling.temperature = 100.0f;
  const auto generated = session->Complete("\xe6\x97\xa5\xe6\x9c\xac", wild, [&](std::string_view text) {
    EXPECT_EQ(FindInvalidUtf8(text), std::string_view::npos);
    shown += text;
    return true;
  });
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->text, shown);
  EXPECT_EQ(FindInvalidUtf8(generated->text), std::string::npos);

  ASSERT_TRUE(session->Reset());
  const GenerateOptions counting = {.max_tokens = 24, .sampling = {.temperature = 0.0f, .repeat_penalty = 1.0f}};
  const auto whole = session->Complete("One, two, three, four,", counting);
  ASSERT_TRUE(whole);
  ASSERT_TRUE(session->Reset());
  GenerateOptions stopping = counting;
  stopping.stops = {whole->text.substr(4, 4)};
  const auto stopped = session->Complete("One, two, three, four,", stopping);
  ASSERT_TRUE(stopped);
  EXPECT_EQ(stopped->stop, StopReason::kStopString);
  EXPECT_EQ(stopped->text, whole->text.substr(0, whole->text.find(stopping.stops[0])));
  stopping.stops = {};
  stopping.sampling.grammar = "root ::= (";
  const auto broken = session->Complete("One", stopping);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelApi, ASystemMessageIsPinnedAndSavedConversationsGoOn) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_api_chat_{}", getpid());
  const ConversationOptions options = {.system = "Answer in one word."};
  auto session = Open({.num_ctx = 512}, options), other = Open({.num_ctx = 512}, options);
  ASSERT_TRUE(session && other);
  EXPECT_EQ(session->note(), "");
  const GenerateOptions chat = {.max_tokens = 6, .sampling = kMostProbable};
  ASSERT_TRUE(session->Say("My name is Ann.", chat));
  ASSERT_TRUE(session->Save(path));
  ASSERT_TRUE(other->Restore(path));
  const auto expected = session->Say("What is my name?", chat), found = other->Say("What is my name?", chat);
  ASSERT_TRUE(expected && found);
  EXPECT_EQ(found->text, expected->text);
  EXPECT_EQ(found->prompt_tokens, expected->prompt_tokens);
  unlink(path.c_str());
}

TEST(ModelApi, ThreadsArePhysicalCoresUnlessGiven) {
  // The same bits as with that number of threads: a thread count fixes the result.
  const auto open = [](int num_threads) {
    const auto engine = Engine::Create(DefaultModel(), {.num_ctx = 256, .num_threads = num_threads});
    EXPECT_TRUE(engine) << engine.error().message;
    return Conversation::Create(*engine);
  };
  auto by_default = open(0), by_count = open(PhysicalCores());
  ASSERT_TRUE(by_default && by_count);
  EXPECT_EQ(by_default->engine().stats().budget_bytes, by_count->engine().stats().budget_bytes);
  EXPECT_EQ(Continue(*by_default, "The capital of Austria is"), Continue(*by_count, "The capital of Austria is"));
}

TEST(ModelApi, AnAnswerThatWasCutGoesOn) {
  auto whole = Open(1), parts = Open(1);
  ASSERT_TRUE(whole && parts);
  const std::string question = "Name the days of the week.";
  const auto expected = whole->Say(question, {.max_tokens = 20, .sampling = kMostProbable});
  auto first = parts->Say(question, {.max_tokens = 9, .sampling = kMostProbable});
  ASSERT_TRUE(expected && first);
  EXPECT_EQ(first->stop, StopReason::kLength);
  const auto second = parts->GoOn({.max_tokens = 11, .sampling = kMostProbable});
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(first->text + second->text, expected->text);
  const auto silence = Open(1)->GoOn(kGreedy);
  ASSERT_FALSE(silence);
  EXPECT_EQ(silence.error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelApi, ConversationsComeBackFromMemory) {
  auto session = Open(1), other = Open(1);
  ASSERT_TRUE(session && other);
  ASSERT_TRUE(session->Say("My name is Ann.", kGreedy));
  const auto saved = session->SaveToMemory();
  ASSERT_TRUE(saved) << saved.error().message;
  ASSERT_TRUE(other->Restore(*saved));
  const auto expected = session->Say("What is my name?", kGreedy), found = other->Say("What is my name?", kGreedy);
  ASSERT_TRUE(expected && found);
  EXPECT_EQ(found->text, expected->text);
  const Status damaged = other->Restore(std::span(*saved).first(saved->size() / 2));
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(other->num_tokens(), 0);
}

}  // namespace
}  // namespace pith
