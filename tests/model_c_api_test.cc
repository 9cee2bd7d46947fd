// <pith/pith.h> on a model: handles, steps, structs of other sizes, scorers that fail.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/paths.h"
#include "base/turn_test_util.h"
#include "pith/pith.h"

namespace {

using Tokens = std::vector<int32_t>;

class ModelCApi : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto options = PITH_INIT(pith_model_options);
    options.num_threads = 1;
    ASSERT_EQ(pith_model_load(pith::DefaultModelPath().c_str(), &options, &model_), PITH_OK) << pith_last_error();
  }
  static void TearDownTestSuite() {
    pith_model_free(model_);
    model_ = nullptr;
  }
  void TearDown() override {
    for (pith_sequence* sequence : sequences_) pith_sequence_free(sequence);
    pith_engine_free(engine_);
  }

  void Open(int max_sequences, uint64_t budget_bytes = 0, const char* recipe = nullptr) {
    auto options = PITH_INIT(pith_engine_options);
    options.num_ctx = 1024;
    options.num_threads = 1;
    options.max_sequences = max_sequences;
    options.budget_bytes = budget_bytes;
    options.recipe = recipe;
    ASSERT_EQ(pith_engine_new(model_, &options, &engine_), PITH_OK) << pith_last_error();
  }
  pith_sequence* New(const char* recipe = nullptr, bool compress_after = false) {
    auto options = PITH_INIT(pith_sequence_options);
    options.recipe = recipe;
    options.compress_after = compress_after;
    pith_sequence* sequence = nullptr;
    EXPECT_EQ(pith_sequence_new(engine_, &options, &sequence), PITH_OK) << pith_last_error();
    sequences_.push_back(sequence);
    return sequence;
  }
  static Tokens Tokenize(const std::string& text) {
    Tokens tokens(text.size() + 1);
    size_t count = 0;
    EXPECT_EQ(pith_tokenize(model_, text.data(), text.size(), true, true, tokens.data(), tokens.size(), &count),
              PITH_OK);
    tokens.resize(count);
    return tokens;
  }
  static Tokens LongText(int num_sentences) {
    std::string text;
    for (int i = 0; i < num_sentences; ++i)
      text += fmt::format("Item {} of the list is worth {} coins. ", i, i * 7 % 23);
    return Tokenize(text);
  }
  static std::vector<float> LogitsOf(const pith_sequence* sequence) {
    size_t count = 0;
    const float* logits = pith_sequence_logits(sequence, &count);
    return {logits, logits + count};
  }
  static void Prefill(pith_sequence* sequence, const Tokens& tokens) {
    ASSERT_EQ(pith_sequence_prefill(sequence, tokens.data(), tokens.size(), false, nullptr, nullptr), PITH_OK)
        << pith_last_error();
  }
  static pith_step_item Item(pith_sequence* sequence, const Tokens& tokens) {
    auto item = PITH_INIT(pith_step_item);
    item.sequence = sequence;
    item.tokens = tokens.data();
    item.num_tokens = tokens.size();
    return item;
  }

  static pith_model* model_;
  pith_engine* engine_ = nullptr;
  std::vector<pith_sequence*> sequences_;
};
pith_model* ModelCApi::model_ = nullptr;

TEST_F(ModelCApi, TokensAndTextsFillTheCallersBuffers) {
  const std::string text = "The capital of Austria";
  const Tokens all = Tokenize(text);
  ASSERT_GT(all.size(), 2U);
  Tokens cut(2, -1);
  size_t count = 0;
  ASSERT_EQ(pith_tokenize(model_, text.data(), text.size(), true, true, cut.data(), cut.size(), &count), PITH_OK);
  EXPECT_EQ(count, all.size());
  EXPECT_EQ(cut, Tokens(all.begin(), all.begin() + 2));
  std::string found;
  for (const int32_t token : all) {
    std::string piece(pith_token_piece(model_, token, nullptr, 0), '\0');
    pith_token_piece(model_, token, piece.data(), piece.size() + 1);
    found += piece;
  }
  EXPECT_EQ(found, text);
  char none[4] = "abc";
  EXPECT_EQ(pith_token_piece(model_, -5, none, sizeof none), 0U);
  EXPECT_STREQ(none, "");
  EXPECT_FALSE(pith_token_ends(model_, 1 << 30));

  const pith_message message = {sizeof message, "user", "Hello"};
  size_t length = 0;
  ASSERT_EQ(pith_apply_template(model_, &message, 1, true, nullptr, 0, &length), PITH_OK) << pith_last_error();
  std::string chat(length, '\0');
  ASSERT_EQ(pith_apply_template(model_, &message, 1, true, chat.data(), length + 1, &length), PITH_OK);
  EXPECT_NE(chat.find("Hello"), std::string::npos);
  EXPECT_EQ(std::strlen(chat.c_str()), length);
}

TEST_F(ModelCApi, AStepMixesPromptsAndTokensAndAFailureIsItsOwn) {
  Open(3);
  const Tokens prompt = LongText(4), other = Tokenize("Once upon a time there was a");
  pith_sequence *reads = New(), *writes = New(), *alone = New();
  Prefill(writes, other);
  Prefill(alone, other);
  const Tokens next = {prompt[3]}, unknown = {1 << 30};
  std::vector<float> rows(prompt.size() * 49152);  // no model of the tests has more tokens
  const pith_step_item items[] = {Item(reads, prompt), Item(writes, next), Item(alone, unknown)};
  pith_step_item mixed[] = {items[0], items[1], items[2]};
  mixed[0].all_logits = rows.data();
  pith_status statuses[3] = {-1, -1, -1};
  EXPECT_EQ(pith_step(engine_, mixed, 3, statuses), PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(statuses[0], PITH_OK) << pith_step_message(engine_, 0);
  EXPECT_EQ(statuses[1], PITH_OK) << pith_step_message(engine_, 1);
  EXPECT_EQ(statuses[2], PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_STRNE(pith_step_message(engine_, 2), "");
  EXPECT_STREQ(pith_step_message(engine_, 0), "");
  EXPECT_STREQ(pith_step_message(engine_, 99), "");
  EXPECT_EQ(pith_sequence_num_tokens(reads), static_cast<int>(prompt.size()));
  const std::vector<float> last = LogitsOf(reads), mixed_logits = LogitsOf(writes);
  ASSERT_FALSE(last.empty());
  EXPECT_EQ(std::memcmp(last.data(), rows.data() + (prompt.size() - 1) * last.size(), last.size() * sizeof(float)), 0);
  // The sequence whose item failed is as it was.
  ASSERT_EQ(pith_sequence_decode(alone, next[0]), PITH_OK) << pith_last_error();
  const std::vector<float> alone_logits = LogitsOf(alone);
  const auto best = [](const std::vector<float>& logits) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  };
  EXPECT_EQ(best(alone_logits), best(mixed_logits));
  EXPECT_EQ(pith_sequence_logits(reads, nullptr), nullptr) << "the last step was one of another sequence";
}

TEST_F(ModelCApi, AnEqualShareHasRoomForAnyRecipe) {
  // h2o's steps need more beside the rows than those of the engine's own recipe.
  for (const uint64_t budget_bytes : {uint64_t{0}, uint64_t{48} << 20}) {
    Open(2, budget_bytes);
    for (pith_sequence* sequence : {New("h2o"), New("snapkv alloc=ada")}) {
      ASSERT_NE(sequence, nullptr);
      Prefill(sequence, LongText(10));
    }
    TearDown();
    sequences_.clear();
    engine_ = nullptr;
  }
}

TEST_F(ModelCApi, AStrangersSequenceIsRefusedBeforeAnythingRuns) {
  Open(2);
  pith_sequence* own = New();
  pith_engine* first = engine_;
  Open(1);
  pith_sequence* foreign = New();
  const Tokens tokens = Tokenize("Hello");
  const pith_step_item items[] = {Item(own, tokens), Item(foreign, tokens)};
  pith_status statuses[2] = {-1, -1};
  EXPECT_EQ(pith_step(first, items, 2, statuses), PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(statuses[0], PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(pith_sequence_num_tokens(own), 0);
  EXPECT_EQ(pith_step(nullptr, items, 2, statuses), PITH_ERROR_INVALID_ARGUMENT);
  // An engine may go before its sequences.
  pith_engine_free(first);
  EXPECT_EQ(pith_sequence_prefill(own, tokens.data(), tokens.size(), false, nullptr, nullptr), PITH_OK)
      << pith_last_error();
}

TEST_F(ModelCApi, SequencesComeBackThroughCallbacksWithTheSameBits) {
  Open(3, 0, "snapkv");
  pith_sequence* sequence = New();
  Prefill(sequence, LongText(6));
  std::string saved;
  const pith_write_fn write = [](void* user, const void* data, size_t size) {
    static_cast<std::string*>(user)->append(static_cast<const char*>(data), size);
    return true;
  };
  ASSERT_EQ(pith_sequence_save_to(sequence, write, &saved), PITH_OK) << pith_last_error();
  struct Reader {
    const std::string* from;
    size_t at = 0, end = 0;
  } reader{&saved, 0, saved.size()};
  const pith_read_fn read = [](void* user, void* data, size_t size) -> int64_t {
    auto& own = *static_cast<Reader*>(user);
    const size_t count = std::min({size, own.end - own.at, size_t{4097}});  // in pieces of an odd size
    std::memcpy(data, own.from->data() + own.at, count);
    own.at += count;
    return static_cast<int64_t>(count);
  };
  pith_sequence *fork = nullptr, *restored = nullptr;
  ASSERT_EQ(pith_sequence_restore_from(engine_, nullptr, read, &reader, &restored), PITH_OK) << pith_last_error();
  sequences_.push_back(restored);
  ASSERT_EQ(pith_sequence_fork(sequence, &fork), PITH_OK) << pith_last_error();
  sequences_.push_back(fork);
  std::vector<std::vector<float>> logits;
  for (pith_sequence* one : {sequence, fork, restored}) {
    ASSERT_EQ(pith_sequence_decode(one, 100), PITH_OK) << pith_last_error();
    logits.push_back(LogitsOf(one));
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(logits[0], logits[2]);

  pith_sequence_free(sequences_.back());
  sequences_.pop_back();
  reader = {&saved, 0, saved.size() / 2};
  EXPECT_EQ(pith_sequence_restore_from(engine_, nullptr, read, &reader, &restored), PITH_ERROR_CORRUPT);
  EXPECT_EQ(restored, nullptr);
  const pith_read_fn fails = [](void*, void*, size_t) -> int64_t { return -1; };
  EXPECT_EQ(pith_sequence_restore_from(engine_, nullptr, fails, nullptr, &restored), PITH_ERROR_IO);
  const pith_write_fn full = [](void*, const void*, size_t) { return false; };
  EXPECT_EQ(pith_sequence_save_to(sequence, full, nullptr), PITH_ERROR_IO);
  EXPECT_EQ(pith_sequence_restore(engine_, nullptr, "/nonexistent/session", &restored), PITH_ERROR_NOT_FOUND);
}

TEST_F(ModelCApi, ASequenceGoesBackUnlessItHasDroppedWhatItNeeds) {
  Open(2);
  const Tokens first = LongText(4), second = LongText(2);
  const auto length = static_cast<int>(first.size());
  pith_sequence *sequence = New(), *fresh = New();
  Prefill(sequence, first);
  Prefill(sequence, second);
  ASSERT_EQ(pith_sequence_rewind_target(sequence, length), length);
  ASSERT_EQ(pith_sequence_rewind(sequence, length), PITH_OK) << pith_last_error();
  EXPECT_EQ(pith_sequence_num_tokens(sequence), length);
  ASSERT_EQ(pith_sequence_decode(sequence, 100), PITH_OK) << pith_last_error();
  const std::vector<float> found = LogitsOf(sequence);
  Prefill(fresh, first);
  ASSERT_EQ(pith_sequence_decode(fresh, 100), PITH_OK);
  EXPECT_EQ(found, LogitsOf(fresh));
  double kept = 0;
  ASSERT_EQ(pith_sequence_compress(fresh, "knorm", 0.3, &kept), PITH_OK) << pith_last_error();
  EXPECT_EQ(pith_sequence_rewind(fresh, length / 2), PITH_ERROR_UNSUPPORTED);
  EXPECT_EQ(pith_sequence_num_tokens(fresh), length + 1);
  EXPECT_EQ(pith_sequence_rewind(fresh, 0), PITH_OK) << pith_last_error();
  EXPECT_EQ(pith_sequence_rewind(fresh, 1), PITH_ERROR_INVALID_ARGUMENT);
}

TEST_F(ModelCApi, StructsOfOtherSizes) {
  // An older program's engine options end behind num_ctx, and what follows is not ours.
  auto options = PITH_INIT(pith_engine_options);
  options.struct_size = offsetof(pith_engine_options, num_threads);
  options.num_ctx = 256;
  options.max_sequences = -7;
  options.recipe = reinterpret_cast<const char*>(1);
  ASSERT_EQ(pith_engine_new(model_, &options, &engine_), PITH_OK) << pith_last_error();
  // A newer program's have something behind them: fine where it is zero.
  struct Newer {
    pith_sequence_options known;
    uint64_t added;
  } newer{};
  newer.known.struct_size = sizeof newer;
  pith_sequence* sequence = nullptr;
  newer.added = 1;
  EXPECT_EQ(pith_sequence_new(engine_, &newer.known, &sequence), PITH_ERROR_UNSUPPORTED);
  EXPECT_STREQ(pith_last_error(), "this library is too old for the given options of the sequence");
  newer.added = 0;
  ASSERT_EQ(pith_sequence_new(engine_, &newer.known, &sequence), PITH_OK) << pith_last_error();
  sequences_.push_back(sequence);
  // Results are filled as far as they reach, and not beyond.
  struct Older {
    pith_engine_stats stats;
  } older;
  std::memset(&older, 0x5a, sizeof older);
  older.stats.struct_size = offsetof(pith_engine_stats, peak_bytes);
  ASSERT_EQ(pith_engine_get_stats(engine_, &older.stats), PITH_OK);
  EXPECT_GT(older.stats.budget_bytes, 0U);
  EXPECT_EQ(older.stats.peak_bytes, 0x5a5a5a5a5a5a5a5a);
  auto unsized_stats = pith_engine_stats{};
  EXPECT_EQ(pith_engine_get_stats(engine_, &unsized_stats), PITH_ERROR_INVALID_ARGUMENT);
  // What an older program's sampler options lack is what the model recommends.
  pith_sampler_options sampling;
  ASSERT_EQ(pith_sampler_options_init(model_, &sampling, sizeof sampling), PITH_OK);
  sampling.struct_size = offsetof(pith_sampler_options, top_k);
  sampling.temperature = 0;
  sampling.top_k = -123456;
  pith_sampler* sampler = nullptr;
  EXPECT_EQ(pith_sampler_new(model_, &sampling, &sampler), PITH_OK) << pith_last_error();
  pith_sampler_free(sampler);
}

TEST_F(ModelCApi, AGeneratorEndsAtItsStopStringWithLogprobs) {
  Open(1);
  pith_sequence* sequence = New();
  Prefill(sequence, Tokenize("One, two, three, four,"));
  pith_sampler_options sampling;
  ASSERT_EQ(pith_sampler_options_init(model_, &sampling, sizeof sampling), PITH_OK);
  sampling.temperature = 0;
  sampling.repeat_penalty = 1;
  pith_sampler* sampler = nullptr;
  ASSERT_EQ(pith_sampler_new(model_, &sampling, &sampler), PITH_OK) << pith_last_error();
  auto options = PITH_INIT(pith_generator_options);
  options.max_tokens = 10;
  options.num_logprobs = 4;
  pith_generator* generator = nullptr;
  ASSERT_EQ(pith_generator_new(model_, sampler, &options, &generator), PITH_OK) << pith_last_error();
  std::string shown;
  while (!pith_generator_done(generator)) {
    size_t count = 0, length = 0;
    const float* logits = pith_sequence_logits(sequence, &count);
    int32_t token = -1;
    const char* text = nullptr;
    ASSERT_EQ(pith_generator_next(generator, logits, count, &token, &text, &length), PITH_OK) << pith_last_error();
    shown.append(text, length);
    if (token >= 0) {
      ASSERT_EQ(pith_sequence_decode(sequence, token), PITH_OK) << pith_last_error();
    }
  }
  auto generation = PITH_INIT(pith_generation);
  ASSERT_EQ(pith_generator_get(generator, &generation), PITH_OK);
  EXPECT_EQ(generation.text, shown);
  EXPECT_EQ(generation.stop, PITH_STOP_LENGTH);
  EXPECT_EQ(generation.num_tokens, 10U);
  ASSERT_EQ(generation.num_top, 3U);
  for (size_t i = 0; i < generation.num_tokens; ++i) {
    EXPECT_EQ(generation.top_tokens[3 * i], generation.tokens[i]) << "greedy takes the likeliest";
    EXPECT_EQ(generation.top_logprobs[3 * i], generation.logprobs[i]);
    EXPECT_LE(generation.top_logprobs[3 * i + 1], generation.logprobs[i]);
  }
  int32_t token = 0;
  EXPECT_EQ(pith_sampler_sample(sampler, generation.logprobs, 1, &token), PITH_ERROR_INVALID_ARGUMENT);
  const std::vector<float> broken(LogitsOf(sequence).size(), NAN);
  EXPECT_EQ(pith_sampler_sample(sampler, broken.data(), broken.size(), &token), PITH_ERROR_CORRUPT);
  pith_generator_free(generator);
  pith_sampler_free(sampler);
}

TEST_F(ModelCApi, CancelFromAnotherThreadEndsThePrompt) {
  Open(1);
  pith_conversation* talk = nullptr;
  ASSERT_EQ(pith_conversation_new(engine_, nullptr, &talk), PITH_OK) << pith_last_error();
  std::string text;
  for (int i = 0; i < 80; ++i) text += "Far away there is a mountain. ";
  ASSERT_EQ(pith_conversation_append(talk, text.c_str()), PITH_OK) << pith_last_error();
  const size_t queued = pith_conversation_num_pending(talk);
  const pith_progress_fn cancels = [](void* user, uint64_t, uint64_t) {
    std::thread([user] { pith_conversation_cancel(static_cast<pith_conversation*>(user)); }).join();
    return true;
  };
  EXPECT_EQ(pith_conversation_read(talk, cancels, talk), PITH_ERROR_CANCELLED);
  EXPECT_EQ(pith_conversation_num_pending(talk) +
                static_cast<size_t>(pith_sequence_num_tokens(pith_conversation_sequence(talk))),
            queued);
  // Nothing is lost, and later calls are not concerned.
  EXPECT_EQ(pith_conversation_read(talk, nullptr, nullptr), PITH_OK) << pith_last_error();
  EXPECT_EQ(pith_conversation_num_pending(talk), 0U);
  pith_conversation_free(talk);
}

// Scores like keydiff's would be, until it is told to fail.
std::atomic<bool> fails{false};
bool Moody(void*, const pith_layer_input* layer, float* const* scores) {
  for (int h = 0; h < layer->num_heads; ++h) {
    for (int i = 0; i < layer->heads[h]->num_entries; ++i) scores[h][i] = layer->heads[h]->keys[i * layer->key_dim];
  }
  if (fails && layer->layer == 5) scores[0][0] = NAN;
  return true;
}

// The same of the other stages, which change nothing while they are well.
bool MoodyNumbers(void*, const pith_window_rows* rows, float* numbers) {
  for (int i = 0; i < rows->num_entries; ++i) numbers[i] = rows->probabilities[i];
  if (fails && rows->num_entries > 0) numbers[0] = INFINITY;
  return true;
}
bool MoodyChange(void*, const pith_layer_input* layer, float* const* scores) {
  if (fails && layer->layer == 5) scores[0][0] = NAN;
  return true;
}
bool MoodyOrder(void*, const pith_head_ranking* head, float*) { return !fails || head->layer != 5; }
bool MoodyShares(void*, const pith_division* division, int32_t* const* keep) {
  for (int l = 0; l < division->num_layers; ++l) {
    for (int h = 0; h < division->layers[l]->num_heads; ++h) keep[l][h] = division->keep;
    if (fails && division->layers[l]->layer == 5) keep[l][0] = -1;
  }
  return true;
}

void RegisterMoody() {
  static const bool registered = [] {
    auto reranks = PITH_INIT(pith_modifier_options);
    reranks.rerank = MoodyOrder;
    auto across = PITH_INIT(pith_allocator_options);
    across.across_layers = true;
    return pith_register_scorer("moody", Moody, nullptr, nullptr) == PITH_OK &&
           pith_register_aggregator("moody", MoodyNumbers, nullptr, nullptr) == PITH_OK &&
           pith_register_modifier("moody", MoodyChange, nullptr, nullptr) == PITH_OK &&
           pith_register_modifier("moody_order", nullptr, nullptr, &reranks) == PITH_OK &&
           pith_register_allocator("moody", MoodyShares, nullptr, nullptr) == PITH_OK &&
           pith_register_allocator("moody_across", MoodyShares, nullptr, &across) == PITH_OK;
  }();
  ASSERT_TRUE(registered) << pith_last_error();
}

TEST_F(ModelCApi, AStageThatFailsFailsItsOwnSequenceWithASentence) {
  RegisterMoody();
  struct Case {
    const char *recipe, *sentence;
  };
  size_t index = 0;
  for (const auto& [recipe, sentence] : {
           Case{"score=moody", "score=moody gave entry 0 of head 0 in layer 5 the score nan"},
           Case{"score=moody alloc=global", "score=moody gave entry 0 of head 0 in layer 5 the score nan"},
           Case{"score=snapkv agg=moody", "agg=moody made inf of what entry 0 got, which is no number in layer 0"},
           Case{"score=keydiff mod=moody", "mod=moody gave entry 0 of head 0 in layer 5 the score nan"},
           Case{"score=keydiff mod=moody_order", "mod=moody_order failed in layer 5"},
           Case{"score=keydiff mod=moody_order alloc=global", "mod=moody_order failed in layer 5"},
           Case{"score=keydiff alloc=moody", "alloc=moody gave head 0 in layer 5 -1 entries"},
           Case{"score=keydiff alloc=moody_across", "alloc=moody_across gave head 0 in layer 5 -1 entries"},
       }) {
    if (!pith::IsMyTurn(index++)) continue;
    SCOPED_TRACE(recipe);
    fails = false;
    Open(4);
    auto few = PITH_INIT(pith_sequence_options);
    few.recipe = recipe;
    few.keep_entries = 64;
    pith_sequence *moody = nullptr, *calm = New("full"), *control = New("full"), *whole = New(recipe, true);
    ASSERT_EQ(pith_sequence_new(engine_, &few, &moody), PITH_OK) << pith_last_error();
    sequences_.push_back(moody);
    const Tokens text = LongText(8), more = LongText(2);
    const auto step = [&](pith_sequence* beside) {
      const pith_step_item items[] = {Item(moody, more), Item(beside, more)};
      pith_status statuses[2];
      (void)pith_step(engine_, items, 2, statuses);
      return std::pair(statuses[0], statuses[1]);
    };
    Prefill(moody, text);
    Prefill(whole, text);  // longer than a window
    auto stats = PITH_INIT(pith_sequence_stats);
    ASSERT_EQ(pith_sequence_get_stats(moody, &stats), PITH_OK);
    EXPECT_LT(stats.kept_fraction, 0.9) << "it drops while it is well";
    EXPECT_EQ(step(control), std::pair(pith_status{PITH_OK}, pith_status{PITH_OK}));
    const std::vector<float> expected = LogitsOf(control);
    fails = true;
    const auto [failed, fine] = step(calm);
    EXPECT_EQ(failed, PITH_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(pith_step_message(engine_, 0)).find(sentence),
              std::string::npos)
        << pith_step_message(engine_, 0);
    EXPECT_EQ(fine, PITH_OK);
    EXPECT_EQ(LogitsOf(calm), expected);
    double kept = 1;
    EXPECT_EQ(pith_sequence_compress(whole, recipe, 0.5, &kept), PITH_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(pith_last_error()).find(sentence), std::string::npos) << pith_last_error();
    EXPECT_EQ(kept, 0);
    TearDown();
    sequences_.clear();
    engine_ = nullptr;
  }
}

TEST_F(ModelCApi, ASecondReadingIsObservedAsThoughTheScorerWereBuiltIn) {
  const pith_score_fn by_column = [](void*, const pith_layer_input* layer, float* const* scores) {
    for (int h = 0; h < layer->num_heads; ++h) {
      std::copy_n(layer->heads[h]->columns[0], layer->heads[h]->num_entries, scores[h]);
    }
    return true;
  };
  const pith_column column = {sizeof column, "largest", 0};
  auto options = PITH_INIT(pith_scorer_options);
  options.needs = PITH_NEED_REPEAT | PITH_NEED_LARGEST;
  options.columns = &column;
  options.num_columns = 1;
  options.num_sinks = 4;
  options.repeat_chunk = 64;
  options.observe = [](void*, const pith_observation* seen, float* const* columns) {
    for (int i = 0; i < seen->num_entries; ++i) columns[0][i] = std::max(columns[0][i], seen->largest[i]);
  };
  ASSERT_EQ(pith_register_scorer("outside_kvzip", by_column, nullptr, &options), PITH_OK) << pith_last_error();
  Open(3, uint64_t{64} << 20);
  const Tokens text = LongText(8);
  std::vector<std::vector<float>> logits;
  for (const char* recipe : {"score=kvzip:chunk=64", "score=outside_kvzip", "score=random"}) {
    pith_sequence* sequence = New(recipe, true);
    Prefill(sequence, text);
    double kept = 0;
    ASSERT_EQ(pith_sequence_compress(sequence, nullptr, 0.3, &kept), PITH_OK) << pith_last_error();
    EXPECT_LT(kept, 0.35);
    ASSERT_EQ(pith_sequence_decode(sequence, 100), PITH_OK) << pith_last_error();
    logits.push_back(LogitsOf(sequence));
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_NE(logits[0], logits[2]) << "the control";
}

TEST_F(ModelCApi, LibllamaIsHeardWhereSomebodyListens) {
  std::atomic<int> lines{0};
  const pith_log_fn log = [](void* user, int32_t level, const char* text) {
    EXPECT_TRUE(level >= 1 && level <= 4 && text != nullptr);
    ++*static_cast<std::atomic<int>*>(user);
  };
  pith_set_log(log, &lines);
  pith_model* other = nullptr;
  auto options = PITH_INIT(pith_model_options);
  options.num_threads = 1;
  ASSERT_EQ(pith_model_load(pith::DefaultModelPath().c_str(), &options, &other), PITH_OK) << pith_last_error();
  pith_model_free(other);
  EXPECT_GT(lines, 0);
  pith_set_log(nullptr, nullptr);
  const int heard = lines;
  EXPECT_EQ(pith_model_load("/nonexistent.gguf", &options, &other), PITH_ERROR_NOT_FOUND);
  EXPECT_EQ(other, nullptr);
  EXPECT_EQ(lines, heard);
  // An error is the thread's own.
  std::thread([] { EXPECT_STREQ(pith_last_error(), ""); }).join();
  EXPECT_STRNE(pith_last_error(), "");
}

TEST_F(ModelCApi, OptionsStandInPlaceOfTheFile) {
  auto options = PITH_INIT(pith_model_options);
  options.num_threads = 1;
  options.rope = "rope-scaling=yarn,rope-scale=4";
  const char* overrides[] = {"general.name=str:other", "llama.context_length=int:512"};
  options.overrides = overrides;
  options.num_overrides = 2;
  pith_model* other = nullptr;
  ASSERT_EQ(pith_model_load(pith::DefaultModelPath().c_str(), &options, &other), PITH_OK) << pith_last_error();
  auto info = PITH_INIT(pith_model_info);
  ASSERT_EQ(pith_model_get_info(other, &info), PITH_OK);
  EXPECT_EQ(info.trained_ctx, 2048);
  std::string name;
  pith_model_list_metadata(
      other,
      [](void* user, const char* key, const char* value) {
        if (std::strcmp(key, "general.name") == 0) *static_cast<std::string*>(user) = value;
      },
      &name);
  EXPECT_EQ(name, "other");
  pith_model_free(other);
  options.rope = "rope-scale=0";
  EXPECT_EQ(pith_model_load(pith::DefaultModelPath().c_str(), &options, &other), PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_STREQ(pith_last_error(), "rope-scale takes a number from 0.0001 to 10000");
  options.rope = nullptr;
  overrides[0] = "general.name=bool:true";
  EXPECT_EQ(pith_model_load(pith::DefaultModelPath().c_str(), &options, &other), PITH_ERROR_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(pith_last_error(), "has str there"), nullptr) << pith_last_error();
}

TEST_F(ModelCApi, AModelTellsItsTokensAndItsMetadata) {
  auto info = PITH_INIT(pith_model_info);
  ASSERT_EQ(pith_model_get_info(model_, &info), PITH_OK);
  EXPECT_TRUE(pith_token_ends(model_, info.eos_token));
  EXPECT_TRUE(pith_token_is_control(model_, info.eos_token));
  EXPECT_FALSE(pith_token_is_control(model_, info.newline_token));
  EXPECT_FALSE(pith_token_is_control(model_, -1));
  EXPECT_NE(std::strstr(info.chat_template, "messages"), nullptr);
  std::vector<std::pair<std::string, std::string>> all;
  pith_model_list_metadata(
      model_,
      [](void* user, const char* key, const char* value) {
        static_cast<std::vector<std::pair<std::string, std::string>>*>(user)->emplace_back(key, value);
      },
      &all);
  const auto has = [&](const char* key, const std::string& value) {
    return std::ranges::find(all, std::pair<std::string, std::string>(key, value)) != all.end();
  };
  EXPECT_TRUE(has("general.architecture", "llama"));
  EXPECT_TRUE(has("llama.embedding_length", std::to_string(info.num_embd)));
  // A program from before these fields.
  constexpr size_t kBefore = offsetof(pith_model_info, num_embd);
  alignas(pith_model_info) unsigned char old[sizeof(pith_model_info)];
  std::memset(old, 0x5a, sizeof old);
  std::memcpy(old, &kBefore, sizeof kBefore);
  ASSERT_EQ(pith_model_get_info(model_, reinterpret_cast<pith_model_info*>(old)), PITH_OK);
  EXPECT_EQ(old[kBefore], 0x5a);
}

TEST_F(ModelCApi, MessagesAndSchemasComeAsJson) {
  const auto render = [](const char* messages, const char* tools) {
    size_t length = 0;
    EXPECT_EQ(pith_apply_template_json(model_, messages, tools, true, nullptr, 0, &length), PITH_OK)
        << pith_last_error();
    std::string text(length, '\0');
    EXPECT_EQ(pith_apply_template_json(model_, messages, tools, true, text.data(), length + 1, &length), PITH_OK);
    return text;
  };
  const pith_message message = {sizeof message, "user", "Hi"};
  std::string plain(256, '\0');
  size_t length = 0;
  ASSERT_EQ(pith_apply_template(model_, &message, 1, true, plain.data(), plain.size(), &length), PITH_OK);
  plain.resize(length);
  EXPECT_EQ(render(R"([{"role":"user","content":"Hi"}])", nullptr), plain);
  EXPECT_EQ(render(R"([{"role":"user","content":[{"type":"text","text":"H"},{"type":"text","text":"i"}]}])", "[]"),
            plain);
  for (const char* wrong : {"", "{}", "[1]", R"([{"content":"a"}])", R"([{"role":"user","content":5}])",
                            R"([{"role":"user","content":"a","tool_calls":[{}]}])"}) {
    EXPECT_EQ(pith_apply_template_json(model_, wrong, nullptr, true, nullptr, 0, &length), PITH_ERROR_INVALID_ARGUMENT)
        << wrong;
  }
  std::string grammar(4096, '\0');
  ASSERT_EQ(pith_grammar_of_schema(R"({"enum":["a","b"]})", grammar.data(), grammar.size(), &length), PITH_OK);
  grammar.resize(length);
  EXPECT_NE(grammar.find("root ::="), std::string::npos);
  EXPECT_EQ(pith_grammar_of_schema("{", nullptr, 0, &length), PITH_ERROR_INVALID_ARGUMENT);
}

TEST_F(ModelCApi, EmbeddingsComeBesideLogits) {
  Open(2);
  const Tokens text = Tokenize("The old lighthouse stood on a rock.");
  auto info = PITH_INIT(pith_model_info);
  ASSERT_EQ(pith_model_get_info(model_, &info), PITH_OK);
  const auto width = static_cast<size_t>(info.num_embd);
  pith_sequence* one = New();
  pith_sequence* other = New();
  std::vector<float> embeddings(text.size() * width, NAN), again(3 * width, NAN);
  pith_step_item items[2] = {PITH_INIT(pith_step_item), PITH_INIT(pith_step_item)};
  items[0].sequence = one;
  items[0].tokens = text.data();
  items[0].num_tokens = text.size();
  items[0].all_embeddings = embeddings.data();
  items[1].sequence = other;
  items[1].tokens = text.data();
  items[1].num_tokens = 3;
  ASSERT_EQ(pith_step(engine_, items, 2, nullptr), PITH_OK) << pith_last_error();
  EXPECT_TRUE(std::ranges::all_of(embeddings, [](float x) { return std::isfinite(x); }));
  const std::vector<float> logits = LogitsOf(other);
  // The same rows in a step of their own.
  ASSERT_EQ(pith_sequence_rewind(other, 0), PITH_OK) << pith_last_error();
  items[1].all_embeddings = again.data();
  ASSERT_EQ(pith_step(engine_, items + 1, 1, nullptr), PITH_OK) << pith_last_error();
  double dot = 0, left = 0, right = 0;
  for (size_t i = 0; i < again.size(); ++i) {
    dot += embeddings[i] * again[i], left += embeddings[i] * embeddings[i], right += again[i] * again[i];
  }
  EXPECT_GT(dot / std::sqrt(left * right), 0.999);
  EXPECT_GT(left, 1.0);
  // And without them again, only the last row has logits.
  ASSERT_EQ(pith_sequence_rewind(other, 0), PITH_OK);
  ASSERT_EQ(pith_sequence_prefill(other, text.data(), 3, false, nullptr, nullptr), PITH_OK);
  EXPECT_EQ(LogitsOf(other).size(), logits.size());
}

}  // namespace
