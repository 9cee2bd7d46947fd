// What streams say beside their texts: timings and progress as llama-server has them, and signs of life.
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "server/api.h"
#include "server/json_reader.h"
#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::Json;

// Bodies of streams: path, what is asked.
const std::pair<const char*, std::string> kStreams[] = {
    {"/completion", R"("prompt":"ab")"},
    {"/v1/completions", R"("prompt":"ab")"},
    {"/v1/chat/completions", kHi},
    {"/v1/responses", R"("input":"Hi")"},
};

std::vector<Json> Stream(FakeServer& server, const char* path, const std::string& body) {
  return Parts(server.Handle("POST", path, "{" + body + R"(,"stream":true})")->body);
}

TEST(Streams, TimingsWithEachToken) {
  for (const auto& [path, body] : kStreams) {
    FakeServer server;
    // "Hello" in parts of three tokens and two.
    const auto timed = [&, path = path](const std::string& more) {
      std::vector<int> counts;
      for (const Json& part : Stream(server, path, more)) {
        const std::string text = part.dump();
        const bool is_part = text.find("\"Hel\"") != std::string::npos || text.find("\"lo\"") != std::string::npos;
        if (!is_part || !part.contains("timings")) continue;
        counts.push_back(part["timings"]["predicted_n"].get<int>());
        EXPECT_EQ(part["timings"]["cache_n"], 2) << path;
        EXPECT_GE(part["timings"]["prompt_ms"].get<double>(), 0) << path;
      }
      return counts;
    };
    EXPECT_EQ(timed(body + R"(,"timings_per_token":true)"), (std::vector<int>{3, 5})) << path;
    EXPECT_EQ(timed(body), std::vector<int>()) << "control, " << path;
  }
}

TEST(Streams, HowFarAPromptIsRead) {
  for (const auto& [path, body] : kStreams) {
    FakeServer server;
    server.scheduler->reads_in = {2, 3};
    std::vector<Json> progress;
    for (const Json& part : Stream(server, path, body + R"(,"return_progress":true)")) {
      if (part.contains("prompt_progress")) progress.push_back(part["prompt_progress"]);
    }
    ASSERT_EQ(progress.size(), 2u) << path;
    EXPECT_EQ(progress[0]["cache"], 2) << path;
    EXPECT_EQ(progress[0]["processed"], 2) << path;
    EXPECT_EQ(progress[1]["processed"], 3) << path;
    EXPECT_GE(progress[1]["total"], 3) << path;
    EXPECT_TRUE(progress[1]["time_ms"].is_number_integer()) << path;
    for (const Json& part : Stream(server, path, body)) EXPECT_FALSE(part.contains("prompt_progress")) << "control";
  }
}

// Behind a proxy a connection that says nothing for a minute is dead.
TEST(Streams, SilentOnesSayThatTheyAreAlive) {
  const std::pair<const char*, std::string> anthropic = {"/v1/messages", std::string(R"("max_tokens":9,)") + kHi};
  for (const auto& [path, body] : {kStreams[0], kStreams[1], kStreams[2], kStreams[3], anthropic}) {
    FakeServer server;
    server.scheduler->holds = true;
    const auto ask = [&, path = path, body = body](const std::string& more) {
      return server.Handle("POST", path, "{" + body + more + "}");
    };
    const auto exchange = ask(R"(,"stream":true,"sse_ping_interval":1)");
    EXPECT_EQ(exchange->num_answers, 0) << path;
    EXPECT_NEAR(exchange->later_seconds, 1, 1e-9) << path;
    std::this_thread::sleep_for(std::chrono::milliseconds(1010));
    std::exchange(exchange->later, nullptr)();
    EXPECT_EQ(exchange->stream_type, "text/event-stream; charset=utf-8") << path;
    const std::string ping = path == anthropic.first ? "event: ping" : ":\n\n";
    EXPECT_NE(exchange->body.find(ping), std::string::npos) << exchange->body;
    if (path == anthropic.first) {
      EXPECT_NE(exchange->body.find(R"("input_tokens":)"), std::string::npos);
      EXPECT_EQ(exchange->body.find(R"("input_tokens":0)"), std::string::npos) << "the prompt's, though it waits";
    }
    ASSERT_TRUE(exchange->later) << path;
    // What said something just now is not asked to again.
    const size_t size = exchange->body.size();
    std::exchange(exchange->later, nullptr)();
    EXPECT_EQ(exchange->body.size(), size) << path;
    server.scheduler->GoOn();
    EXPECT_TRUE(exchange->over()) << path;
    EXPECT_EQ(exchange->num_answers, 1) << path;
    // Not where it was forbidden, and not of what is no stream.
    EXPECT_FALSE(ask(R"(,"stream":true,"sse_ping_interval":-1)")->later) << path;
    EXPECT_FALSE(ask("")->later) << path;
    EXPECT_EQ(ask(R"(,"stream":true,"sse_ping_interval":"5")")->status, 400) << path;
  }
  FakeServer server;
  server.scheduler->holds = true;
  const auto lines = server.Handle("POST", "/api/generate", R"({"model":"m","prompt":"ab"})");
  ASSERT_TRUE(lines->later);
  lines->later();
  EXPECT_EQ(lines->body, "") << "lines of JSON alone";
}

TEST(Streams, AFailureBehindASignOfLife) {
  FakeServer server;
  server.scheduler->holds = true;
  const auto exchange = server.Handle("POST", "/v1/chat/completions", With(R"("stream":true,"sse_ping_interval":1)"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1010));
  exchange->later();
  server.scheduler->failure = Error{ErrorCode::kOutOfBudget, "no room"};
  server.scheduler->GoOn();
  EXPECT_EQ(exchange->num_answers, 1);
  EXPECT_NE(exchange->body.find("no room"), std::string::npos);
}

TEST(Requests, SeedsOf64Bits) {
  FakeServer server;
  const auto seed = [&](const std::string& text) {
    const auto exchange = server.Handle("POST", "/v1/chat/completions", With(R"("seed":)" + text));
    EXPECT_EQ(exchange->status, 200) << text << exchange->body;
    return server.scheduler->requests.back().sampling.seed;
  };
  EXPECT_EQ(seed("7"), 7u);
  EXPECT_EQ(seed("4294967294"), 4294967294u);
  for (const char* text : {"18446744073709551615", "9223372036854775808", "-9223372036854775808", "-2", "4294967303"}) {
    EXPECT_EQ(seed(text), seed(text)) << text;
    EXPECT_NE(seed(text), 7u) << "the upper half counts";
  }
  // One is drawn.
  for (const char* text : {"-1", "4294967295", "null"}) EXPECT_NE(seed(text), seed(text)) << text;
  for (const char* text : {"18446744073709551616", "1.5", "\"1\"", "[]"}) {
    const std::string body = With(std::string(R"("seed":)") + text);
    EXPECT_EQ(server.Handle("POST", "/v1/chat/completions", body)->status, 400) << text;
  }
}

TEST(Requests, WhetherTheAnswerGoesOn) {
  FakeServer server;
  const auto prompt = [&](const std::string& more) {
    const std::string messages =
        R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yo"}])" + more + "}";
    const auto exchange = server.Handle("POST", "/v1/chat/completions", messages);
    if (exchange->status != 200) return fmt::format("{}", exchange->status);
    return server::TextOf(server.context.model, server.scheduler->requests.back().prompt);
  };
  const std::string goes_on = prompt("");
  EXPECT_TRUE(goes_on.ends_with("Yo"));
  EXPECT_EQ(prompt(R"(,"continue_final_message":true,"add_generation_prompt":false)"), goes_on);
  EXPECT_EQ(prompt(R"(,"add_generation_prompt":true)"), goes_on) << "as in llama-server";
  const std::string closed = prompt(R"(,"continue_final_message":false)");
  EXPECT_NE(closed, goes_on);
  EXPECT_FALSE(closed.ends_with("Yo"));
  EXPECT_LT(prompt(R"(,"continue_final_message":false,"add_generation_prompt":false)").size(), closed.size());
  EXPECT_EQ(prompt(R"(,"continue_final_message":true,"add_generation_prompt":true)"), "400");
  EXPECT_EQ(prompt(R"(,"continue_final_message":1)"), "400");
  EXPECT_EQ(server.Handle("POST", "/v1/chat/completions", With(R"("continue_final_message":true)"))->status, 400);
}

TEST(Requests, TokensAreCounted) {
  FakeServer server;
  for (const char* path : {"/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"}) {
    EXPECT_GT(Body(*server.Handle("POST", path, With("")))["input_tokens"], 3) << path;
  }
  for (const char* path : {"/responses/input_tokens", "/v1/responses/input_tokens"}) {
    const Json few = Body(*server.Handle("POST", path, R"({"input":"Hi"})"));
    EXPECT_EQ(few["object"], "response.input_tokens");
    const Json more = Body(*server.Handle("POST", path, R"({"input":"Hi there"})"));
    EXPECT_EQ(more["input_tokens"].get<int>() - few["input_tokens"].get<int>(), 6) << path;
    EXPECT_EQ(server.Handle("POST", path, R"({"input":5})")->status, 400) << path;
  }
  EXPECT_TRUE(server.scheduler->requests.empty());
}

}  // namespace
}  // namespace pith::testing
