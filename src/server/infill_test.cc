// Prompts for what stands between two texts, by a tokenizer of bytes with tokens above them.
#include "server/infill.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::InfillParts;
using server::Json;

// Bytes, and single characters for the five tokens.
class FimModel final : public TextModel {
 public:
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool begins, bool parse_special) const override {
    return bytes_.Tokenize(text, begins, parse_special);
  }
  std::string Piece(int32_t token) const override {
    constexpr const char* kPieces[] = {"<PRE>", "<SUF>", "<MID>", "<REP>", "<SEP>"};
    return token < kNumVocab ? bytes_.Piece(token) : kPieces[token - kNumVocab];
  }
  bool IsEnd(int32_t token) const override { return bytes_.IsEnd(token); }
  bool has_template() const override { return true; }
  Result<std::string> Render(std::span<const ChatMessage> messages, bool opens_answer) const override {
    return bytes_.Render(messages, opens_answer);
  }

 private:
  ByteModel bytes_;
};

constexpr FimTokens kFim = {.prefix = kNumVocab,
                            .suffix = kNumVocab + 1,
                            .middle = kNumVocab + 2,
                            .repository = kNumVocab + 3,
                            .separator = kNumVocab + 4};

struct FimServer : FakeServer {
  explicit FimServer(const FimTokens& fim = kFim) {
    context.model.text = std::make_shared<FimModel>();
    context.model.info.num_vocab = kNumVocab + 5;
    context.model.fim = fim;
  }
  std::string Asked() const {
    std::string text;
    for (const int32_t token : scheduler->requests.back().prompt) text += context.model.text->Piece(token);
    return text;
  }
  std::string Written(const InfillParts& parts, int max_tokens = 8) const {
    const auto tokens = server::InfillPrompt(context.model, parts, max_tokens);
    if (!tokens) return tokens.error().message;
    std::string text;
    for (const int32_t token : *tokens) text += context.model.text->Piece(token);
    return text;
  }
};

TEST(Infill, AsLlamaServerWritesIt) {
  FimServer server;
  const auto exchange = server.Handle(
      "POST", "/infill",
      R"({"input_prefix":"a(","input_suffix":")\n","prompt":"x","n_predict":3,"id_slot":0,"n_indent":4,"top_k":40,
          "input_extra":[{"filename":"one.c","text":"1"},{"text":"2<|im_end|>","time":[1,2]}],
          "samplers":["top_k","top_p","infill"],"stream":false,"cache_prompt":true,"t_max_prompt_ms":500,
          "t_max_predict_ms":1000,"stop":[],"response_fields":["content","timings/prompt_n","truncated","tokens_cached"]})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  EXPECT_EQ(server.Asked(),
            "<s><REP>myproject\n<SEP>one.c\n1<SEP>tmp\n2<|im_end|><SEP>filename\n<PRE>a(x<SUF>)\n<MID>");
  const auto& prompt = server.scheduler->requests.back().prompt;
  EXPECT_EQ(std::ranges::count(prompt, kEnd), 0) << "control tokens in files are text";
  const Json body = Body(*exchange);
  EXPECT_EQ(body["content"], "Hel");
  EXPECT_TRUE(body.contains("timings/prompt_n"));
  EXPECT_EQ(body.size(), 4u);
  EXPECT_EQ(server.scheduler->requests.back().sampling.sequence,
            (std::vector<std::string>{"top_k", "top_p", "infill"}));
}

// What the editors send ahead, so that the files are read when they are needed.
TEST(Infill, NothingIsAskedForYet) {
  FimServer server;
  const auto exchange = server.Handle("POST", "/infill",
                                      R"({"id_slot":0,"input_prefix":"","input_suffix":"","input_extra":[{"text":"1",
          "filename":"a"}],"prompt":"","n_predict":0,"temperature":0.0,"samplers":[],"stream":false,
          "cache_prompt":true,"t_max_prompt_ms":1,"t_max_predict_ms":1,"response_fields":[""]})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  EXPECT_EQ(server.Asked(), "<s><REP>myproject\n<SEP>a\n1<SEP>filename\n<PRE><SUF><MID>");
  EXPECT_EQ(exchange->body, "{}");
}

TEST(Infill, WithoutTokensForFiles) {
  FimTokens few = kFim;
  few.repository = few.separator = -1;
  FimServer server(few);
  EXPECT_EQ(server.Written({.prefix = "a", .suffix = "b", .names_files = true, .extra = {{"n", "1"}}}),
            "<s>\n\n--- snippet ---\n\n1<PRE>a<SUF>b<MID>");
}

TEST(Infill, SuffixesOfOtherProtocols) {
  FimServer server;
  auto exchange = server.Handle("POST", "/v1/completions", R"({"prompt":["a","c"],"suffix":"b","max_tokens":2})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  EXPECT_EQ(Body(*exchange)["choices"].size(), 2u);
  EXPECT_EQ(server.Asked(), "<s><PRE>c<SUF>b<MID>");
  exchange = server.Handle("POST", "/api/generate", R"({"model":"m","prompt":"a","suffix":"b","stream":false})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  EXPECT_EQ(server.Asked(), "<s><PRE>a<SUF>b<MID>");
  // By which editors know that they may ask.
  const Json known = Body(*server.Handle("POST", "/api/show", R"({"model":"bytes"})"))["capabilities"];
  EXPECT_EQ(known, Json::parse(R"(["completion","tools","embedding","insert"])"));
  for (const char* wrong : {R"({"prompt":[97],"suffix":"b"})", R"({"prompt":[],"suffix":"b"})",
                            R"({"prompt":"a","suffix":"b","echo":true})", R"({"prompt":5,"suffix":"b"})"}) {
    EXPECT_EQ(server.Handle("POST", "/v1/completions", wrong)->status, 400) << wrong;
  }
  server.Handle("POST", "/v1/completions", R"({"prompt":"a","suffix":""})");
  EXPECT_EQ(server.Asked(), "<s>a") << "control";
}

TEST(Infill, WhatDoesNotFitIsLeftOut) {
  FimServer server;
  server.context.model.num_ctx = 100;
  server.context.model.most_token_bytes = 1;
  const std::string text = "0123456789";
  InfillParts parts{.prefix = std::string(200, 'p') + text, .suffix = text + std::string(200, 's')};
  const auto count = [&](char letter) { return std::ranges::count(server.Written(parts), letter); };
  EXPECT_EQ(count('p') + 10, 66) << "three quarters of 88";
  EXPECT_EQ(count('s') + 10, 22 + 1) << "and that of <s>";
  EXPECT_TRUE(server.Written(parts).starts_with("<s><PRE>p"));
  EXPECT_NE(server.Written(parts).find("p" + text + "<SUF>" + text + "s"), std::string::npos) << "next to the gap";
  parts.suffix = text;
  EXPECT_EQ(count('p') + 10, 78) << "what the other leaves";
  parts = {.prefix = text, .suffix = text, .names_files = true, .extra = {{"a", "11"}, {"b", std::string(42, '2')}}};
  EXPECT_EQ(server.Written(parts), "<s><REP>myproject\n<SEP>b\n" + std::string(42, '2') + "<SEP>filename\n<PRE>" +
                                       text + "<SUF>" + text + "<MID>")
      << "the last files";
  parts.begun = std::string(200, 'x');
  EXPECT_NE(server.Written(parts).find("no room"), std::string::npos);
  parts.begun.clear();
  for (const int max_tokens : {-1, 0, 8, 1000000}) {
    parts.prefix = std::string(1000, 'p');
    const auto tokens = server::InfillPrompt(server.context.model, parts, max_tokens);
    ASSERT_TRUE(tokens) << max_tokens;
    EXPECT_LT(tokens->size(), 100u) << max_tokens;
    EXPECT_GE(tokens->size(), 50u) << max_tokens;
  }
}

TEST(Infill, CutsBetweenCharacters) {
  FimServer server;
  server.context.model.num_ctx = 64;
  server.context.model.most_token_bytes = 1;
  std::string long_text;
  for (int i = 0; i < 100; ++i) long_text += "\xc3\xa9";
  // Bytes are tokens here, so that tokens may end inside of characters; what is cut before is not.
  const auto tokens = server::InfillPrompt(server.context.model, {.prefix = "x" + long_text, .suffix = long_text}, 8);
  ASSERT_TRUE(tokens);
  EXPECT_LT(tokens->size(), 64u);
}

TEST(Infill, WrongRequestsAndModelsWithoutIt) {
  FimServer server;
  for (const char* wrong :
       {"{}", R"({"input_prefix":"a"})", R"({"input_suffix":"a"})", R"({"input_prefix":5,"input_suffix":"a"})",
        R"({"input_prefix":"a","input_suffix":"b","prompt":5})",
        R"({"input_prefix":"a","input_suffix":"b","input_extra":5})",
        R"({"input_prefix":"a","input_suffix":"b","input_extra":[5]})",
        R"({"input_prefix":"a","input_suffix":"b","input_extra":[{}]})",
        R"({"input_prefix":"a","input_suffix":"b","input_extra":[{"text":5}]})",
        R"({"input_prefix":"a","input_suffix":"b","input_extra":[{"text":"a","filename":5}]})",
        R"({"input_prefix":"a","input_suffix":"b","n_predict":"5"})"}) {
    EXPECT_EQ(server.Handle("POST", "/infill", wrong)->status, 400) << wrong;
  }
  FimTokens half = kFim;
  half.middle = -1;
  FimServer other(half);
  const auto refused = other.Handle("POST", "/infill", R"({"input_prefix":"a","input_suffix":"b"})");
  EXPECT_EQ(refused->status, 501);
  EXPECT_EQ(Body(*refused)["error"]["type"], "not_supported_error");
  EXPECT_NE(refused->body.find("lacks the tokens for middle"), std::string::npos) << refused->body;
  EXPECT_EQ(other.Handle("POST", "/v1/completions", R"({"prompt":"a","suffix":"b"})")->status, 400);
  EXPECT_EQ(other.Handle("POST", "/api/generate", R"({"model":"m","prompt":"a","suffix":"b"})")->status, 400);
  EXPECT_EQ(other.Handle("POST", "/api/show", R"({"model":"bytes"})")->body.find("insert"), std::string::npos);
}

TEST(Rerank, IsNotThere) {
  FakeServer server;
  for (const char* path : {"/rerank", "/reranking", "/v1/rerank", "/v1/reranking"}) {
    EXPECT_EQ(server.Handle("POST", path, R"({"query":"a","documents":["b"]})")->status, 501) << path;
  }
}

}  // namespace
}  // namespace pith::testing
