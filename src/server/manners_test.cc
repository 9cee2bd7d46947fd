// What each protocol takes and refuses, one row for each kind of value: a member put into a request that is right.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "server/json_reader.h"
#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::Json;

struct Row {
  const char* member;
  std::vector<const char*> taken, refused;
};

struct Protocol {
  const char* path;
  const char* body;  // that is taken
  std::vector<Row> rows;
};

const std::vector<Row> kOpenAiShared = {
    {"temperature", {"0", "2", "1e-9", "null"}, {"-0.1", "2.1", "1e300", "\"1\"", "true", "[1]"}},
    {"top_p", {"0", "1", "0.5"}, {"-0.1", "1.1", "\"1\"", "{}"}},
    {"logit_bias",
     {"{}", "{\"97\":100}", "{\"97\":-100}", "{\"97\":0}"},
     {"{\"97\":100.5}", "{\"97\":-101}", "{\"97\":1e9}", "{\"97\":\"1\"}", "{\"a\":1}", "{\"-1\":1}", "{\"999999\":1}",
      "{\"97\":true}", "5", "[[97,101]]", "[[97]]"}},
    {"seed", {"0", "-1", "18446744073709551615", "16.0", "null"}, {"1.5", "\"1\"", "true", "[]"}},
    {"stream", {"true", "false"}, {"1", "\"true\"", "{}"}},
    {"stream_options",
     {"null", R"({"include_usage":true},"stream":true)", R"({},"stream":true)"},
     {"{}", R"({"include_usage":true})", R"({"include_usage":true},"stream":false)", R"([],"stream":true)",
      R"({"include_usage":1},"stream":true)", R"({"include_obfuscation":1},"stream":true)"}},
    {"user", {"\"a\""}, {"5", "{}"}},
    {"metadata", {"{}", "{\"a\":\"b\"}"}, {"5", "[]", "\"a\""}},
    {"service_tier", {"\"auto\"", "\"flex\""}, {"\"none such\"", "5"}},
};

const std::vector<Row> kOpenAiText = {
    {"presence_penalty", {"-2", "2"}, {"-2.1", "2.1", "\"0\""}},
    {"frequency_penalty", {"-2", "2"}, {"-2.1", "2.1", "null,\"presence_penalty\":[]"}},
    {"n", {"1", "16", "null"}, {"0", "-1", "17", "1000000000000", "1.5", "\"1\"", "true"}},
    // llama-server's -1 is no limit.
    {"max_tokens", {"0", "1", "-1", "2147483647", "null"}, {"-2", "1.5", "\"5\"", "99999999999", "[]"}},
    // As many as vLLM and llama-server take; OpenAI's are four.
    {"stop", {"\"a\"", "[]", R"(["a","b","c","d","e"])", "null"}, {"\"\"", "[\"\"]", "5", "[5]", "[null]", "{}"}},
    {"response_format",
     {R"({"type":"text"})", R"({"type":"json_object"})",
      R"({"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":{"type":"object"}}})"},
     {"\"json\"", "{}", R"({"type":"xml"})", R"({"type":5})", R"({"type":"json_schema"})",
      R"({"type":"json_schema","json_schema":5})", R"({"type":"json_schema","json_schema":{"name":"a"}})",
      R"({"type":"json_schema","json_schema":{"name":5,"schema":{}}})",
      R"({"type":"json_schema","json_schema":{"name":"a","strict":"yes","schema":{}}})",
      R"({"type":"json_schema","json_schema":{"name":"a","schema":[]}})"}},
};

const std::vector<Row> kChatAlone = {
    {"max_completion_tokens", {"1", "null"}, {"0", "-1", "\"5\""}},
    {"logprobs", {"true", "false"}, {"1", "\"true\"", "5"}},
    {"top_logprobs",
     {R"(0,"logprobs":true)", R"(20,"logprobs":true)", "null"},
     {"5", R"(5,"logprobs":false)", R"(21,"logprobs":true)", R"(-1,"logprobs":true)", R"("5","logprobs":true)"}},
    {"tool_choice",
     {"\"none\"", "\"auto\"",
      R"("required",)"
      "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
      R"({"type":"function","function":{"name":"f"}},"tools":[{"type":"function","function":{"name":"f"}}])"},
     {"\"required\"", "\"maybe\"", "5", "[]", "{}", R"({"type":"function","function":{"name":"f"}})",
      R"({"type":"function","function":{"name":"g"}},"tools":[{"type":"function","function":{"name":"f"}}])",
      R"({"type":"none such","function":{"name":"f"}},"tools":[{"type":"function","function":{"name":"f"}}])",
      R"({"type":"custom","custom":{"name":"f"}},"tools":[{"type":"function","function":{"name":"f"}}])"}},
    {"tools",
     {"[]", "null"},
     {"{}", "[5]", "[{}]", R"([{"type":"web_search"}])", R"([{"type":"function","function":{"name":"a b"}}])",
      R"([{"type":"function","function":{"name":"f","parameters":5}}])",
      R"([{"type":"function","function":{"name":"f","strict":"yes"}}])",
      R"([{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}])"}},
    {"parallel_tool_calls", {"true", "false"}, {"1", "\"no\""}},
    {"functions", {"[]", "null"}, {R"([{"name":"f"}])"}},
    {"function_call", {"\"none\"", "\"auto\""}, {R"({"name":"f"})"}},
    {"modalities", {"[\"text\"]", "null"}, {R"(["text","audio"])", "[5]"}},
    {"audio", {"null"}, {R"({"voice":"a","format":"wav"})"}},
    {"web_search_options", {"{}", "null"}, {R"({"search_context_size":"low"})"}},
    {"reasoning_effort", {"\"low\"", "\"none\""}, {"\"none such\"", "5"}},
    {"verbosity", {"\"low\""}, {"\"loud\"", "5"}},
    {"store", {"true"}, {"\"yes\""}},
    {"messages",
     {R"([{"role":"developer","content":"a"},{"role":"user","content":[{"type":"text","text":"a"}]}])",
      R"([{"role":"user","content":"a"},{"role":"user","content":"b"}])",
      R"([{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"1","content":"5"}])",
      R"([{"role":"user","content":"a"},{"role":"function","name":"f","content":"5"}])"},
     {"null", "[]", "\"a\"", "[5]", "[{}]", R"([{"role":"king","content":"a"}])", R"([{"role":"user"}])",
      R"([{"role":"user","content":5}])", R"([{"role":"user","content":[]}])", R"([{"role":"user","content":[5]}])",
      R"([{"role":"user","content":[{"text":"a"}]}])", R"([{"role":"user","content":[{"type":"text"}]}])",
      R"([{"role":"user","content":[{"type":"none such"}]}])",
      R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}])",
      R"([{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}]}])",
      R"([{"role":"user","content":[{"type":"file","file":{"file_id":"a"}}]}])",
      R"([{"role":"user","content":"a","tool_calls":[]}])",
      R"([{"role":"user","content":"a"},{"role":"tool","tool_call_id":"1","content":"5"}])",
      R"([{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"2","content":"5"}])"}},
};

const std::vector<Row> kTextAlone = {
    // As many as vLLM takes; OpenAI's are five.
    {"logprobs", {"0", "5", "20", "true", "false", "null"}, {"21", "-1", "1.5", "\"5\"", "[]"}},
    {"best_of", {"1", "null", R"(3,"n":3)"}, {"2", "0", "-1", "\"1\"", R"(2,"n":3)"}},
    {"echo", {"true", "null"}, {"1", "\"true\""}},
    {"suffix", {"\"\"", "null"}, {"5", "[\"a\"]", "true"}},
    {"prompt",
     {"\"a\"", "[\"a\",\"b\"]", "[97,98]", "[[97],[98]]", "[\"a\",[97]]"},
     {"null", "5", "{}", "[]", "[[]]", "[-1]", "[999999]", "[1.5]", "[97,\"a\"]", "[null]", "[{}]", "[[[97]]]",
      "true"}},
};

const std::vector<Row> kResponsesAlone = {
    {"max_output_tokens", {"1", "null"}, {"0", "-1", "\"5\"", "1.5"}},
    {"top_logprobs", {"0", "20"}, {"21", "-1", "\"5\""}},
    {"truncation", {"\"auto\"", "\"disabled\"", "null"}, {"\"none such\"", "5"}},
    {"include",
     {"[]", R"(["message.output_text.logprobs","reasoning.encrypted_content"])"},
     {"\"a\"", "[5]", R"(["none such"])"}},
    {"reasoning",
     {"{}", R"({"effort":"low","summary":"auto"})"},
     {"5", R"({"effort":"none such"})", R"({"summary":5})"}},
    {"background", {"false"}, {"true", "\"yes\""}},
    {"max_tool_calls", {"1"}, {"0", "\"a\""}},
    {"tool_choice", {"\"auto\""}, {"\"required\"", R"({"type":"function","name":"f"})", R"({"type":"file_search"})"}},
    {"text",
     {R"({"format":{"type":"text"}})"},
     {"5", R"({"format":{"type":"xml"}})", R"({"format":5})", R"({"verbosity":"x"})"}},
    {"input",
     {"\"a\"", R"([{"role":"user","content":[{"type":"input_text","text":"a"}]}])",
      R"([{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},
          {"type":"function_call_output","call_id":"1","output":"5"}])"},
     {"null", "5", "[]", "[5]", R"([{"type":"none such"}])", R"([{"role":"king","content":"a"}])",
      R"([{"role":"user","content":[{"type":"input_image","image_url":"a"}]}])",
      R"([{"role":"user","content":"a"},{"type":"function_call_output","call_id":"1","output":"5"}])"}},
};

const std::vector<Row> kAnthropic = {
    {"max_tokens", {"1", "100"}, {"null", "0", "-1", "\"5\"", "1.5"}},
    {"temperature", {"0", "1", "null"}, {"-0.1", "1.1", "2", "\"1\""}},
    {"top_p", {"0", "1"}, {"-0.1", "1.1", "\"1\""}},
    {"top_k", {"0", "40"}, {"-1", "1.5", "\"5\""}},
    {"stop_sequences", {"[]", "[\"a\"]", "null"}, {"\"a\"", "[\"\"]", "[\" \\n\"]", "[5]"}},
    {"stream", {"true"}, {"1", "\"true\""}},
    {"system",
     {"\"a\"", "\"\"", R"([{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}])", "[]"},
     {"5", "{}", "[5]", R"([{"type":"image"}])", R"([{"type":"text"}])"}},
    {"metadata", {R"({"user_id":"a"})"}, {"5", "[]"}},
    {"service_tier", {"\"auto\""}, {"\"none such\"", "5"}},
    {"thinking",
     {R"({"type":"disabled"})", R"({"type":"adaptive"})",
      R"({"type":"enabled","budget_tokens":1024},"max_tokens":2000)"},
     {"5", "{}", R"({"type":"none such"})", R"({"type":"enabled"})",
      R"({"type":"enabled","budget_tokens":5},"max_tokens":2000)",
      R"({"type":"enabled","budget_tokens":2000},"max_tokens":2000)", R"({"type":"enabled","budget_tokens":"a"})"}},
    {"output_config", {R"({"effort":"low"})", "{}"}, {"5", R"({"effort":"x"})", R"({"format":{"type":"xml"}})"}},
    {"mcp_servers", {"[]"}, {R"([{"type":"url","url":"http://a","name":"a"}])"}},
    {"tools",
     {"[]", R"([{"name":"f","input_schema":{"type":"object"}}])"},
     {"{}", "[5]", R"([{"name":"f"}])", R"([{"type":"web_search_20250305","name":"web_search"}])"}},
    {"tool_choice",
     {R"({"type":"auto"})", R"({"type":"none"})"},
     {"\"auto\"", "{}", R"({"type":"any"})", R"({"type":"none such"})", R"({"type":"tool","name":"f"})"}},
    {"messages",
     {R"([{"role":"user","content":"a"},{"role":"user","content":"b"}])",
      R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])",
      R"([{"role":"user","content":"a"},{"role":"assistant","content":""}])",
      R"([{"role":"user","content":"a"},{"role":"system","content":"b"}])",
      R"([{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{}}]},
          {"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"5"}]}])"},
     {"null", "[]", "5", "[5]", R"([{"role":"king","content":"a"}])", R"([{"role":"user"}])",
      R"([{"role":"user","content":5}])", R"([{"role":"user","content":""}])", R"([{"role":"user","content":[]}])",
      R"([{"role":"user","content":[{"type":"text","text":""}]}])",
      R"([{"role":"user","content":[{"type":"none such"}]}])",
      R"([{"role":"user","content":[{"type":"image","source":{"type":"url","url":"http://a"}}]}])",
      R"([{"role":"user","content":[{"type":"document","source":{}}]}])",
      R"([{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"5"}]}])",
      R"([{"role":"user","content":[{"type":"tool_use","id":"1","name":"f","input":{}}]}])",
      R"([{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{}}]},
          {"role":"user","content":[{"type":"tool_result","tool_use_id":"2","content":"5"}]}])"}},
};

const std::vector<Row> kOllamaShared = {
    {"stream", {"true", "false", "null"}, {"1", "\"true\""}},
    {"options",
     {"{}", "null",
      R"({"temperature":3,"num_ctx":4096,"num_keep":4,"num_gpu":-1,"use_mmap":null,"seed":-1,"num_predict":-2})"},
     {"5", "[]", R"({"temperature":"hot"})", R"({"temperature":-1})", R"({"top_k":"a"})", R"({"num_predict":"5"})",
      R"({"num_predict":1.5})", R"({"num_ctx":"4096"})", R"({"num_ctx":-1})", R"({"num_keep":"4"})",
      R"({"num_gpu":1.5})", R"({"num_thread":[]})", R"({"use_mmap":"yes"})", R"({"seed":"a"})", R"({"stop":5})",
      R"({"penalize_newline":1})"}},
    {"format", {"\"\"", "\"json\"", "null", R"({"type":"object"})"}, {"\"xml\"", "5", "[]", R"({"type":"none such"})"}},
    {"keep_alive",
     {"0", "-1", "300", "1.5", "\"5m\"", "\"1h30m\"", "\"0\"", "\"-1s\"", "null"},
     {"\"\"", "\"soon\"", "\"5\"", "\"5 m\"", "true", "[]", "{}"}},
    {"think", {"true", "false", "\"low\"", "null"}, {"\"none such\"", "5", "[]"}},
    {"truncate", {"true"}, {"\"yes\""}},
    {"logprobs", {"true"}, {"1", "\"yes\""}},
    {"top_logprobs", {"0", "20"}, {"-1", "21", "\"5\""}},
    {"model", {"\"m\""}, {"null", "5"}},
};

const std::vector<Row> kGenerateAlone = {
    {"prompt", {"\"a\"", "\"\"", "null"}, {"5", "[\"a\"]"}},
    {"raw", {"true", "false"}, {"1", R"(true,"system":"a")", R"(true,"context":[97])"}},
    {"suffix", {"\"\"", "null"}, {"5"}},
    {"images", {"[]", "null"}, {"[\"AA\"]", "5"}},
    {"template", {"\"\""}, {"\"{{ .Prompt }}\"", "5"}},
    {"context", {"[]", "[97]"}, {"5", "[-1]", "[\"a\"]", "[999999]"}},
    {"system", {"\"a\""}, {"5"}},
};

const std::vector<Row> kOllamaChatAlone = {
    {"messages",
     {"[]", "null", R"([{"role":"user","content":"a","images":[]}])",
      R"([{"role":"user","content":"a"},{"role":"tool","tool_name":"f","content":"5"}])"},
     {"5", "{}", "[5]", R"([{"role":"king","content":"a"}])", R"([{"role":"user","content":5}])",
      R"([{"role":"user","content":"a","images":["AA"]}])"}},
    {"tools", {"[]"}, {"{}", "[5]", "[{}]"}},
};

const std::vector<Row> kLlama = {
    {"temperature", {"0", "5"}, {"-1", "\"1\""}},
    {"logit_bias", {"{\"97\":1000}", "{\"ab\":1}"}, {"{\"97\":1e7}", "5"}},
    {"n_predict", {"-1", "0", "5"}, {"-2", "\"5\"", "1.5"}},
    {"n_probs", {"0", "5"}, {"-1", "\"5\"", "1001"}},
    {"n_keep", {"-1", "5"}, {"-2", "\"5\""}},
    {"n_indent", {"0", "4"}, {"-1", "\"4\""}},
    {"t_max_prompt_ms", {"500"}, {"\"500\"", "1.5"}},
    {"t_max_predict_ms", {"500", "-1"}, {"-2", "\"500\""}},
    {"lora", {"[]"}, {"5"}},
    {"id_slot", {"-1", "1"}, {"-2", "99", "\"1\""}},
    {"stop", {"[\"a\"]"}, {"[5]", "[\"\"]"}},
    {"json_schema", {"{}"}, {"5", "[]"}},
};

const std::vector<Row> kEmbeddings = {
    {"encoding_format", {"\"float\"", "\"base64\""}, {"\"none such\"", "5"}},
    {"dimensions", {"1"}, {"0", "-1", "\"1\"", "99"}},
    {"user", {"\"a\""}, {"5"}},
    {"input", {"\"a\"", "[\"a\"]", "[97]", "[[97]]"}, {"null", "5", "[]", "[[]]", "[null]", "{}", "[-1]", "[[\"a\"]]"}},
};

const std::vector<Row> kOllamaEmbed = {
    {"model", {"\"m\""}, {"null", "5"}},
    {"input", {"\"a\"", "[\"a\"]", "\"\"", "[]"}, {"null", "5", "{}", "[[]]"}},
    {"truncate", {"true"}, {"\"yes\""}},
    {"dimensions", {"0", "1"}, {"-1", "\"1\"", "99"}},
    {"options", {"{}", R"({"num_ctx":4096})"}, {"5", R"({"num_ctx":"4096"})"}},
    {"keep_alive", {"\"5m\"", "-1"}, {"\"soon\"", "[]"}},
};

const std::vector<Row> kOllamaEmbeddings = {
    {"prompt", {"\"a\""}, {"null", "5", "[\"a\"]"}},
    {"options", {"{}"}, {"5", R"({"num_thread":"4"})"}},
    {"keep_alive", {"\"5m\""}, {"\"soon\""}},
};

const std::vector<Row> kLlamaEmbedding = {
    {"content", {"\"a\"", "[97]", "[\"a\",\"b\"]"}, {"5", "[]", "{}"}},
    {"embd_normalize", {"2", "-1"}, {"\"2\"", "1.5"}},
};

std::vector<Row> Together(std::initializer_list<std::vector<Row>> lists) {
  std::vector<Row> all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

const std::vector<Protocol> kProtocols = {
    {"/v1/chat/completions", R"("messages":[{"role":"user","content":"Hi"}])",
     Together({kOpenAiShared, kOpenAiText, kChatAlone})},
    {"/v1/completions", R"("prompt":"a")", Together({kOpenAiShared, kOpenAiText, kTextAlone})},
    {"/v1/responses", R"("input":"a")", Together({kOpenAiShared, kResponsesAlone})},
    {"/v1/messages", R"("messages":[{"role":"user","content":"Hi"}],"max_tokens":9)", kAnthropic},
    {"/api/generate", R"("prompt":"a","model":"m")", Together({kOllamaShared, kGenerateAlone})},
    {"/api/chat", R"("messages":[{"role":"user","content":"Hi"}],"model":"m")",
     Together({kOllamaShared, kOllamaChatAlone})},
    {"/completion", R"("prompt":"a")", kLlama},
    {"/v1/embeddings", R"("input":"a")", kEmbeddings},
    {"/api/embed", R"("input":"a","model":"m")", kOllamaEmbed},
    {"/api/embeddings", R"("prompt":"a","model":"m")", kOllamaEmbeddings},
    {"/embedding", R"("content":"a")", kLlamaEmbedding},
};

// What is given last holds.
std::string Body(const Protocol& protocol, const char* member, const char* value) {
  return std::string("{") + protocol.body + ",\"" + member + "\":" + value + "}";
}

TEST(Manners, WhatEachProtocolTakesAndRefuses) {
  FakeServer server;
  server.context.model.info.hidden_dim = 3;
  int num_rows = 0;
  for (const Protocol& protocol : kProtocols) {
    for (const Row& row : protocol.rows) {
      ++num_rows;
      for (const char* value : row.taken) {
        const auto exchange = server.Handle("POST", protocol.path, Body(protocol, row.member, value));
        EXPECT_EQ(exchange->status, 200) << protocol.path << " " << row.member << " " << value << ": "
                                         << exchange->body;
      }
      for (const char* value : row.refused) {
        const auto exchange = server.Handle("POST", protocol.path, Body(protocol, row.member, value));
        EXPECT_EQ(exchange->status, 400) << protocol.path << " " << row.member << " " << value;
        EXPECT_TRUE(Json::parse(exchange->body).contains("error")) << exchange->body;
      }
    }
  }
  EXPECT_GT(num_rows, 100);
}

}  // namespace
}  // namespace pith::testing
