#include "host/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/turn_test_util.h"
#include "gguf.h"
#include "llama.h"

namespace pith {
namespace {

std::string Utf8(int code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

using Model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;

// A vocabulary of the 256 bytes, some merges, "<bos>" and "<eos>", and no weights.
Model MakeVocabulary(const std::string& pre, bool add_eos = false) {
  std::vector<std::string> tokens;
  for (int byte = 0, extra = 0; byte < 256; ++byte) {
    const bool keep = (byte >= 33 && byte < 127) || (byte >= 161 && byte < 173) || byte >= 174;
    tokens.push_back(Utf8(keep ? byte : 256 + extra++));
  }
  for (const char* more : {"AA", "th", "--", "<bos>", "<eos>"}) tokens.emplace_back(more);
  std::vector<int32_t> types(tokens.size(), LLAMA_TOKEN_TYPE_NORMAL);
  types[259] = types[260] = LLAMA_TOKEN_TYPE_CONTROL;
  std::vector<const char*> names;
  for (const std::string& token : tokens) names.push_back(token.c_str());
  const char* merges[] = {"A A", "t h", "- -"};
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_empty(), &gguf_free);
  gguf_set_val_str(file.get(), "general.architecture", "llama");
  for (const char* key :
       {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"}) {
    gguf_set_val_u32(file.get(), (std::string("llama.") + key).c_str(), 32);
  }
  gguf_set_val_f32(file.get(), "llama.attention.layer_norm_rms_epsilon", 1e-5F);
  gguf_set_val_str(file.get(), "tokenizer.ggml.model", "gpt2");
  gguf_set_val_str(file.get(), "tokenizer.ggml.pre", pre.c_str());
  gguf_set_arr_str(file.get(), "tokenizer.ggml.tokens", names.data(), names.size());
  gguf_set_arr_str(file.get(), "tokenizer.ggml.merges", merges, 3);
  gguf_set_arr_data(file.get(), "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_val_u32(file.get(), "tokenizer.ggml.bos_token_id", 259);
  gguf_set_val_u32(file.get(), "tokenizer.ggml.eos_token_id", 260);
  gguf_set_val_bool(file.get(), "tokenizer.ggml.add_bos_token", true);
  gguf_set_val_bool(file.get(), "tokenizer.ggml.add_eos_token", add_eos);
  const std::string path = ::testing::TempDir() + "pith_vocabulary_" + std::to_string(::getpid()) + ".gguf";
  EXPECT_TRUE(gguf_write_to_file(file.get(), path.c_str(), false));
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  Model model(llama_model_load_from_file(path.c_str(), params), &llama_model_free);
  std::remove(path.c_str());
  EXPECT_NE(model, nullptr) << pre;
  return model;
}

std::string Repeated(const std::string& part, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += part;
  return text;
}

std::string TextOf(const llama_vocab* vocab, const std::vector<int32_t>& tokens) {
  std::string text(tokens.size() * 8 + 16, '\0');
  const int32_t length = llama_detokenize(vocab, tokens.data(), static_cast<int32_t>(tokens.size()), text.data(),
                                          static_cast<int32_t>(text.size()), true, false);
  text.resize(static_cast<size_t>(std::max(length, 0)));
  return text;
}

constexpr const char* kParts[] = {"A",  "a", "ACGT",   "aB",     " ",      "\t",     "\n",     " \n",    "-",   ".",
                                  "'s", "1", "\u00e9", "\u4e2d", "\u3042", "\u3002", "\u3000", "\u0301", "a b "};

// Of every family of expressions, runs for which a thread's usual 8 MiB of stack are too few.
TEST(Tokenizer, LongRunsAreTokens) {
  size_t index = 0;
  for (const char* pre : {"default",        "llama-bpe",   "gpt-2",      "deepseek-llm",
                          "deepseek-coder", "deepseek-v3", "youtu",      "falcon",
                          "jais-2",         "poro-chat",   "tekken",     "smollm",
                          "exaone-moe",     "chameleon",   "gpt-4o",     "granite-embed-multi-97m",
                          "tiny_aya",       "bailingmoe",  "seed-coder", "minimax-m2",
                          "afmoe"}) {
    const Model model = MakeVocabulary(pre);
    ASSERT_NE(model, nullptr);
    const llama_vocab* vocab = llama_model_get_vocab(model.get());
    for (const char* part : kParts) {
      if (!IsMyTurn(index++)) continue;
      const std::string text = Repeated(part, 40'000 / std::string(part).size());
      const auto tokens = TokenizeText(vocab, pre, text, true, true);
      ASSERT_TRUE(tokens) << pre << ", " << part << ": " << tokens.error().message;
      ASSERT_GT(tokens->size(), 1U);
      EXPECT_EQ(tokens->front(), 259);
      EXPECT_EQ(TextOf(vocab, std::vector<int32_t>(tokens->begin() + 1, tokens->end())), text) << pre << ", " << part;
    }
  }
}

// On a thread of its own or not: libllama's tokens.
TEST(Tokenizer, GivesLibllamasTokens) {
  const Model model = MakeVocabulary("tekken");
  const llama_vocab* vocab = llama_model_get_vocab(model.get());
  for (const size_t count : {1U, 100U, 2000U}) {
    const std::string text = "the " + Repeated("A", count) + " -- " + Repeated(" ", count) + "<eos> thing";
    std::vector<int32_t> expected(text.size() + 8);
    const int32_t num = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), expected.data(),
                                       static_cast<int32_t>(expected.size()), true, true);
    ASSERT_GT(num, 0);
    expected.resize(static_cast<size_t>(num));
    const auto tokens = TokenizeText(vocab, "tekken", text, true, true);
    ASSERT_TRUE(tokens);
    EXPECT_EQ(*tokens, expected);
  }
}

TEST(Tokenizer, NoEndBehindATextThatGoesOn) {
  const Model model = MakeVocabulary("gpt-2", true);
  const llama_vocab* vocab = llama_model_get_vocab(model.get());
  EXPECT_EQ(*TokenizeText(vocab, "gpt-2", "th", true, true), (std::vector<int32_t>{259, 257}));
  EXPECT_EQ(*TokenizeText(vocab, "gpt-2", "th<eos>", true, true), (std::vector<int32_t>{259, 257, 260}));
  EXPECT_EQ(*TokenizeText(vocab, "gpt-2", "", true, true), (std::vector<int32_t>{259}));
}

TEST(Tokenizer, RefusesWhatIsNoText) {
  const Model model = MakeVocabulary("tekken");
  const llama_vocab* vocab = llama_model_get_vocab(model.get());
  EXPECT_NE(TokenizeText(vocab, "tekken", "caf\xe9", true, true).error().message.find("UTF-8 (byte 3)"),
            std::string::npos);
  const auto long_run = TokenizeText(vocab, "tekken", std::string(3'000'000, 'a'), true, true);
  ASSERT_FALSE(long_run);
  EXPECT_NE(long_run.error().message.find("run of 3000001 characters"), std::string::npos) << long_run.error().message;
}

TEST(Tokenizer, ReachCountsCharacters) {
  EXPECT_EQ(ReachOfMatch("ab cde   f", "tekken"), 3U + 3 + 1);
  EXPECT_EQ(ReachOfMatch("\u4e2d\u4e2d\u3000\u4e2d", "tekken"), 2U + 1 + 1);
  EXPECT_EQ(ReachOfMatch("ab cd, e", "exaone-moe"), 6U);
}

}  // namespace
}  // namespace pith
