// Engines on the default model, and what tests of compression ask them.
#ifndef PITH_TESTS_SUPPORT_DEFAULT_ENGINE_H_
#define PITH_TESTS_SUPPORT_DEFAULT_ENGINE_H_

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "tests/support/default_model.h"
#include "tests/support/kl.h"

namespace pith::testing {

inline std::vector<int32_t> Tokenize(const std::string& text) {
  const auto tokens = DefaultModel()->Tokenize(text, false, true);
  EXPECT_TRUE(tokens);
  return *tokens;
}

// Null, and a failure of the running test, where it cannot be.
inline std::unique_ptr<Engine> MakeDefaultEngine(const EngineOptions& options) {
  auto engine = Engine::Create(DefaultModel(), options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

// Prompts are compressed once, by recipes that are chosen then.
inline EngineOptions CompressedAfter(const std::vector<std::string>& recipes) {
  EngineOptions options;
  options.num_ctx = 2048;
  options.num_threads = kThreads;
  options.compress = CompressMode::kAfter;
  options.max_sequences = 3;
  for (const std::string& recipe : recipes) options.later_recipes.push_back(*ParseRecipe(recipe));
  return options;
}

// Of logits [tokens, vocab].
inline double MeanKl(const std::vector<float>& a, const std::vector<float>& b) {
  const auto vocab = static_cast<size_t>(DefaultModel()->info().num_vocab);
  double sum = 0;
  for (size_t at = 0; at < a.size(); at += vocab) sum += Kl({a.data() + at, vocab}, {b.data() + at, vocab});
  return sum / static_cast<double>(a.size() / vocab);
}

// Logits of a text that goes on from the sequence, [tokens, vocab].
inline std::vector<float> Follow(Engine& engine, SequenceId sequence, const std::vector<int32_t>& tail) {
  std::vector<float> logits;
  const Status status = engine.Prefill(sequence, tail, false, &logits);
  EXPECT_TRUE(status) << status.error().message;
  return logits;
}

// The same of a fork, which is freed: the sequence stays as it is.
inline std::vector<float> FollowFork(Engine& engine, SequenceId sequence, const std::vector<int32_t>& tail) {
  const SequenceId fork = *engine.Fork(sequence);
  std::vector<float> logits = Follow(engine, fork, tail);
  engine.Free(fork);
  return logits;
}

// A sequence from a file and from memory holds what it held and goes on with the same logits. look(restored sequence)
// before it is freed.
template <typename Look>
void ExpectRestored(Engine& engine, const EngineOptions& options, SequenceId sequence, const std::string& path,
                    const std::vector<int32_t>& tail, const std::vector<float>& expected, const Look& look) {
  const auto saved = engine.SaveToMemory(sequence, {});
  ASSERT_TRUE(saved) << saved.error().message;
  ASSERT_TRUE(engine.Save(sequence, path, {}));
  for (const bool from_file : {false, true}) {
    const auto restored = from_file ? engine.Restore(path) : engine.RestoreFromMemory(*saved, options);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(engine.KeptBytes(restored->sequence), engine.KeptBytes(sequence));
    EXPECT_EQ(Follow(engine, restored->sequence, tail), expected);
    look(restored->sequence);
    engine.Free(restored->sequence);
  }
  std::remove(path.c_str());
}

// A ledger of payments, each to be found by its chapter.
inline std::string Ledger(int chapters) {
  static const char* const kThings[] = {"river", "engine", "letter", "garden", "number", "winter", "planet", "copper"};
  std::string text;
  for (int i = 0; i < chapters; ++i) {
    text += "In chapter " + std::to_string(i) + " the " + kThings[i * 5 % 8] + " met a " + kThings[i * 3 % 7] +
            " and paid " + std::to_string(i * 37 % 101) + " coins. ";
  }
  return text;
}

// So many tokens of it.
inline std::vector<int32_t> LedgerTokens(size_t count) {
  std::vector<int32_t> tokens = Tokenize(Ledger(static_cast<int>(count) / 4 + 1));
  tokens.resize(count);
  return tokens;
}

// One sequence in a budget, whose recipe runs while text is read.
inline EngineOptions Running(const std::string& recipe, size_t budget_bytes, int num_ctx) {
  EngineOptions options;
  options.num_ctx = num_ctx;
  options.num_threads = kThreads;
  options.budget_bytes = budget_bytes;
  options.recipe = *ParseRecipe(recipe);
  options.max_sequences = 1;
  return options;
}

// Some heads hold each token that was read, in order.
inline void ExpectEveryEntry(const Engine& engine, SequenceId sequence) {
  const int num_tokens = engine.num_tokens(sequence);
  for (const auto& [layer, head] : {std::pair(0, 0), std::pair(13, 1), std::pair(29, 2)}) {
    const std::vector<int32_t> positions = engine.EntryPositions(sequence, layer, head);
    ASSERT_EQ(positions.size(), static_cast<size_t>(num_tokens));
    for (int i = 0; i < num_tokens; ++i) ASSERT_EQ(positions[static_cast<size_t>(i)], i);
  }
}

// Recipes that keep every entry, in fewer bytes: all but the last `written` tokens as a prompt, these one by one, in a
// budget but for the first recipe, "full", near whose logits theirs are. most_bytes: of f16's.
inline void ExpectRunsInABudget(const std::vector<std::string>& recipes, const std::vector<int32_t>& tokens,
                                size_t written, size_t budget_bytes, double most_bytes, double most_kl) {
  std::vector<std::vector<float>> logits;
  for (const std::string& text : recipes) {
    SCOPED_TRACE(text);
    const size_t budget = text == "full" ? 0 : budget_bytes;
    auto engine = MakeDefaultEngine(Running(text, budget, 1000));
    ASSERT_NE(engine, nullptr);
    const SequenceId sequence = *engine->NewSequence();
    const size_t read = tokens.size() - written;
    ASSERT_TRUE(engine->Prefill(sequence, {tokens.data(), read}));
    for (size_t i = read; i < tokens.size(); ++i) {
      const Status status = engine->Decode(sequence, tokens[i]);
      ASSERT_TRUE(status) << status.error().message;
    }
    logits.emplace_back(engine->logits(sequence).begin(), engine->logits(sequence).end());
    ExpectEveryEntry(*engine, sequence);
    if (budget == 0) continue;
    EXPECT_LE(engine->stats().peak_bytes, budget);
    EXPECT_LT(engine->KeptBytes(sequence), most_bytes);
    EXPECT_LT(MeanKl(logits.front(), logits.back()), most_kl);
  }
}

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_DEFAULT_ENGINE_H_
