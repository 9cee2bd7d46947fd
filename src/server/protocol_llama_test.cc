// llama-server's paths without a model and without sockets.
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "server/json_reader.h"
#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::Json;

// Counts the bytes of which tokens are made.
class CountingModel final : public TextModel {
 public:
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool begins, bool parse_special) const override {
    bytes += text.size();
    return model_.Tokenize(text, begins, parse_special);
  }
  std::string Piece(int32_t token) const override { return model_.Piece(token); }
  bool IsEnd(int32_t token) const override { return model_.IsEnd(token); }
  bool has_template() const override { return true; }
  Result<std::string> Render(std::span<const ChatMessage> messages, bool opens_answer) const override {
    return model_.Render(messages, opens_answer);
  }

  mutable size_t bytes = 0;

 private:
  ByteModel model_;
};

TEST(LlamaProtocol, TokensSlotsAndNames) {
  FakeServer server;
  EXPECT_EQ(Body(*server.Handle("POST", "/tokenize", R"({"content":"ab"})"))["tokens"], Json::parse("[97,98]"));
  EXPECT_EQ(Body(*server.Handle("POST", "/detokenize", R"({"tokens":[97,98]})"))["content"], "ab");
  EXPECT_EQ(server.Handle("POST", "/detokenize", R"({"tokens":[9999]})")->status, 400);
  EXPECT_EQ(Body(*server.Handle("POST", "/slots/1?action=save", R"({"filename":"a"})"))["n_written"], 70);
  EXPECT_EQ(Body(*server.Handle("POST", "/slots/1?action=restore", R"({"filename":"a"})"))["n_read"], 70);
  EXPECT_EQ(server.Handle("POST", "/slots/1?action=restore", R"({"filename":"b"})")->status, 404);
  EXPECT_EQ(Body(*server.Handle("POST", "/slots/1?action=erase"))["n_erased"], 7);
  EXPECT_EQ(server.Handle("POST", "/slots/9?action=erase")->status, 404);
  for (const char* name : {"../a", "/a", "a/b", ".", "..", "", "a\\u0000b", "a\\\\b"}) {
    EXPECT_EQ(server.Handle("POST", "/slots/1?action=save", std::string(R"({"filename":")") + name + "\"}")->status,
              400)
        << name;
  }
  EXPECT_EQ(server.scheduler->files, std::vector<std::string>{"a"});
}

TEST(LlamaProtocol, ChoicesFieldsAndTimeOfACompletion) {
  FakeServer server;
  const auto complete = [&](const std::string& more, const char* prompt = R"("ab")") {
    return server.Handle("POST", "/completion", fmt::format(R"({{"prompt":{}{}}})", prompt, more));
  };
  const Json two = Body(*complete(R"(,"n_cmpl":2,"t_max_predict_ms":1500,"n_predict":3)"));
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[1]["index"], 1);
  EXPECT_EQ(two[1]["tokens_predicted"], 3);
  EXPECT_EQ(two[1]["tokens_evaluated"], 3);
  EXPECT_EQ(two[1]["generation_settings"]["n_cmpl"], 2);
  EXPECT_EQ(two[1]["generation_settings"]["t_max_predict_ms"], 1500);
  EXPECT_EQ(server.scheduler->requests.back().num_choices, 2);
  EXPECT_DOUBLE_EQ(server.scheduler->requests.back().generation.max_seconds, 1.5);
  EXPECT_EQ(Body(*complete(""))["generation_settings"]["t_max_predict_ms"], 0) << "control";
  // Of two prompts, each its own.
  const Json four = Body(*complete(R"(,"n":2)", R"(["a","bcd"])"));
  ASSERT_EQ(four.size(), 4u);
  EXPECT_EQ(four[1]["prompt"], "a");
  EXPECT_EQ(four[2]["prompt"], "bcd");
  EXPECT_EQ(four[2]["tokens_evaluated"], 4);
  // Members alone, and those within others.
  const std::string fields = R"(,"n_predict":2,"response_fields":["content","generation_settings/n_predict",)"
                             R"("timings","none","content/none",""])";
  const Json some = Body(*complete(fields));
  EXPECT_EQ(some.size(), 3u);
  EXPECT_EQ(some["content"], "He");
  EXPECT_EQ(some["generation_settings/n_predict"], 2);
  EXPECT_TRUE(some["timings"].is_object());
  const std::vector<Json> parts = Parts(complete(fields + R"(,"stream":true)")->body);
  EXPECT_EQ(parts.back().size(), 3u);
  EXPECT_EQ(parts.front()["content"], "He") << "parts of a stream are whole";
  EXPECT_TRUE(parts.front().contains("tokens_predicted"));
  for (const char* wrong : {R"("n_cmpl":0)", R"("n_cmpl":3)", R"("n_cmpl":"2")", R"("response_fields":"content")",
                            R"("response_fields":[1])", R"("t_max_predict_ms":-2)", R"("t_max_predict_ms":"5")"}) {
    EXPECT_EQ(complete("," + std::string(wrong))->status, 400) << wrong;
  }
  EXPECT_EQ(complete(R"(,"n_cmpl":null,"response_fields":null,"t_max_predict_ms":-1)")->status, 200);
}

TEST(LlamaProtocol, PromptsAsObjects) {
  FakeServer server;
  const auto complete = [&](const std::string& prompt) {
    return server.Handle("POST", "/completion", R"({"n_predict":2,"prompt":)" + prompt + "}");
  };
  EXPECT_EQ(Body(*complete(R"({"prompt_string":"abc"})"))["prompt"], "abc");
  EXPECT_EQ(server.scheduler->requests.back().prompt.size(), 4u);
  const Json both = Body(*complete(R"([[97,98],{"prompt_string":"abc","multimodal_data":[]}])"));
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0]["prompt"], "ab");
  EXPECT_EQ(both[1]["prompt"], "abc");
  for (const char* wrong : {R"({"prompt_string":5})", R"({})", R"([{}])",
                            R"({"prompt_string":"a","multimodal_data":["x"]})", R"([97,{"prompt_string":5}])"}) {
    EXPECT_EQ(complete(wrong)->status, 400) << wrong;
  }
}

TEST(LlamaProtocol, WhatATokenWasDrawnFrom) {
  FakeServer server;
  const auto complete = [&](const std::string& more) {
    return Body(*server.Handle("POST", "/completion", R"({"prompt":"ab","n_predict":2,"n_probs":2)" + more + "}"));
  };
  const Json before = complete("");
  EXPECT_FALSE(server.scheduler->requests.back().tells_sampled);
  EXPECT_NEAR(before["completion_probabilities"][0]["logprob"].get<double>(), -0.5, 1e-6);
  EXPECT_EQ(before["completion_probabilities"][0]["top_logprobs"].size(), 2u);
  const Json after = complete(R"(,"post_sampling_probs":true)");
  EXPECT_TRUE(server.scheduler->requests.back().tells_sampled);
  const Json& first = after["completion_probabilities"][0];
  EXPECT_NEAR(first["prob"].get<double>(), std::exp(-0.5), 1e-6);
  EXPECT_NEAR(first["top_probs"][1]["prob"].get<double>(), std::exp(-2.0), 1e-6);
  EXPECT_FALSE(first.contains("logprob") || first.contains("top_logprobs"));
  EXPECT_EQ(after["generation_settings"]["n_probs"], 2);
  EXPECT_EQ(server.Handle("POST", "/completion", R"({"prompt":"ab","post_sampling_probs":"yes"})")->status, 400);
}

TEST(LlamaProtocol, BiasesOfTexts) {
  FakeServer server;
  const auto biases = [&](const char* path, const std::string& bias) {
    const auto exchange = server.Handle("POST", path, With(R"("prompt":"ab","logit_bias":)" + bias));
    return exchange->status == 200 ? server.scheduler->requests.back().sampling.logit_bias
                                   : std::vector<std::pair<int32_t, float>>();
  };
  using Biases = std::vector<std::pair<int32_t, float>>;
  EXPECT_EQ(biases("/completion", R"({"ab":1.5,"99":-1})"), (Biases{{97, 1.5f}, {98, 1.5f}, {99, -1.0f}}));
  EXPECT_EQ(biases("/completion", R"([["ab",1.5]])"), (Biases{{97, 1.5f}, {98, 1.5f}}));
  EXPECT_EQ(biases("/v1/completions", R"({"ab":1.5})"), Biases());
  EXPECT_EQ(biases("/v1/completions", R"({"97":1.5})"), (Biases{{97, 1.5f}})) << "control";
}

// A text that has too many bytes for the context, whatever its tokens are, is not tokenised.
TEST(LlamaProtocol, TextsThatCannotFitHaveNoTokensMade) {
  FakeServer server;
  const auto counts = std::make_shared<CountingModel>();
  server.context.model.text = counts;
  const size_t most = 4096 * server.context.model.most_token_bytes;
  const std::string fits(most / 2, 'x'), too_long(most, 'x');
  const auto send = [&](const char* path, const std::string& body) {
    counts->bytes = 0;
    return server.Handle("POST", path, body);
  };
  const auto chat = [](const std::string& text) {
    return R"({"max_tokens":1,"messages":[{"role":"user","content":")" + text + "\"}]}";
  };
  const auto prompt = [](const std::string& text) { return R"({"model":"m","prompt":")" + text + "\"}"; };
  for (const char* path : {"/v1/chat/completions", "/v1/messages", "/v1/completions", "/completion", "/api/generate"}) {
    const bool is_chat = std::string(path).find("chat") != std::string::npos || std::string(path) == "/v1/messages";
    const auto refused = send(path, is_chat ? chat(too_long) : prompt(too_long));
    EXPECT_EQ(refused->status, 400) << path;
    EXPECT_LT(counts->bytes, 1000u) << path;
    EXPECT_NE(refused->body.find("the context of 4096 tokens has no room"), std::string::npos) << refused->body;
    if (std::string(path).find("compl") != std::string::npos) {
      const Json error = Body(*refused)["error"];
      EXPECT_EQ(error["type"], "exceed_context_size_error") << path;
      EXPECT_EQ(error["n_ctx"], 4096) << path;
      EXPECT_GE(error["n_prompt_tokens"], 4096) << path;
    }
    EXPECT_EQ(send(path, is_chat ? chat(fits) : prompt(fits))->status, 400) << path;
    EXPECT_GE(counts->bytes, fits.size()) << "control: its tokens say so, " << path;
  }
  // Where no context bounds them.
  const std::string long_text(size_t{4} << 20, 'x');
  const auto tokenize = [&](const std::string& text) { return send("/tokenize", R"({"content":")" + text + "\"}"); };
  EXPECT_EQ(tokenize(long_text)->status, 200);
  EXPECT_EQ(tokenize(long_text + "x")->status, 413);
  EXPECT_EQ(counts->bytes, 0u);
  EXPECT_EQ(send("/v1/messages/count_tokens", chat(long_text))->status, 413);
  // Inputs whose front is enough are cut first.
  const auto embedded = send("/api/embed", R"({"model":"m","input":")" + too_long + too_long + too_long + "\"}");
  EXPECT_EQ(embedded->status, 200) << embedded->body;
  EXPECT_LT(counts->bytes, 2 * too_long.size() + 4096 * 2 + 1000);
  EXPECT_EQ(server.scheduler->requests.back().prompt.size(), 4096u);
  EXPECT_EQ(send("/v1/embeddings", R"({"model":"m","input":")" + too_long + "\"}")->status, 400);
  EXPECT_LT(counts->bytes, 1000u);
}

TEST(LlamaProtocol, WhatASlotHoldsOfAToken) {
  FakeServer server;
  const Json token = Body(*server.Handle("GET", "/slots/1?position=3"));
  EXPECT_EQ(token["id_slot"], 1);
  EXPECT_EQ(token["n_tokens"], 6);
  EXPECT_EQ(token["layers"][0][0]["score"], 0.5);
  EXPECT_EQ(token["layers"][0][0]["format"], "f16");
  EXPECT_EQ(token["layers"][0][1], Json::parse(R"({"held":false})"));
  for (const char* path : {"/slots/1?position=9", "/slots/1", "/slots/1?position=", "/slots/1?position=1x",
                           "/slots/x?position=1", "/slots/1?position=99999999999"}) {
    EXPECT_EQ(server.Handle("GET", path)->status, 400) << path;
  }
  EXPECT_EQ(server.Handle("GET", "/slots/2?position=1")->status, 404);
  EXPECT_EQ(server.Handle("PUT", "/slots/1")->Header("Allow"), "GET, HEAD, POST, OPTIONS");
}

}  // namespace
}  // namespace pith::testing
