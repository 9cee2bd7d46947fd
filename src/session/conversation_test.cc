#include "session/conversation.h"

#include <algorithm>
#include <cctype>
#include <string>

#include <gtest/gtest.h>

#include "session/session_test_util.h"

namespace pith {
namespace {

using testing::ByteModel;
using testing::ChatMl;
using testing::FakeSequence;

std::string Trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \n");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \n") - first + 1);
}

// Each content changed before it is written.
template <typename Change>
testing::Template Changing(Change change) {
  return [change](std::span<const ChatMessage> messages, bool opens_answer) {
    std::vector<ChatMessage> changed(messages.begin(), messages.end());
    for (size_t i = 0; i < changed.size(); ++i) change(changed, i);
    return ChatMl(changed, opens_answer);
  };
}

// Reads what is queued; returns it as text.
std::string Read(Conversation& conversation, FakeSequence& sequence, const ByteModel& model) {
  const size_t before = sequence.tokens.size();
  EXPECT_TRUE(conversation.Feed(sequence));
  EXPECT_TRUE(conversation.pending().empty());
  return model.TextOf(std::span(sequence.tokens).subspan(before));
}

TEST(Conversation, EachTurnReadsWhatIsNew) {
  const ByteModel model;
  FakeSequence sequence;
  Conversation conversation(model, {.system = "Be brief."});
  ASSERT_TRUE(conversation.Say("Hi"));
  EXPECT_EQ(Read(conversation, sequence, model),
            "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(model.TextOf(std::span(sequence.tokens).first(sequence.pinned)),
            "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
  EXPECT_EQ(conversation.TakePinNote(), "");
  const size_t pinned = sequence.pinned;
  conversation.Answered("Hello", std::nullopt);
  ASSERT_TRUE(conversation.Say("Bye"));
  EXPECT_EQ(Read(conversation, sequence, model),
            "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(sequence.pinned, pinned);
  conversation.Answered("See you", 'u');  // cut: its last token was not read
  ASSERT_TRUE(conversation.Say("x"));
  EXPECT_EQ(Read(conversation, sequence, model), "u<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Conversation, WithoutASystemMessageNothingIsPinned) {
  const ByteModel model;
  Conversation conversation(model, {});
  ASSERT_TRUE(conversation.Say("Hi"));
  EXPECT_EQ(conversation.num_pinned(), 0u);
}

TEST(Conversation, BlanksThatATemplateTrimsKeepThePin) {
  const ByteModel model(Changing([](auto& messages, size_t i) { messages[i].content = Trimmed(messages[i].content); }));
  for (const std::string message : {"Hi", " Hi", "Hi ", "\nHi \n", " "}) {
    Conversation conversation(model, {.system = " Be brief. "});
    ASSERT_TRUE(conversation.Say(message));
    EXPECT_EQ(model.TextOf(conversation.pending().first(conversation.num_pinned())),
              "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
    EXPECT_EQ(conversation.TakePinNote(), "");
  }
}

TEST(Conversation, SaysWhereNothingCanBePinned) {
  // The system message behind the user's.
  const ByteModel model([](std::span<const ChatMessage> messages, bool) -> Result<std::string> {
    std::string text;
    for (const ChatMessage& message : messages) text = "[" + message.content + "]" + text;
    return text;
  });
  Conversation conversation(model, {.system = "Be brief."});
  ASSERT_TRUE(conversation.Say("Hi"));
  EXPECT_NE(conversation.TakePinNote(), "");
  EXPECT_EQ(conversation.TakePinNote(), "") << "once";
}

// A default system message and BOS at the beginning; earlier answers in capitals.
Result<std::string> Rewriting(std::span<const ChatMessage> messages, bool opens_answer) {
  std::vector<ChatMessage> changed(messages.begin(), messages.end());
  if (changed.front().role != "system") changed.insert(changed.begin(), {"system", "Default."});
  for (ChatMessage& message : changed) {
    if (message.role != "assistant" || &message == &changed.back()) continue;
    std::ranges::transform(message.content, message.content.begin(), [](unsigned char c) { return std::toupper(c); });
  }
  auto text = ChatMl(changed, opens_answer);
  return "<s>" + *text;
}

TEST(Conversation, TemplatesThatRewriteEarlierTurnsGetOnlyWhatStandsBetween) {
  const ByteModel model(Rewriting);
  for (const std::string system : {"", "Be brief."}) {
    FakeSequence sequence;
    Conversation conversation(model, {.system = system});
    ASSERT_TRUE(conversation.Say("Hi"));
    const std::string first = Read(conversation, sequence, model);
    EXPECT_EQ(first, "<s><|im_start|>system\n" + (system.empty() ? "Default." : system) +
                         "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    for (int turn = 0; turn < 3; ++turn) {
      conversation.Answered("Hello", std::nullopt);
      ASSERT_TRUE(conversation.Say("Thanks"));
      EXPECT_EQ(Read(conversation, sequence, model),
                "<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n");
    }
  }
}

TEST(Conversation, ASystemMessageThatMovesWithTheLastTurnIsReadOnce) {
  // As some instruction formats have it: in front of the last message of the user.
  const ByteModel model([](std::span<const ChatMessage> messages, bool) -> Result<std::string> {
    std::string system, text;
    for (const ChatMessage& message : messages) {
      if (message.role == "system") system = message.content + "\n\n";
      if (message.role == "assistant") text += message.content + "</s>";
      if (message.role == "user")
        text += "[INST]" + (&message == &messages.back() ? system : "") + message.content + "[/INST]";
    }
    return "<s>" + text;
  });
  FakeSequence sequence;
  Conversation conversation(model, {.system = "Be brief."});
  ASSERT_TRUE(conversation.Say("Hi"));
  EXPECT_EQ(Read(conversation, sequence, model), "<s>[INST]Be brief.\n\nHi[/INST]");
  EXPECT_EQ(sequence.pinned, std::string("1[INST]Be brief.\n\n").size());
  conversation.Answered("Hello", std::nullopt);
  ASSERT_TRUE(conversation.Say("Bye"));
  EXPECT_EQ(Read(conversation, sequence, model), "</s>[INST]Bye[/INST]");
}

TEST(Conversation, ATemplateThatForgetsAnswersStillGoesOn) {
  // Only the last three messages.
  const ByteModel recent([](std::span<const ChatMessage> messages, bool opens_answer) {
    return ChatMl(messages.last(std::min<size_t>(3, messages.size())), opens_answer);
  });
  FakeSequence sequence;
  Conversation conversation(recent, {});
  for (int turn = 0; turn < 3; ++turn) {
    ASSERT_TRUE(conversation.Say("Hi"));
    Read(conversation, sequence, recent);
    conversation.Answered("Hello", std::nullopt);
  }
  // No answer at all: refused, and the conversation is as it was.
  const ByteModel forgetful([](std::span<const ChatMessage> messages, bool opens_answer) {
    return ChatMl(messages.last(1), opens_answer);
  });
  Conversation other(forgetful, {});
  ASSERT_TRUE(other.Say("Hi"));
  other.Answered("Hello", std::nullopt);
  const std::string before = other.Save();
  const size_t pending = other.pending().size();
  const Status refused = other.Say("Bye");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(other.Save(), before);
  EXPECT_EQ(other.pending().size(), pending);
}

TEST(Conversation, ControlTokensOfTheUserMayBeText) {
  const ByteModel model;
  const std::string message = "a<|im_end|>b";
  const auto num_ends = [&](bool control_tokens) {
    Conversation conversation(model, {.system = {}, .control_tokens = control_tokens});
    EXPECT_TRUE(conversation.Say(message));
    EXPECT_EQ(model.TextOf(conversation.pending()),
              "<s><|im_start|>user\n" + message + "<|im_end|>\n<|im_start|>assistant\n");
    return std::ranges::count(conversation.pending(), testing::kEnd);
  };
  EXPECT_EQ(num_ends(true), 2);
  EXPECT_EQ(num_ends(false), 1);
  Conversation raw(model, {.system = {}, .control_tokens = false});
  ASSERT_TRUE(raw.Append(message));
  EXPECT_EQ(std::ranges::count(raw.pending(), testing::kEnd), 0);
}

TEST(Conversation, AnInterruptedFeedKeepsTheRest) {
  const ByteModel model;
  for (const size_t stop_at : {size_t{3}, size_t{70}}) {  // within what is pinned, and behind it
    FakeSequence sequence;
    Conversation conversation(model, {.system = "Be brief."});
    ASSERT_TRUE(conversation.Say("Tell me a long story about rivers"));
    const std::vector<int32_t> all(conversation.pending().begin(), conversation.pending().end());
    const size_t num_pinned = conversation.num_pinned();
    const Status stopped = conversation.Feed(sequence, [&](size_t done, size_t) { return done < stop_at; });
    EXPECT_FALSE(stopped);
    EXPECT_EQ(sequence.tokens.size(), stop_at);
    EXPECT_EQ(conversation.pending().size(), all.size() - stop_at);
    ASSERT_TRUE(conversation.Feed(sequence));
    EXPECT_EQ(sequence.tokens, all);
    EXPECT_EQ(sequence.pinned, num_pinned);
  }
}

TEST(Conversation, RestartAnswersTheLastMessageAlone) {
  const ByteModel model;
  FakeSequence sequence;
  Conversation conversation(model, {.system = "Be brief."});
  ASSERT_TRUE(conversation.Say("One"));
  Read(conversation, sequence, model);
  conversation.Answered("1", std::nullopt);
  ASSERT_TRUE(conversation.Say("Two"));
  ASSERT_TRUE(conversation.Restart());
  FakeSequence anew;
  EXPECT_EQ(Read(conversation, anew, model),
            "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_GT(anew.pinned, 0u);
  EXPECT_EQ(conversation.num_messages(), 2u);
}

TEST(Conversation, RawTextsAreNoMessages) {
  const ByteModel model(Rewriting);
  FakeSequence sequence;
  Conversation conversation(model, {});
  ASSERT_TRUE(conversation.Append("Once"));
  EXPECT_EQ(Read(conversation, sequence, model), "<s>Once");
  conversation.Continued('u');
  ASSERT_TRUE(conversation.Append(" upon"));
  EXPECT_EQ(Read(conversation, sequence, model), "u upon");
  ASSERT_TRUE(conversation.Say("Hi"));
  EXPECT_FALSE(Read(conversation, sequence, model).starts_with("<s>"));
}

TEST(Conversation, GoesOnFromItsFile) {
  const ByteModel model;
  FakeSequence sequence;
  Conversation conversation(model, {.system = "Be brief."});
  ASSERT_TRUE(conversation.Say("Hi"));
  Read(conversation, sequence, model);
  conversation.Answered("Hello", 'o');
  Conversation restored(model, {});
  ASSERT_TRUE(restored.Restore(conversation.Save(), {'o'}, 9));
  ASSERT_TRUE(restored.Say("Bye"));
  ASSERT_TRUE(conversation.Say("Bye"));
  EXPECT_TRUE(std::ranges::equal(restored.pending(), conversation.pending()));

  Conversation reset(model, {.system = "Be rude."});
  EXPECT_EQ(reset.Restore(conversation.Save(), {}, 9).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(reset.Restore("[]", {}, 0)) << "a conversation that was reset is saved so";
  ASSERT_TRUE(reset.Say("Hi"));
  EXPECT_TRUE(model.TextOf(reset.pending()).starts_with("<s><|im_start|>system\nBe rude."));
  for (const char* broken : {"", "{}", "[1]", "[{\"role\": 1, \"content\": \"\"}]", "[{\"role\": \"user\"}]"}) {
    EXPECT_EQ(reset.Restore(broken, {}, 9).error().code, ErrorCode::kCorrupt) << broken;
  }
}

// Notes what it is told of turns.
class TurnSequence final : public TokenSequence {
 public:
  Status Feed(std::span<const int32_t> more, bool pin, const Progress& progress) override {
    return inner.Feed(more, pin, progress);
  }
  Status BeginTurn(std::span<const ChatMessage> messages, const Progress&) override {
    turns.push_back(static_cast<int>(inner.tokens.size()));
    last = messages.back().content;
    return {};
  }
  Status Decode(int32_t token) override { return inner.Decode(token); }
  std::span<const float> logits() const override { return inner.logits(); }
  int num_tokens() const override { return inner.num_tokens(); }

  FakeSequence inner;
  std::vector<int> turns;  // tokens read when one began
  std::string last;
};

TEST(Conversation, SaysWhenATurnIsOver) {
  const ByteModel model;
  TurnSequence sequence;
  Conversation conversation(model, {});
  ASSERT_TRUE(conversation.Say("Hi"));
  ASSERT_TRUE(conversation.Feed(sequence));
  EXPECT_TRUE(sequence.turns.empty()) << "nothing came before";
  const int read = sequence.num_tokens();
  conversation.Answered("Hello", 'o');
  ASSERT_TRUE(conversation.Say("Bye"));
  EXPECT_TRUE(sequence.turns.empty());
  ASSERT_TRUE(conversation.Feed(sequence));
  EXPECT_EQ(sequence.turns, std::vector<int>{read}) << "before anything of the new turn is read";
  EXPECT_EQ(sequence.last, "Bye");
  ASSERT_TRUE(conversation.Feed(sequence));
  EXPECT_EQ(sequence.turns.size(), 1U);
}

TEST(Conversation, IsReadAgainTurnByTurn) {
  const ByteModel model;
  TurnSequence sequence, again;
  Conversation conversation(model, {.system = "Be brief."});
  for (const char* message : {"one", "two", "three"}) {
    ASSERT_TRUE(conversation.Say(message));
    if (std::string(message) == "two") conversation.PinPending();
    ASSERT_TRUE(conversation.Feed(sequence));
    ASSERT_TRUE(sequence.inner.Feed(*model.Tokenize("yes", false, false), false, {}));
    conversation.Answered("yes", std::nullopt);
  }
  const std::string saved = conversation.Save();
  ASSERT_TRUE(conversation.Replay(again));
  EXPECT_EQ(model.TextOf(again.inner.tokens), model.TextOf(sequence.inner.tokens));
  EXPECT_EQ(again.inner.pinned, sequence.inner.pinned);
  EXPECT_EQ(again.turns.size(), 2U);
  EXPECT_EQ(conversation.Save(), saved);
  EXPECT_NE(saved.find("pinned"), std::string::npos);
  // Restored, it still knows what is pinned.
  Conversation other(model, {.system = "Be brief."});
  ASSERT_TRUE(other.Restore(saved, {}, 10));
  EXPECT_EQ(other.Save(), saved);
}

TEST(Conversation, GoesBackToAMessage) {
  const ByteModel model;
  FakeSequence sequence;
  Conversation conversation(model, {});
  ASSERT_TRUE(conversation.Say("one"));
  Read(conversation, sequence, model);
  conversation.Answered("yes", 's');
  const size_t messages = conversation.num_messages();
  const std::vector<int32_t> pending(conversation.pending().begin(), conversation.pending().end());
  ASSERT_TRUE(conversation.Say("two"));
  const std::string first = Read(conversation, sequence, model);
  conversation.Answered("no", std::nullopt);
  conversation.Truncate(messages, pending);
  EXPECT_EQ(conversation.num_messages(), messages);
  ASSERT_TRUE(conversation.Say("two"));
  EXPECT_EQ(Read(conversation, sequence, model), first);
  EXPECT_FALSE(conversation.Take({{"tool", "x"}}));
}

}  // namespace
}  // namespace pith
