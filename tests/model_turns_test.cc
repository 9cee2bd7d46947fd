// Conversations in an engine: turns that are compressed once (turns=flowkv), caches of topics (turns=epicache).
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/embedder.h"
#include "host/model.h"
#include "lab/sensitivity.h"
#include "session/conversation.h"
#include "session/token_sequence.h"
#include "tests/support/default_model.h"

namespace pith {
namespace {

constexpr int kLayers = 30, kHeads = 3;

std::shared_ptr<HostModel> Model() { return testing::DefaultModel(); }

std::string Text(int from, int to) {
  static const char* const kThings[] = {"river", "engine", "letter", "garden", "number", "winter", "planet", "copper"};
  std::string text;
  for (int i = from; i < to; ++i) {
    text += "In chapter " + std::to_string(i) + " the " + kThings[i * 5 % 8] + " met a " + kThings[i * 3 % 7] +
            " and paid " + std::to_string(i * 37 % 101) + " coins. ";
  }
  return text;
}

std::vector<int32_t> Tokens(size_t count) {
  auto tokens = Model()->Tokenize(Text(0, static_cast<int>(count / 8)), true, false);
  EXPECT_TRUE(tokens);
  EXPECT_GE(tokens->size(), count);
  tokens->resize(count);
  return *tokens;
}

EngineOptions With(const std::string& recipe, size_t budget_bytes = 0, int num_ctx = 2048) {
  EngineOptions options;
  options.num_ctx = num_ctx;
  options.num_threads = testing::kThreads;
  options.adapt_threads = false;
  options.budget_bytes = budget_bytes;
  options.block_tokens = 64;
  auto parsed = ParseRecipe(recipe);
  EXPECT_TRUE(parsed) << parsed.error().message;
  options.recipe = *parsed;
  return options;
}

std::unique_ptr<Engine> Make(const EngineOptions& options) {
  auto engine = Engine::Create(Model(), options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

using Heads = std::vector<std::vector<int32_t>>;
Heads Positions(const Engine& engine, SequenceId id, int32_t below = INT32_MAX) {
  Heads all;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int head = 0; head < kHeads; ++head) {
      all.push_back(engine.EntryPositions(id, layer, head));
      std::erase_if(all.back(), [below](int32_t position) { return position >= below; });
    }
  }
  return all;
}
std::vector<std::vector<float>> Keys(const Engine& engine, SequenceId id, int32_t below) {
  std::vector<std::vector<float>> all;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int head = 0; head < kHeads; ++head) all.push_back(engine.Keys(id, layer, head, 0, below));
  }
  return all;
}

TEST(ModelTurns, WhatATurnLeftStaysAsItIs) {
  const std::vector<int32_t> text = Tokens(700);
  for (const char* recipe :
       {"flowkv", "keydiff turns=flowkv:drop=0.8", "adakv turns=flowkv", "kvzip turns=flowkv:drop=0.7"}) {
    SCOPED_TRACE(recipe);
    auto engine = Make(With(recipe));
    const SequenceId id = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(id, std::span(text).first(250)));
    EXPECT_EQ(engine->stats(id).kept_fraction, 1) << "a running turn is whole";
    ASSERT_TRUE(engine->EndTurn(id));
    const double kept = 1 - engine->options().recipe.turns->drop;
    EXPECT_NEAR(engine->stats(id).kept_fraction, kept, 0.01);
    const Heads first = Positions(*engine, id);
    const std::vector<std::vector<float>> keys = Keys(*engine, id, 250);
    for (const size_t end : {size_t{450}, size_t{700}}) {
      const size_t from = end == 450 ? 250 : 450;
      ASSERT_TRUE(engine->Prefill(id, std::span(text).subspan(from, end - from)));
      ASSERT_TRUE(engine->EndTurn(id));
      EXPECT_EQ(Positions(*engine, id, 250), first);
      EXPECT_EQ(Keys(*engine, id, 250), keys);
      EXPECT_NEAR(engine->stats(id).kept_fraction, kept, 0.01);
    }
    ASSERT_TRUE(engine->EndTurn(id)) << "nothing was read since";
    EXPECT_EQ(Positions(*engine, id, 250), first);
  }
}

TEST(ModelTurns, ATurnThatEndsInPiecesIsWhatOneAtOnceIs) {
  const std::vector<int32_t> text = Tokens(700);
  int plain = 0, fitted = 0, converted = 0;
  const auto count = [&](const char* recipe) {
    SCOPED_TRACE(recipe);
    EngineOptions options = With(recipe);
    options.max_sequences = 4;
    auto engine = Make(options);
    const SequenceId base = *engine->NewSequence(), other = *engine->NewSequence();
    EXPECT_TRUE(engine->Prefill(other, std::span(text).first(10)));
    EXPECT_TRUE(engine->Prefill(base, std::span(text).first(300)));
    EXPECT_TRUE(engine->EndTurn(base));
    EXPECT_TRUE(engine->Prefill(base, std::span(text).subspan(300, 300)));
    const SequenceId at_once = *engine->Fork(base), in_pieces = *engine->Fork(base);
    EXPECT_TRUE(engine->EndTurn(at_once));
    while (!*engine->ReadAgain(in_pieces, engine->options().recipe, 1 << 20)) {
    }
    int pieces = 0;
    for (bool is_done = false; !is_done && pieces < 500; ++pieces) {
      const Result<bool> done = engine->EndTurnOn(in_pieces);
      EXPECT_TRUE(done);
      is_done = done && *done;
      EXPECT_TRUE(engine->Decode(other, text[static_cast<size_t>(10 + pieces)]));
    }
    EXPECT_EQ(Positions(*engine, in_pieces), Positions(*engine, at_once));
    EXPECT_NE(Positions(*engine, in_pieces), Positions(*engine, base)) << "control: the turn was whole";
    EXPECT_EQ(Keys(*engine, in_pieces, 600), Keys(*engine, at_once, 600));
    EXPECT_EQ(engine->stats(in_pieces).used_bytes, engine->stats(at_once).used_bytes);
    EXPECT_TRUE(*engine->EndTurnOn(in_pieces)) << "it is over";
    EXPECT_TRUE(engine->Prefill(in_pieces, std::span(text).subspan(600, 50)));
    EXPECT_TRUE(engine->Prefill(at_once, std::span(text).subspan(600, 50)));
    const auto logits = [&](SequenceId id) {
      return std::vector<float>(engine->logits(id).begin(), engine->logits(id).end());
    };
    const std::vector<float> last = logits(at_once);
    EXPECT_TRUE(engine->Decode(in_pieces, text[650]));
    const std::vector<float> one = logits(in_pieces);
    EXPECT_TRUE(engine->Decode(at_once, text[650]));
    EXPECT_EQ(logits(at_once), one);
    EXPECT_FALSE(last == one) << "control";
    return pieces;
  };
  plain = count("keydiff turns=flowkv:drop=0.8");
  converted = count("keydiff turns=flowkv:drop=0.8 format=q4");
  fitted = count("kvzip:chunk=150 act=residue turns=flowkv:drop=0.7");
  EXPECT_GE(plain, 2) << "54,000 entries are judged";
  EXPECT_GT(converted, plain);
  EXPECT_GE(fitted, kLayers * kHeads / testing::kThreads);
}

// What a step would do to have room, done before it.
TEST(ModelTurns, RoomThatIsMadeInPiecesIsWhatAStepMakes) {
  const std::vector<int32_t> text = Tokens(660);
  int most = 0;
  for (const char* recipe : {"keydiff turns=flowkv", "epicache:block=128"}) {
    SCOPED_TRACE(recipe);
    EngineOptions engine_options = With(recipe, size_t{64} << 20, 8192);
    engine_options.max_sequences = 2;
    auto engine = Make(engine_options);
    SequenceOptions options;
    options.recipe = engine->options().recipe;
    options.floor_bytes = options.ceiling_bytes = size_t{8} << 20;
    const auto in_step = engine->NewSequence(options), before = engine->NewSequence(options);
    ASSERT_TRUE(in_step && before);
    int pieces = 0;
    for (size_t at = 0; at < text.size(); at += 60) {
      const auto part = std::span(text).subspan(at, 60);  // a step
      if (at == 180 || at == 360) {
        ASSERT_TRUE(engine->EndTurn(*in_step));
        ASSERT_TRUE(engine->EndTurn(*before));
      }
      int here = 0;
      EXPECT_EQ(engine->HasRoomFor(*before, 60), engine->HasRoomFor(*in_step, 60));
      for (bool has_room = engine->HasRoomFor(*before, 60); !has_room; ++here) {
        const Result<bool> made = engine->MakeRoomOn(*before, 60);
        ASSERT_TRUE(made) << made.error().message;
        ASSERT_LT(here, 1000);
        has_room = *made;
      }
      EXPECT_TRUE(*engine->MakeRoomOn(*before, 60)) << "nothing is left to do";
      pieces += here;
      most = std::max(most, here);
      ASSERT_TRUE(engine->Prefill(*in_step, part));
      ASSERT_TRUE(engine->Prefill(*before, part));
      ASSERT_EQ(Positions(*engine, *before), Positions(*engine, *in_step)) << at;
    }
    EXPECT_GT(pieces, 0);
    EXPECT_LT(engine->stats(*before).kept_fraction, 0.9);
  }
  EXPECT_GT(most, 1) << "control: it came in several";
}

TEST(ModelTurns, OneTurnIsTheHost) {
  const std::vector<int32_t> text = Tokens(300);
  for (const std::string host : {"snapkv", "keydiff", "kvzip"}) {
    SCOPED_TRACE(host);
    auto turns = Make(With(host + " turns=flowkv:drop=0.75"));
    const SequenceId id = *turns->NewSequence();
    ASSERT_TRUE(turns->Prefill(id, text));
    ASSERT_TRUE(turns->EndTurn(id));
    EngineOptions options = With(host);
    options.compress = CompressMode::kAfter;
    auto whole = Make(options);
    const SequenceId other = *whole->NewSequence();
    ASSERT_TRUE(whole->Prefill(other, text));
    ASSERT_TRUE(whole->Compress(other, *ParseRecipe(host), 0.25));
    EXPECT_EQ(Positions(*turns, id), Positions(*whole, other));
  }
}

TEST(ModelTurns, PinnedTokensAreNoPartOfATurn) {
  const std::vector<int32_t> text = Tokens(300);
  auto engine = Make(With("flowkv:drop=0.9"));
  const SequenceId id = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(id, std::span(text).first(100), true));
  ASSERT_TRUE(engine->Prefill(id, std::span(text).subspan(100)));
  ASSERT_TRUE(engine->EndTurn(id));
  for (const std::vector<int32_t>& head : Positions(*engine, id)) {
    EXPECT_EQ(head.size(), 100U + 20U);
    EXPECT_EQ(std::ranges::count_if(head, [](int32_t position) { return position < 100; }), 100);
  }
}

// The budget holds whatever is said, and as much is kept of a long conversation as of a short one.
TEST(SlowTurns, MemoryDoesNotGrowWithTheConversation) {
  for (const char* recipe : {"flowkv", "pith turns=flowkv:drop=0.8", "epicache:block=128"}) {
    SCOPED_TRACE(recipe);
    constexpr size_t kBudget = size_t{14} << 20;
    auto engine = Make(With(recipe, kBudget, 8192));
    const SequenceId id = *engine->NewSequence();
    const std::vector<int32_t> text = Tokens(1200);
    size_t peak = 0;
    for (size_t at = 0; at < text.size(); at += 200) {
      const Status status = engine->Prefill(id, std::span(text).subspan(at, 200));
      ASSERT_TRUE(status) << at << ": " << status.error().message;
      const Status ended = engine->EndTurn(id);
      ASSERT_TRUE(ended) << at << ": " << ended.error().message;
      if (at == 600) peak = engine->stats().peak_bytes;
    }
    EXPECT_LE(engine->stats().peak_bytes, kBudget);
    EXPECT_LE(engine->stats().peak_bytes, peak + (size_t{2} << 20));
    EXPECT_LT(engine->stats(id).kept_fraction, 0.8);
    EXPECT_GT(engine->stats(id).entries, 50 * kLayers * kHeads);
    for (int i = 0; i < 40; ++i) ASSERT_TRUE(engine->Decode(id, text[static_cast<size_t>(i)]));
  }
}

TEST(ModelTurns, ATurnThatFillsTheBudgetIsClosedEarly) {
  const std::vector<int32_t> text = Tokens(1500);
  auto engine = Make(With("keydiff turns=flowkv", size_t{14} << 20, 8192));
  const SequenceId id = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(id, text)) << "one message, longer than the budget holds";
  EXPECT_LT(engine->stats(id).kept_fraction, 0.8);
  EXPECT_LE(engine->stats().peak_bytes, size_t{14} << 20);
}

TEST(ModelTurns, GoesBackToTheEndOfATurn) {
  const std::vector<int32_t> text = Tokens(700);
  auto engine = Make(With("flowkv"));
  const SequenceId id = *engine->NewSequence();
  const auto turn = [&](size_t from, size_t to) {
    ASSERT_TRUE(engine->Prefill(id, std::span(text).subspan(from, to - from)));
    ASSERT_TRUE(engine->EndTurn(id));
  };
  turn(0, 200), turn(200, 450);
  const Heads two = Positions(*engine, id);
  turn(450, 700);
  const Heads three = Positions(*engine, id);
  EXPECT_FALSE(engine->Rewind(id, 300)) << "within a turn that is over";
  EXPECT_EQ(engine->RewindTarget(id, 460), 450);
  ASSERT_TRUE(engine->Rewind(id, 450));
  EXPECT_EQ(Positions(*engine, id), two);
  turn(450, 700);
  EXPECT_EQ(Positions(*engine, id), three);
  ASSERT_TRUE(engine->Prefill(id, std::span(text).first(100)));
  ASSERT_TRUE(engine->Rewind(id, 740)) << "within the running turn";
  ASSERT_TRUE(engine->Rewind(id, 200));
  turn(200, 450);
  EXPECT_EQ(Positions(*engine, id), two);
  ASSERT_TRUE(engine->Rewind(id, 0));
  turn(0, 200), turn(200, 450);
  EXPECT_EQ(Positions(*engine, id), two);
}

TEST(ModelTurns, SavedAndTakenUp) {
  const std::vector<int32_t> text = Tokens(600);
  for (const char* recipe : {"flowkv", "pith turns=flowkv:drop=0.8"}) {
    SCOPED_TRACE(recipe);
    const EngineOptions options = With(recipe);
    auto engine = Make(options);
    SequenceId id = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(id, std::span(text).first(200)));
    ASSERT_TRUE(engine->EndTurn(id));
    ASSERT_TRUE(engine->Prefill(id, std::span(text).subspan(200, 200)));
    const auto saved = engine->SaveToMemory(id, {});
    ASSERT_TRUE(saved);
    const auto rest = [&] {
      EXPECT_TRUE(engine->EndTurn(id));
      EXPECT_TRUE(engine->Prefill(id, std::span(text).subspan(400)));
      EXPECT_TRUE(engine->EndTurn(id));
      return Positions(*engine, id);
    };
    const Heads expected = rest();
    engine->Free(id);
    const auto restored = engine->RestoreFromMemory(*saved, options);
    ASSERT_TRUE(restored) << restored.error().message;
    id = restored->sequence;
    EXPECT_EQ(rest(), expected);
  }
}

TEST(ModelTurns, FormatsAreOfTurnsThatAreOver) {
  const std::vector<int32_t> text = Tokens(700);
  auto engine = Make(With("pith turns=flowkv:drop=0.8"));
  const SequenceId id = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(id, std::span(text).first(300)));
  EXPECT_NEAR(engine->KeptBytes(id), 1, 1e-9);
  ASSERT_TRUE(engine->EndTurn(id));
  ASSERT_TRUE(engine->Prefill(id, std::span(text).subspan(300)));
  ASSERT_TRUE(engine->EndTurn(id));
  EXPECT_GT(engine->stats(id).kept_fraction, 0.5) << "in few bits most of it fits";
  EXPECT_LT(engine->KeptBytes(id), 0.32) << "but for rests of pages";
}

TEST(ModelTurns, AGuideDecidesWhatStays) {
  const std::vector<int32_t> text = Tokens(900);
  const auto run = [&](const std::string& guide) {
    auto engine = Make(With("epicache:block=128", size_t{13} << 20, 4096));
    const SequenceId id = *engine->NewSequence();
    EXPECT_TRUE(engine->SetGuide(id, *Model()->Tokenize(guide, false, false)));
    EXPECT_TRUE(engine->Prefill(id, text));
    const Heads positions = Positions(*engine, id);
    EXPECT_LT(engine->stats(id).kept_fraction, 0.9);
    for (const std::vector<int32_t>& head : positions) {
      EXPECT_TRUE(head.empty() || head.back() < 900) << "the guide leaves no entry";
    }
    return positions;
  };
  const Heads early = run("In chapter 3 the garden met a winter."), late = run("Coins, coins, coins and money.");
  EXPECT_NE(early, late);
  EXPECT_EQ(early, run("In chapter 3 the garden met a winter."));
}

std::vector<ChatMessage> TwoTopics() {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 6; ++i) {
    const bool cooks = i % 2 == 0;
    messages.push_back({"user", (cooks ? "How do I cook soup with onions, salt and carrots? I ate it in "
                                       : "Which telescope shows planets, moons and stars? I read ") +
                                    std::to_string(i) + " books about it."});
    messages.push_back(
        {"assistant", cooks ? "Boil the onions and the carrots, add salt, stir the soup and eat it with bread. " +
                                  Text(20 * i, 20 * i + 5)
                            : "A telescope with a wide mirror shows the moons of the planets and many stars. " +
                                  Text(20 * i, 20 * i + 5)});
  }
  return messages;
}

// Each topic has its cache; the newest turns are in all of them.
TEST(SlowTurns, QuestionsGoToTheirTopic) {
  const EngineOptions options = With("epicache:episodes=2,utterances=2,block=128", size_t{13} << 20, 8192);
  std::shared_ptr<Engine> engine = Make(options);
  auto sequence = EngineSequence::Create(engine, SequenceOptions(options));
  ASSERT_TRUE(sequence) << sequence.error().message;
  const HostText text(Model());
  Conversation conversation(text, {.system = "You know everything."});
  std::vector<ChatMessage> messages = TwoTopics();
  messages.insert(messages.begin(), {"system", "You know everything."});
  ASSERT_TRUE(conversation.Take(messages));
  const Status read = conversation.Replay(**sequence);
  ASSERT_TRUE(read) << read.error().message;
  const auto ask = [&](const std::string& question) {
    EXPECT_TRUE(conversation.Say(question));
    const Status fed = conversation.Feed(**sequence);
    EXPECT_TRUE(fed) << fed.error().message;
    conversation.Answered("Yes.", std::nullopt);
    return Positions(*engine, (*sequence)->id(), 500);
  };
  ask("Tell me about the soup with onions.");
  const int before = (*sequence)->num_tokens();
  const Heads cooking = ask("How much salt is in the soup with carrots?");
  const Heads stars = ask("Which stars and planets does the telescope show?");
  EXPECT_NE(cooking, stars);
  EXPECT_GT((*sequence)->num_tokens(), before + 20);
  EXPECT_EQ((*sequence)->num_tokens(), engine->num_tokens((*sequence)->id())) << "all of it was read";
  const Heads again = ask("How do I cook the soup with onions and carrots?");
  EXPECT_NE(again, stars);
  EXPECT_LE(engine->stats().peak_bytes, size_t{13} << 20);
  EXPECT_EQ(engine->stats((*sequence)->id()).num_pinned > 0, true);
}

TEST(ModelTurns, InputEmbeddingsTellTopicsApart) {
  auto embedder = MakeInputEmbedder(*Model());
  ASSERT_TRUE(embedder) << embedder.error().message;
  const auto dot = [&](const std::string& a, const std::string& b) {
    const auto x = (*embedder)->Embed(a), y = (*embedder)->Embed(b);
    EXPECT_TRUE(x && y);
    double sum = 0;
    for (size_t i = 0; i < x->size(); ++i) sum += static_cast<double>((*x)[i]) * static_cast<double>((*y)[i]);
    return sum;
  };
  EXPECT_NEAR(dot("soup", "soup"), 1, 1e-5);
  EXPECT_GT(dot("onions, carrots and salt in a soup", "cook the soup with carrots"),
            dot("onions, carrots and salt in a soup", "planets and stars in a telescope"));
  EXPECT_FALSE((*embedder)->Embed("")) << "no token, no direction";
}

TEST(ModelTurns, KeysOfLayersThatHideNothingAreTheSame) {
  const std::vector<int32_t> text = Tokens(600);
  const auto all = MeasureSensitivity(Model(), text,
                                      {.block = 256, .first = 16, .previous = 239, .window = 50, .num_threads = 2}, {});
  ASSERT_TRUE(all) << all.error().message;
  const auto few =
      MeasureSensitivity(Model(), text, {.block = 256, .first = 4, .previous = 16, .window = 50, .num_threads = 2}, {});
  ASSERT_TRUE(few) << few.error().message;
  ASSERT_EQ(few->size(), static_cast<size_t>(kLayers));
  EXPECT_NEAR((*few)[0], 1, 1e-4) << "the first layer's keys hang on nothing but their tokens";
  double seen = 0, hidden = 0;
  for (size_t layer = 0; layer < few->size(); ++layer) {
    EXPECT_LE((*few)[layer], 1.0001);
    seen += (*all)[layer], hidden += (*few)[layer];
  }
  EXPECT_LT(hidden, seen) << "the more is hidden, the more the keys change";
  EXPECT_FALSE(MeasureSensitivity(Model(), std::span(text).first(200), {.block = 256}, {}));
}

}  // namespace
}  // namespace pith
