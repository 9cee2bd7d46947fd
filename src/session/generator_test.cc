#include "session/generator.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "session/session_test_util.h"

namespace pith {
namespace {

using testing::ByteModel;
using testing::FakeSequence;

// Samples the bytes of a text, then the token that ends it.
Sampler Script(std::string text) {
  return [text = std::move(text), at = size_t{0}](std::span<const float>) mutable -> Result<int32_t> {
    return at < text.size() ? static_cast<unsigned char>(text[at++]) : testing::kEnd;
  };
}

struct Outcome {
  GenerationResult result;
  std::vector<std::string> pieces;
  FakeSequence sequence;
};

Outcome Play(const std::string& script, GeneratorOptions options, int num_ctx = 1000, size_t pieces_wanted = 1000) {
  const ByteModel model;
  Outcome outcome;
  GenerateHooks hooks{.num_ctx = num_ctx, .on_text = {}, .interrupted = {}};
  hooks.on_text = [&](std::string_view text) {
    outcome.pieces.emplace_back(text);
    return outcome.pieces.size() < pieces_wanted;
  };
  auto result = Generate(outcome.sequence, Generator(model, Script(script), std::move(options)), hooks);
  EXPECT_TRUE(result) << result.error().message;
  if (result) outcome.result = std::move(*result);
  std::string shown;
  for (const std::string& piece : outcome.pieces) {
    shown += piece;
    EXPECT_EQ(FindInvalidUtf8(piece), std::string::npos);
  }
  EXPECT_EQ(shown, outcome.result.text) << "what is shown is the text";
  return outcome;
}

TEST(Generator, EndsWithTheModel) {
  const Outcome outcome = Play("hello", {});
  EXPECT_EQ(outcome.result.text, "hello");
  EXPECT_EQ(outcome.result.stop, StopReason::kEnd);
  EXPECT_EQ(outcome.result.tokens.size(), 5u);
  EXPECT_FALSE(outcome.result.unfed) << "the end token is none of the answer's";
  EXPECT_EQ(outcome.sequence.num_tokens(), 5);
}

TEST(Generator, EndsAfterMaxTokens) {
  const Outcome outcome = Play("hello", {.max_tokens = 3});
  EXPECT_EQ(outcome.result.text, "hel");
  EXPECT_EQ(outcome.result.stop, StopReason::kLength);
  EXPECT_EQ(outcome.result.unfed, 'l');
  EXPECT_EQ(outcome.sequence.num_tokens(), 2);
  const Outcome none = Play("hello", {.max_tokens = 0});
  EXPECT_EQ(none.result.text, "");
  EXPECT_EQ(none.result.stop, StopReason::kLength);
  EXPECT_FALSE(none.result.unfed);
}

TEST(Generator, ALimitOfTimeEndsTheTextWithItsLine) {
  constexpr double kLimit = 0.05;
  const ByteModel model;
  const auto play = [&](double limit) {
    int sampled = 0;
    const Sampler slow = [&](std::span<const float>) -> Result<int32_t> {
      const std::string script = "a\nbc\nde\n";  // the first line ends in time
      if (++sampled == 4) std::this_thread::sleep_for(std::chrono::duration<double>(2 * kLimit));
      const auto at = static_cast<size_t>(sampled - 1);
      return at < script.size() ? script[at] : testing::kEnd;
    };
    FakeSequence sequence;
    return *Generate(sequence, Generator(model, slow, {.max_seconds = limit}),
                     {.num_ctx = 100, .on_text = {}, .interrupted = {}});
  };
  const GenerationResult late = play(kLimit);
  EXPECT_EQ(late.text, "a\nbc\n");
  EXPECT_EQ(late.stop, StopReason::kLength);
  const GenerationResult free = play(0);
  EXPECT_EQ(free.text, "a\nbc\nde\n") << "control";
  EXPECT_EQ(free.stop, StopReason::kEnd);
}

TEST(Generator, TheContextsEndKeepsTheText) {
  const Outcome outcome = Play("hello", {.stops = {"lox"}}, 3);
  EXPECT_EQ(outcome.result.text, "hell") << "l might have begun a stop string";
  EXPECT_EQ(outcome.result.stop, StopReason::kContext);
  EXPECT_EQ(outcome.result.unfed, 'l');
}

TEST(Generator, StopStringsEndTheTextBeforeThem) {
  for (const auto& [stop, text] :
       {std::pair("User:", "Fine. "), std::pair("e", "Fin"), std::pair("zzz", "Fine. User: and")}) {
    const Outcome outcome = Play("Fine. User: and", {.stops = {"", stop}});
    EXPECT_EQ(outcome.result.text, text);
    EXPECT_EQ(outcome.result.stop, stop == std::string("zzz") ? StopReason::kEnd : StopReason::kStopString);
  }
}

TEST(Generator, ALineThatIsIndentedByTooLittleEndsIt) {
  const Outcome outcome = Play("if\n  a\n  b\n}\nc", {.least_indent = 2});
  EXPECT_EQ(outcome.result.text, "if\n  a\n  b\n");
  EXPECT_EQ(outcome.result.stop, StopReason::kLength);
  EXPECT_EQ(outcome.result.tokens.size(), 12u) << "the one that was one too many is the last";
  EXPECT_EQ(Play("a\n  b\n ", {.stops = {"c"}, .least_indent = 2}).result.text, "a\n  b\n ") << "no line came of it";
  EXPECT_EQ(Play("a\n  bc", {.stops = {"c"}, .least_indent = 2}).result.stop, StopReason::kStopString);
  EXPECT_EQ(Play("a\nb", {}).result.text, "a\nb") << "control";
}

// Whatever the tail looks like when the stream ends.
TEST(Generator, ATailThatLooksLikeAStopStringIsKept) {
  const std::string text = "abcabcabx";
  for (size_t length = 0; length <= text.size(); ++length) {
    for (const char* stop : {"abcabcabcd", "cabcabxy", "bxx"}) {
      EXPECT_EQ(Play(text.substr(0, length), {.stops = {stop}}).result.text, text.substr(0, length));
      EXPECT_EQ(Play(text, {.max_tokens = static_cast<int>(length), .stops = {stop}}).result.text,
                text.substr(0, length));
    }
  }
  EXPECT_EQ(Play("xabcabd", {.stops = {"abcabcd", "bca"}}).result.text, "xa") << "the first that is complete ends it";
}

TEST(Generator, PiecesAreWholeCharacters) {
  EXPECT_EQ(Play("na\xc3\xafve \xf0\x9f\x98\x80", {}).result.text, "na\xc3\xafve \xf0\x9f\x98\x80");
  EXPECT_EQ(Play("a\xff" "b\xf0\x9f", {}).result.text, "a\xef\xbf\xbd" "b\xef\xbf\xbd");
  EXPECT_EQ(Play("na\xc3\xaf", {.max_tokens = 3}).result.text, "na\xef\xbf\xbd") << "cut within a character";
  EXPECT_EQ(Play("x\xc3\xafy", {.stops = {"\xc3\xaf"}}).result.text, "x");
}

TEST(Generator, ItsReceiverMayEndIt) {
  const Outcome outcome = Play("hello", {}, 1000, 2);
  EXPECT_EQ(outcome.result.text, "he");
  EXPECT_EQ(outcome.result.stop, StopReason::kCallback);
  EXPECT_EQ(outcome.result.unfed, 'e');
}

TEST(Generator, AFullBudgetKeepsTheText) {
  const ByteModel model;
  FakeSequence sequence;
  sequence.decode_error = Error{ErrorCode::kOutOfBudget, "full"};
  const auto full =
      Generate(sequence, Generator(model, Script("hello"), {}), {.num_ctx = 9, .on_text = {}, .interrupted = {}});
  ASSERT_TRUE(full);
  EXPECT_EQ(full->text, "h");
  EXPECT_EQ(full->stop, StopReason::kBudget);
  EXPECT_EQ(full->stop_message, "full");
  sequence.decode_error = Error{ErrorCode::kIo, "broken"};
  const auto broken =
      Generate(sequence, Generator(model, Script("hello"), {}), {.num_ctx = 9, .on_text = {}, .interrupted = {}});
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().message, "broken");
}

TEST(Generator, AnInterruptKeepsTheText) {
  const ByteModel model;
  FakeSequence sequence;
  int asked = 0;
  const auto stopped = Generate(sequence, Generator(model, Script("hello"), {}),
                                {.num_ctx = 9, .on_text = {}, .interrupted = [&] { return ++asked > 2; }});
  ASSERT_TRUE(stopped);
  EXPECT_EQ(stopped->text, "he");
  EXPECT_EQ(stopped->stop, StopReason::kInterrupted);
  EXPECT_FALSE(stopped->unfed) << "both were decoded";
}

TEST(Generator, LogitsThatAreNoNumbersAreAnError) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const ByteModel model;
  const auto next = [&](std::vector<float> logits) { return Generator(model, Script("a"), {}).Next(logits); };
  std::vector<float> logits(testing::kNumVocab, -1.0f);
  EXPECT_TRUE(next(logits));
  logits[7] = -kInfinity;
  EXPECT_TRUE(next(logits)) << "a token that is never chosen";
  for (const float bad : {kNan, -kNan, kInfinity}) {
    logits[258] = bad;
    const auto step = next(logits);
    ASSERT_FALSE(step) << bad;
    EXPECT_EQ(step.error().code, ErrorCode::kCorrupt);
  }
  EXPECT_FALSE(next(std::vector<float>(testing::kNumVocab, -kInfinity)));
  EXPECT_FALSE(next({}));
}

TEST(Generator, LogprobsAreThoseOfTheSoftmax) {
  const ByteModel model;
  std::vector<float> logits(testing::kNumVocab, -std::numeric_limits<float>::infinity());
  logits['a'] = std::log(0.5f);
  logits['b'] = std::log(0.3f);
  logits['c'] = std::log(0.2f);
  Generator generator(model, Script("b"), {.num_logprobs = 2});
  ASSERT_TRUE(generator.Next(logits));
  ASSERT_EQ(generator.result().logprobs.size(), 1u);
  const TokenLogprobs& found = generator.result().logprobs[0];
  EXPECT_EQ(found.chosen.token, 'b');
  EXPECT_NEAR(found.chosen.logprob, std::log(0.3), 1e-5);
  ASSERT_EQ(found.top.size(), 2u);
  EXPECT_EQ(found.top[0].token, 'a');
  EXPECT_EQ(found.top[1].token, 'b');
  EXPECT_NEAR(found.top[0].logprob, std::log(0.5), 1e-5);
}

// As a server does it: steps of two generations in turns.
TEST(Generator, StepsOfSeveralMayBeMixed) {
  const ByteModel model;
  const std::vector<float> logits(testing::kNumVocab, 0.0f);
  Generator one(model, Script("one"), {}), two(model, Script("twofold"), {.stops = {"fold"}});
  std::string a, b;
  while (!one.done() || !two.done()) {
    for (auto& [generator, text] : {std::tie(one, a), std::tie(two, b)}) {
      const auto step = generator.Next(logits);
      ASSERT_TRUE(step);
      text += step->text;
    }
  }
  EXPECT_EQ(a, "one");
  EXPECT_EQ(b, "two");
  EXPECT_EQ(two.result().stop, StopReason::kStopString);
}

}  // namespace
}  // namespace pith
