// The protocols without a model and without sockets: what goes to the scheduler, and how its answers are written.
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "server/json_reader.h"
#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::Json;

std::string TextOf(const FakeServer& server, const std::vector<int32_t>& tokens) {
  std::string text;
  for (const int32_t token : tokens) text += server.context.model.text->Piece(token);
  return text;
}

TEST(OpenAiProtocol, AChat) {
  FakeServer server;
  const auto exchange = server.Handle("POST", "/v1/chat/completions",
                                      With(R"("max_tokens":4,"temperature":0,"seed":5,"kv_budget":"1KiB")"));
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  const Json body = Body(*exchange);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hell");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);
  EXPECT_EQ(body["kv"]["evicted_spans"], Json::parse("[[4,7]]"));
  EXPECT_EQ(body["timings"]["cache_n"], 2);
  const server::Request& request = server.scheduler->requests.at(0);
  EXPECT_EQ(TextOf(server, request.prompt), "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(request.kv_budget_bytes, 1024u);
  EXPECT_EQ(request.sampling.seed, 5u);
  EXPECT_EQ(request.num_pinned, 0u);
}

TEST(OpenAiProtocol, TheSystemMessageIsPinned) {
  FakeServer server;
  const std::string messages =
      R"("messages":[{"role":"developer","content":"Be brief."},{"role":"user","content":"Hi"}])";
  server.Handle("POST", "/v1/chat/completions", "{" + messages + "}");
  server.Handle("POST", "/v1/chat/completions", "{" + messages + R"(,"pin":false})");
  const auto& requests = server.scheduler->requests;
  const std::vector<int32_t> pinned(requests[0].prompt.begin(),
                                    requests[0].prompt.begin() + static_cast<int>(requests[0].num_pinned));
  EXPECT_EQ(TextOf(server, pinned), "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
  EXPECT_EQ(requests[1].num_pinned, 0u);
}

TEST(OpenAiProtocol, AStreamEndsWithUsageAndCache) {
  FakeServer server;
  const auto exchange = server.Handle("POST", "/v1/chat/completions",
                                      With(R"("stream":true,"n":2,"stream_options":{"include_usage":true})"));
  const std::vector<Json> parts = Parts(exchange->body);
  std::string texts[2];
  for (const Json& part : parts) {
    EXPECT_TRUE(part.contains("usage"));
    for (const Json& choice : part["choices"])
      texts[choice["index"].get<int>()] += choice["delta"].value("content", "");
  }
  EXPECT_EQ(texts[0], "Hello");
  EXPECT_EQ(texts[1], "Hello");
  EXPECT_EQ(parts.back()["usage"]["completion_tokens"], 10);
  EXPECT_TRUE(parts.back()["choices"].empty());
  EXPECT_TRUE(parts.back().contains("kv"));
  EXPECT_TRUE(parts[parts.size() - 2].contains("kv"));
  EXPECT_TRUE(exchange->body.ends_with("data: [DONE]\n\n"));
  EXPECT_TRUE(exchange->over());
}

TEST(OpenAiProtocol, LogprobsAndStops) {
  FakeServer server;
  const Json body =
      Body(*server.Handle("POST", "/v1/chat/completions", With(R"("logprobs":true,"top_logprobs":2,"stop":"lo")")));
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hel");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"].size(), 2u);
  const Json echo =
      Body(*server.Handle("POST", "/v1/completions", R"({"prompt":"ab","echo":true,"logprobs":1,"max_tokens":2})"));
  EXPECT_EQ(echo["choices"][0]["text"], "abHe");
  EXPECT_EQ(echo["choices"][0]["logprobs"]["tokens"], Json::parse(R"(["<s>","a","b","H","e"])"));
  EXPECT_EQ(echo["choices"][0]["logprobs"]["token_logprobs"], Json::parse("[null,-1.5,-1.5,-0.5,-0.5]"));
  // What begins the text is not in it.
  EXPECT_EQ(echo["choices"][0]["logprobs"]["text_offset"], Json::parse("[0,0,1,2,3]"));
}

TEST(OpenAiProtocol, ToolsReachAModelWhoseTemplateKnowsNone) {
  FakeServer server;
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"weather",)"
      R"("parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}])";
  server.scheduler->text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
  const auto exchange = server.Handle("POST", "/v1/chat/completions", With(tools + R"(,"tool_choice":"required")"));
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  const Json choice = Body(*exchange)["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], R"({"city":"Bonn"})");
  const server::Request& request = server.scheduler->requests.at(0);
  EXPECT_NE(TextOf(server, request.prompt).find("\"weather\""), std::string::npos);
  EXPECT_NE(request.sampling.grammar.find("root ::= \"<tool_call>"), std::string::npos);
  EXPECT_GT(request.num_pinned, 100u);

  const auto stream = server.Handle("POST", "/v1/chat/completions", With(tools + R"(,"stream":true)"));
  std::string content, arguments;
  for (const Json& part : Parts(stream->body)) {
    const Json& delta = part["choices"][0]["delta"];
    if (delta.contains("content") && delta["content"].is_string()) content += delta["content"].get<std::string>();
    if (delta.contains("tool_calls")) arguments += delta["tool_calls"][0]["function"]["arguments"].get<std::string>();
  }
  EXPECT_EQ(content, "");
  EXPECT_EQ(arguments, R"({"city":"Bonn"})");
  // What only looks like a call is text, all of it.
  server.scheduler->text = "x <tool_call> is a tag";
  const Json plain = Body(*server.Handle("POST", "/v1/chat/completions", With(tools)))["choices"][0];
  EXPECT_EQ(plain["message"]["content"], server.scheduler->text);
  EXPECT_EQ(plain["finish_reason"], "stop");
}

TEST(OpenAiProtocol, WrongRequestsAreTheClients) {
  FakeServer server;
  for (const std::string more : {R"("temperature":3)",
                                 R"("temperature":"a")",
                                 R"("top_logprobs":2)",
                                 R"("stop":[""])",
                                 R"("stop":{})",
                                 R"("n":0)",
                                 R"("n":1.5)",
                                 R"("max_tokens":1e30)",
                                 R"("logit_bias":{"300":1})",
                                 R"("logit_bias":{"a":1})",
                                 R"("tool_choice":"required")",
                                 R"("tools":[{}])",
                                 R"("tools":[{"type":"function","function":{"name":"a b"}}])",
                                 R"("response_format":{"type":"xml"})",
                                 R"("response_format":{"type":"json_schema",)"
                                 R"("json_schema":{"name":"a","schema":{"type":"array","minItems":3,"maxItems":1}}})",
                                 R"("kv_budget":0)",
                                 R"("modalities":["text","audio"])",
                                 R"("recipe":"none such")",
                                 R"("id_slot":7)",
                                 R"("messages":[])"}) {
    const auto exchange = server.Handle("POST", "/v1/chat/completions", With(more));
    EXPECT_EQ(exchange->status, 400) << more;
    EXPECT_EQ(Body(*exchange)["error"]["type"], "invalid_request_error") << more;
  }
  EXPECT_TRUE(server.scheduler->requests.empty());
  EXPECT_EQ(server.Handle("POST", "/v1/chat/completions", With(R"("temperature":null,"n":null,"stop":null,"other":1)"))
                ->status,
            200);
}

TEST(OpenAiProtocol, ResultsOfToolsNameTheirCalls) {
  FakeServer server;
  const auto chat = [&](const std::string& message) {
    return server.Handle("POST", "/v1/chat/completions",
                         R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"id":"c",)"
                         R"("type":"function","function":{"name":"f","arguments":"{}"}}]},)" +
                             message + "]}");
  };
  EXPECT_EQ(chat(R"({"role":"tool","tool_call_id":"c","content":"5"})")->status, 200);
  const auto missing = chat(R"({"role":"tool","content":"5"})");
  EXPECT_EQ(missing->status, 400);
  EXPECT_EQ(Body(*missing)["error"]["param"], "messages[2].tool_call_id");
  EXPECT_EQ(chat(R"({"role":"tool","tool_call_id":5,"content":"5"})")->status, 400);
  EXPECT_EQ(chat(R"({"role":"function","name":"f","content":"5"})")->status, 200) << "OpenAI's old role has none";
  const auto ollama = server.Handle("POST", "/api/chat",
                                    R"({"model":"m","stream":false,"messages":[{"role":"user","content":"a"},)"
                                    R"({"role":"tool","tool_name":"f","content":"5"}]})");
  EXPECT_EQ(ollama->status, 200) << ollama->body;
  const auto responses = [&](const std::string& item) {
    return server.Handle("POST", "/v1/responses", R"({"input":[{"role":"user","content":"a"},)" + item + "]}")->status;
  };
  EXPECT_EQ(responses(R"({"type":"function_call","call_id":"c","name":"f","arguments":"{}"})"), 200);
  EXPECT_EQ(responses(R"({"type":"function_call","name":"f","arguments":"{}"})"), 400);
  EXPECT_EQ(responses(R"({"type":"function_call","call_id":"c","name":"f","arguments":"{}"},)"
                      R"({"type":"function_call_output","call_id":"c","output":"5"})"),
            200);
  EXPECT_EQ(responses(R"({"type":"function_call_output","output":"5"})"), 400);
  EXPECT_EQ(server.Handle("POST", "/v1/responses", R"({"input":"a","metadata":5})")->status, 400);
  for (const int tokens : {0, -1}) {
    EXPECT_EQ(
        server.Handle("POST", "/v1/responses", R"({"input":"a","max_output_tokens":)" + std::to_string(tokens) + "}")
            ->status,
        400);
  }
  const auto anthropic = [&](const std::string& block) {
    return server
        .Handle("POST", "/v1/messages",
                R"({"max_tokens":5,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[)" + block +
                    "]}]}")
        ->status;
  };
  EXPECT_EQ(anthropic(R"({"type":"tool_use","id":"c","name":"f","input":{}})"), 200);
  EXPECT_EQ(anthropic(R"({"type":"tool_use","name":"f","input":{}})"), 400);
  EXPECT_EQ(anthropic(""), 400) << "no blocks";
}

TEST(OpenAiProtocol, SamplersThatAreUnknownAreLeftOut) {
  FakeServer server;
  const auto sequence = [&](const std::string& samplers) {
    EXPECT_EQ(server.Handle("POST", "/v1/chat/completions", With(R"("samplers":)" + samplers))->status, 200);
    return server.scheduler->requests.back().sampling.sequence;
  };
  EXPECT_EQ(sequence(R"(["top_k","none such","temperature"])"), (std::vector<std::string>{"top_k", "temperature"}));
  EXPECT_EQ(sequence(R"(["min-p","temp","typ"])"), (std::vector<std::string>{"min_p", "temperature", "typ_p"}));
  EXPECT_EQ(sequence(R"("kt?p")"), (std::vector<std::string>{"top_k", "temperature", "top_p"}));
  EXPECT_TRUE(sequence("[]").empty());
  EXPECT_EQ(sequence("null"), SamplerOptions().sequence);
  for (const char* const wrong : {"5", "{}", "[5]", R"([["top_k"]])"}) {
    EXPECT_EQ(server.Handle("POST", "/v1/chat/completions", With(std::string(R"("samplers":)") + wrong))->status, 400);
  }
}

// Each would take a worker many seconds.
TEST(OpenAiProtocol, RequestsThatAreLongInWaysThatCost) {
  FakeServer server;
  const auto chat = [&](const std::string& more) {
    return server.Handle("POST", "/v1/chat/completions", With(more))->status;
  };
  const auto repeated = [](const std::string& part, int count) {
    std::string all = part;
    for (int i = 1; i < count; ++i) all += "," + part;
    return all;
  };
  EXPECT_EQ(chat(R"("dry_sequence_breakers":[)" + repeated("\"a\"", 64) + "]"), 200);
  EXPECT_EQ(chat(R"("dry_sequence_breakers":[)" + repeated("\"a\"", 65) + "]"), 400);
  EXPECT_EQ(chat(R"("logit_bias":[)" + repeated("[65,1]", 200) + "]"), 200);
  EXPECT_EQ(chat(R"("logit_bias":[)" + repeated("[65,1]", 2000) + "]"), 400);
  const std::string name(1001, 'a');
  EXPECT_EQ(chat("\"session\":\"" + name + "\""), 400);
  EXPECT_EQ(chat("\"prompt_cache_key\":\"" + name + "\""), 400);
  EXPECT_EQ(chat("\"model\":\"" + name + "\""), 400);
  EXPECT_EQ(chat("\"session\":\"" + name.substr(1) + "\""), 200);
  std::string members = "\"a0\":0";
  for (int i = 1; i < 4000; ++i) members += ",\"a" + std::to_string(i) + "\":0";
  EXPECT_EQ(chat(R"("unknown":[)" + repeated("{" + members + "}", 8) + "]"), 200);
  EXPECT_EQ(chat(R"("unknown":[)" + repeated("{" + members + "}", 9) + "]"), 400);
  const auto talk = [&](int count) {
    return server.Handle("POST", "/v1/chat/completions",
                         R"({"messages":[)" + repeated(R"({"role":"user","content":""})", count) + "]}");
  };
  EXPECT_EQ(talk(20)->status, 200);
  EXPECT_EQ(Body(*talk(5000))["error"]["type"], "exceed_context_size_error");
}

TEST(OpenAiProtocol, LogprobsFitIntoMemory) {
  FakeServer server;  // of 4,096 tokens
  const auto status = [&](const char* path, const std::string& body) {
    return server.Handle("POST", path, body)->status;
  };
  EXPECT_EQ(status("/completion", R"({"prompt":"a","n_probs":100})"), 200);
  EXPECT_EQ(status("/completion", R"({"prompt":"a","n_probs":1000})"), 400) << "4 million of them in one object";
  EXPECT_EQ(status("/completion", R"({"prompt":"a","n_probs":1000,"n_predict":50})"), 200);
  EXPECT_EQ(status("/completion", R"({"prompt":"a","n_probs":1000,"stream":true})"), 200);
  EXPECT_EQ(status("/v1/chat/completions", With(R"("logprobs":true,"top_logprobs":20)")), 200);
  const auto many = server.Handle("POST", "/v1/chat/completions", With(R"("logprobs":true,"top_logprobs":20,"n":16)"));
  EXPECT_EQ(many->status, 400);
  EXPECT_NE(many->body.find("or for a stream"), std::string::npos);
}

TEST(OpenAiProtocol, TheSchedulersErrors) {
  FakeServer server;
  server.scheduler->refusal = Error{ErrorCode::kBusy, "the queue is full"};
  auto exchange = server.Handle("POST", "/v1/chat/completions", With(""));
  EXPECT_EQ(exchange->status, 429);
  EXPECT_FALSE(exchange->Header("Retry-After").empty());
  server.context.draining = true;
  exchange = server.Handle("POST", "/v1/messages", With(R"("max_tokens":5)"));
  EXPECT_EQ(exchange->status, 503);
  EXPECT_EQ(Body(*exchange)["error"]["type"], "overloaded_error");
  server.scheduler->refusal.reset();
  server.scheduler->failure = Error{ErrorCode::kOutOfContext, "too long"};
  exchange = server.Handle("POST", "/v1/chat/completions", With(R"("stream":true)"));
  EXPECT_EQ(exchange->status, 400);
  EXPECT_EQ(Body(*exchange)["error"]["type"], "exceed_context_size_error");
  EXPECT_EQ(Body(*exchange)["error"]["n_ctx"], 4096);
  EXPECT_EQ(server.scheduler->cancelled, std::vector<server::RequestId>{1});
}

TEST(OpenAiProtocol, Responses) {
  FakeServer server;
  auto exchange = server.Handle("POST", "/v1/responses", R"({"input":"Hi","max_output_tokens":2,"stream":true})");
  const std::vector<Json> parts = Parts(exchange->body);
  for (size_t i = 0; i < parts.size(); ++i) EXPECT_EQ(parts[i]["sequence_number"], i);
  EXPECT_EQ(parts.front()["type"], "response.created");
  EXPECT_EQ(parts.back()["type"], "response.incomplete");
  EXPECT_EQ(parts.back()["response"]["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(parts.back()["response"]["output"][0]["content"][0]["text"], "He");
  server.Handle("POST", "/v1/responses", R"({"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}],
      "text":{"format":{"type":"json_schema","name":"a","schema":{"type":"integer"}}}})");
  EXPECT_NE(server.scheduler->requests.back().sampling.grammar.find("root ::="), std::string::npos);
  EXPECT_EQ(server.Handle("POST", "/v1/responses", R"({"input":"a","previous_response_id":"b"})")->status, 400);
}

TEST(OpenAiProtocol, LogprobsOfResponses) {
  FakeServer server;
  const std::string asks = R"({"input":"Hi","include":["message.output_text.logprobs"],"top_logprobs":2)";
  const Json part = Body(*server.Handle("POST", "/v1/responses", asks + "}"))["output"][0]["content"][0];
  ASSERT_EQ(part["logprobs"].size(), 5u);
  EXPECT_EQ(part["logprobs"][0]["token"], "H");
  EXPECT_EQ(part["logprobs"][0]["top_logprobs"].size(), 2u);
  size_t told = 0;
  for (const Json& event : Parts(server.Handle("POST", "/v1/responses", asks + R"(,"stream":true})")->body)) {
    if (event["type"] == "response.output_text.delta") told += event["logprobs"].size();
    if (event["type"] == "response.output_text.done") {
      EXPECT_EQ(event["logprobs"].size(), 5u);
    }
  }
  EXPECT_EQ(told, 5u);
  const Json plain = Body(*server.Handle("POST", "/v1/responses", R"({"input":"Hi"})"))["output"][0]["content"][0];
  EXPECT_TRUE(plain["logprobs"].empty()) << "control";
  EXPECT_EQ(server.Handle("POST", "/v1/responses", R"({"input":"Hi","include":"x"})")->status, 400);
}

TEST(OpenAiProtocol, AllowedTools) {
  FakeServer server;
  const std::string tools = R"("tools":[{"type":"function","function":{"name":"one"}},)"
                            R"({"type":"function","function":{"name":"two"}}],)";
  const auto send = [&](const std::string& choice) {
    return server.Handle("POST", "/v1/chat/completions", With(tools + R"("tool_choice":)" + choice));
  };
  const auto allowed = [](const char* mode, const char* name) {
    return fmt::format(R"({{"type":"allowed_tools","allowed_tools":{{"mode":"{}","tools":[)"
                       R"({{"type":"function","function":{{"name":"{}"}}}}]}}}})",
                       mode, name);
  };
  ASSERT_EQ(send(allowed("required", "two"))->status, 200);
  const std::string grammar = server.scheduler->requests.back().sampling.grammar;
  EXPECT_NE(grammar.find("two"), std::string::npos);
  EXPECT_EQ(grammar.find("\"one"), std::string::npos) << grammar;
  ASSERT_EQ(send(R"("required")")->status, 200);
  EXPECT_NE(server.scheduler->requests.back().sampling.grammar.find("one"), std::string::npos) << "control";
  EXPECT_EQ(send(allowed("auto", "two"))->status, 200);
  EXPECT_EQ(send(allowed("auto", "three"))->status, 400);
  EXPECT_EQ(send(allowed("never", "two"))->status, 400);
  EXPECT_EQ(send(R"({"type":"allowed_tools"})")->status, 400);
  const auto responses =
      server.Handle("POST", "/v1/responses",
                    R"({"input":"Hi","tools":[{"type":"function","name":"one"}],"tool_choice":)"
                    R"({"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"one"}]}})");
  EXPECT_EQ(responses->status, 200) << responses->body;
}

TEST(AnthropicProtocol, MessagesStreamsAndErrors) {
  FakeServer server;
  const std::string ask =
      R"({"model":"m","max_tokens":9,"system":[{"type":"text","text":"S","cache_control":{"type":"ephemeral"}}],
      "messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],"stop_sequences":["lo"])";
  const Json body = Body(*server.Handle("POST", "/v1/messages?beta=true", ask + "}"));
  EXPECT_EQ(body["stop_reason"], "stop_sequence");
  EXPECT_EQ(body["stop_sequence"], "lo");
  EXPECT_EQ(body["content"][0]["text"], "Hel");
  EXPECT_EQ(body["usage"]["cache_read_input_tokens"], 2);
  const std::vector<Json> parts = Parts(server.Handle("POST", "/v1/messages", ask + R"(,"stream":true})")->body);
  EXPECT_EQ(parts.front()["type"], "message_start");
  EXPECT_EQ(parts[parts.size() - 2]["delta"]["stop_sequence"], "lo");
  EXPECT_EQ(parts.back()["type"], "message_stop");
  for (const char* wrong :
       {R"({"messages":[{"role":"user","content":"a"}]})",
        R"({"max_tokens":0,"messages":[{"role":"user","content":"a"}]})", R"({"max_tokens":5,"messages":[]})",
        R"({"max_tokens":5,"messages":[{"role":"user","content":[{"type":"image"}]}]})"}) {
    const auto exchange = server.Handle("POST", "/v1/messages", wrong);
    EXPECT_EQ(exchange->status, 400) << wrong;
    EXPECT_EQ(Body(*exchange)["type"], "error");
  }
  EXPECT_EQ(Body(*server.Handle("POST", "/v1/messages/count_tokens", With("")))["input_tokens"], 22);
}

TEST(AnthropicProtocol, ToolResultsAndCalls) {
  FakeServer server;
  server.scheduler->text = "<tool_call>\n{\"name\": \"w\", \"arguments\": {}}\n</tool_call>";
  const Json body = Body(*server.Handle("POST", "/v1/messages",
                                        R"({"max_tokens":200,"tools":[{"name":"w","input_schema":{"type":"object"}}],
      "tool_choice":{"type":"any"},"messages":[{"role":"user","content":"a"},
      {"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"w","input":{"q":1}}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"42"}]}]})"));
  EXPECT_EQ(body["stop_reason"], "tool_use");
  EXPECT_EQ(body["content"][0]["name"], "w");
  const std::string prompt = TextOf(server, server.scheduler->requests.at(0).prompt);
  EXPECT_NE(prompt.find(R"({"name":"w","arguments":{"q":1}})"), std::string::npos);
  EXPECT_NE(prompt.find("<tool_response>\n42\n</tool_response>"), std::string::npos);
}

TEST(OllamaProtocol, GenerateAndChat) {
  FakeServer server;
  const std::vector<Json> lines = Parts(
      server.Handle("POST", "/api/generate", R"({"model":"m","prompt":"Hi","options":{"num_predict":4,"stop":["z"]}})")
          ->body);
  EXPECT_EQ(lines[0]["response"], "Hel");
  EXPECT_EQ(lines.back()["done_reason"], "length");
  EXPECT_EQ(lines.back()["prompt_eval_duration"], 500000000);
  EXPECT_TRUE(lines.back().contains("context"));
  const Json chat = Body(*server.Handle("POST", "/api/chat",
                                        R"({"model":"m","stream":false,"messages":[{"role":"user","content":"Hi"}]})"));
  EXPECT_EQ(chat["message"]["content"], "Hello");
  EXPECT_EQ(Body(*server.Handle("POST", "/api/generate", R"({"model":"m"})"))["done_reason"], "load");
  EXPECT_EQ(Body(*server.Handle("POST", "/api/generate", R"({"model":"m","keep_alive":0})"))["done_reason"], "unload");
  EXPECT_TRUE(Body(*server.Handle("POST", "/api/chat", "{}"))["error"].is_string());
  EXPECT_EQ(server.Handle("POST", "/api/generate", R"({"model":"m","prompt":"a","images":["AA"]})")->status, 400);
}

TEST(Routes, MethodsKeysAndNames) {
  FakeServer server;
  EXPECT_EQ(server.Handle("GET", "/nowhere")->status, 404);
  EXPECT_TRUE(server.Handle("GET", "/")->body.starts_with("<!doctype html>"));
  auto exchange = server.Handle("GET", "/v1/responses");
  EXPECT_EQ(exchange->status, 405);
  EXPECT_EQ(exchange->Header("Allow"), "POST, OPTIONS");
  EXPECT_EQ(server.Handle("GET", "/v1/models/bytes")->status, 200);
  EXPECT_EQ(Body(*server.Handle("GET", "/v1/models/other"))["error"]["code"], "model_not_found");
  EXPECT_EQ(server.Handle("POST", "/tokenize", "x", {{"Content-Encoding", "gzip"}})->status, 415);

  const server::Router guarded(server.catalog, server.front, {"one", "two"}, {});
  const auto status = [&](const std::string& path, std::vector<std::pair<std::string, std::string>> headers) {
    auto one = std::make_shared<FakeExchange>();
    guarded.Handle({.method = "GET", .path = path, .query = {}, .body = {}, .headers = std::move(headers)}, one);
    return one->status;
  };
  EXPECT_EQ(status("/health", {}), 200);
  EXPECT_EQ(status("/v1/models", {}), 401);
  EXPECT_EQ(status("/v1/models", {{"authorization", "Bearer two"}}), 200);
  EXPECT_EQ(status("/v1/models", {{"X-Api-Key", "one"}}), 200);
  EXPECT_EQ(status("/v1/models", {{"X-Api-Key", "oneone"}}), 401);
  EXPECT_EQ(status("/v1/models", {{"Authorization", "Bearer "}}), 401);
}

TEST(JsonReader, Bounds) {
  EXPECT_FALSE(server::ParseJsonObject(std::string(100000, '[')));
  EXPECT_FALSE(server::ParseJsonObject("{\"a\": 1e400}"));
  EXPECT_FALSE(server::ParseJsonObject("{\"a\": \"\xff\"}"));
  EXPECT_FALSE(server::ParseJsonObject("{\"a\": \"\\ud800\"}"));
  EXPECT_FALSE(server::ParseJsonObject("{\"a\": NaN}"));
  std::string wide = "{";
  for (int i = 0; i < 10000; ++i) wide += "\"" + std::to_string(i) + "\":1,";
  EXPECT_FALSE(server::ParseJsonObject(wide + "\"z\":1}"));
  EXPECT_TRUE(server::ParseJsonObject(" {\"a\": \"[[[[{\\\"\"} "));
}

TEST(OpenAiProtocol, EchoedPromptsAreScored) {
  FakeServer server;
  const auto exchange =
      server.Handle("POST", "/v1/completions", R"({"prompt":"abc","max_tokens":2,"echo":true,"logprobs":0})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  const Json choice = Body(*exchange)["choices"][0];
  EXPECT_EQ(choice["text"], "abcHe");
  const Json& values = choice["logprobs"]["token_logprobs"];
  const size_t prompt = server.scheduler->requests.at(0).prompt.size();
  ASSERT_EQ(values.size(), prompt + 2);
  EXPECT_TRUE(values[0].is_null());
  for (size_t i = 1; i < prompt; ++i) EXPECT_EQ(values[i], -1.5);
  EXPECT_EQ(values[prompt], -0.5);
}

TEST(Embeddings, InAllShapes) {
  FakeServer server;
  server.context.model.info.hidden_dim = 3;
  const Json vector = {0.6f, 0.0f, 0.8f};
  const auto post = [&](const char* path, const char* body) { return server.Handle("POST", path, body); };
  const Json openai = Body(*post("/v1/embeddings", R"({"input":["a","bc"]})"));
  EXPECT_EQ(openai["data"][1]["embedding"], vector);
  EXPECT_EQ(openai["data"][1]["index"], 1);
  EXPECT_EQ(openai["usage"]["total_tokens"], openai["usage"]["prompt_tokens"]);
  EXPECT_EQ(Body(*post("/v1/embeddings", R"({"input":"a","encoding_format":"base64"})"))["data"][0]["embedding"],
            "mpkZPwAAAADNzEw/");
  EXPECT_EQ(Body(*post("/v1/embeddings", R"({"input":"a","dimensions":2})"))["data"][0]["embedding"],
            Json::parse("[1.0,0.0]"));
  EXPECT_EQ(Body(*post("/api/embed", R"({"model":"bytes","input":"a"})"))["embeddings"], Json::array({vector}));
  EXPECT_EQ(Body(*post("/api/embeddings", R"({"model":"bytes","prompt":"a"})"))["embedding"], vector);
  EXPECT_EQ(Body(*post("/embedding", R"({"content":"a"})"))[0]["embedding"], Json::array({vector}));
  EXPECT_TRUE(server.scheduler->requests.back().refuse_eviction);
  for (const char* wrong : {"{}", R"({"input":[]})", R"({"input":[[]]})", R"({"input":{}})", R"({"input":[1,"a"]})",
                            R"({"input":"a","dimensions":4})", R"({"input":"a","encoding_format":"x"})"}) {
    EXPECT_EQ(post("/v1/embeddings", wrong)->status, 400) << wrong;
  }
}

TEST(OpenAiProtocol, TheClientMayBeginTheAnswer) {
  FakeServer server;
  const auto exchange = server.Handle(
      "POST", "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Well,"}],"max_tokens":1})");
  ASSERT_EQ(exchange->status, 200) << exchange->body;
  EXPECT_EQ(TextOf(server, server.scheduler->requests.at(0).prompt),
            "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell,");
}

}  // namespace
}  // namespace pith::testing
