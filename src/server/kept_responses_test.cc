// Responses that are kept: their bounds, who finds them, and /v1/responses with previous_response_id.
#include "server/kept_responses.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server/server_test_util.h"

namespace pith::testing {
namespace {

using server::Json;
using server::KeptResponse;
using server::KeptResponses;

KeptResponse Made(const std::string& id, size_t num_bytes = 10, const std::string& tenant = "") {
  return {.id = id, .tenant = tenant, .body = std::string(num_bytes, 'b'), .items = "[]", .item_ids = {"item_" + id}};
}

TEST(KeptResponses, TheOldestGoFirst) {
  KeptResponses by_number({.most = 2, .bytes = 1 << 20});
  for (const char* id : {"a", "b", "c"}) EXPECT_TRUE(by_number.Keep(Made(id)));
  EXPECT_EQ(by_number.Find("", "a"), nullptr);
  EXPECT_EQ(by_number.FindByItem("", "item_a"), nullptr);
  EXPECT_NE(by_number.Find("", "b"), nullptr);
  EXPECT_NE(by_number.FindByItem("", "item_b"), nullptr);
  EXPECT_EQ(by_number.size(), 2U);

  const size_t one = Made("a", 1000).bytes();
  KeptResponses by_bytes({.most = 100, .bytes = 3 * one});
  for (const char* id : {"a", "b", "c", "d"}) EXPECT_TRUE(by_bytes.Keep(Made(id, 1000)));
  EXPECT_EQ(by_bytes.bytes(), 3 * one);
  EXPECT_EQ(by_bytes.Find("", "a"), nullptr);
  EXPECT_TRUE(by_bytes.Keep(Made("e", 1001))) << "of which two make room";
  EXPECT_EQ(by_bytes.Find("", "c"), nullptr);
  EXPECT_NE(by_bytes.Find("", "d"), nullptr);
  EXPECT_FALSE(by_bytes.Keep(Made("f", 3 * one))) << "larger than all together";
  EXPECT_EQ(by_bytes.size(), 2U) << "for which nobody went";
  for (const char* id : {"d", "e"}) EXPECT_TRUE(by_bytes.Remove("", id));
  EXPECT_EQ(by_bytes.bytes(), 0U);

  KeptResponses none({.most = 0, .bytes = 1 << 20});
  EXPECT_FALSE(none.keeps_any());
  EXPECT_FALSE(none.Keep(Made("a")));
}

TEST(KeptResponses, TenantsFindTheirOwnAlone) {
  KeptResponses kept({.most = 10, .bytes = 1 << 20});
  ASSERT_TRUE(kept.Keep(Made("a", 10, "0")));
  EXPECT_EQ(kept.Find("1", "a"), nullptr);
  EXPECT_EQ(kept.Find("", "a"), nullptr);
  EXPECT_EQ(kept.FindByItem("1", "item_a"), nullptr);
  EXPECT_FALSE(kept.Remove("1", "a"));
  EXPECT_NE(kept.Find("0", "a"), nullptr) << "control";
  EXPECT_TRUE(kept.Remove("0", "a"));
  EXPECT_FALSE(kept.Remove("0", "a"));
}

TEST(KeptResponses, AnItemOfTheSameNameIsTheNewest) {
  KeptResponses kept({.most = 10, .bytes = 1 << 20});
  KeptResponse first = Made("a"), second = Made("b");
  first.item_ids = second.item_ids = {"same"};
  ASSERT_TRUE(kept.Keep(first) && kept.Keep(second));
  EXPECT_EQ(kept.FindByItem("", "same")->id, "b");
  EXPECT_TRUE(kept.Remove("", "a"));
  EXPECT_EQ(kept.FindByItem("", "same")->id, "b") << "the older one's end leaves it";
}

TEST(KeptResponses, ManyThreads) {
  KeptResponses kept({.most = 50, .bytes = 1 << 20});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&kept, t] {
      for (int i = 0; i < 300; ++i) {
        const std::string id = fmt::format("{}_{}", t, i);
        kept.Keep(Made(id));
        if (i % 3 == 0) kept.Remove("", id);
        if (const auto other = kept.FindByItem("", fmt::format("item_{}_{}", (t + 1) % 4, i))) {
          EXPECT_EQ(other->item_ids.front(), fmt::format("item_{}_{}", (t + 1) % 4, i));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(kept.size(), 50U);
  EXPECT_EQ(kept.bytes() > 0, kept.size() > 0);
}

Json Post(FakeServer& server, const std::string& body) {
  const auto exchange = server.Handle("POST", "/v1/responses", body);
  EXPECT_EQ(exchange->status, 200) << exchange->body;
  return Body(*exchange);
}

std::string IdOf(const Json& response) { return response["id"].get<std::string>(); }

// The prompt of the last request, whose tokens are bytes.
std::string LastPrompt(const FakeServer& server) {
  const std::vector<int32_t>& tokens = server.scheduler->requests.back().prompt;
  std::string text;
  for (const int32_t token : tokens) {
    if (token < 256) text += static_cast<char>(token);
  }
  return text;
}

TEST(OpenAiResponses, GoOnFromAnEarlierOne) {
  FakeServer server;
  const Json first = Post(server, R"({"input":"One","instructions":"Be brief"})");
  EXPECT_EQ(first["store"], true);
  EXPECT_TRUE(first["previous_response_id"].is_null());
  server.scheduler->text = "World";
  const Json second = Post(server, fmt::format(R"({{"input":"Two","previous_response_id":"{}"}})", IdOf(first)));
  EXPECT_EQ(second["previous_response_id"], first["id"]);
  const std::string prompt = LastPrompt(server);
  // What a client sends who keeps the conversation itself.
  Post(server, R"({"input":[{"role":"user","content":"One"},{"role":"assistant","content":"Hello"},
                            {"role":"user","content":"Two"}],"store":false})");
  EXPECT_EQ(prompt, LastPrompt(server));
  EXPECT_EQ(prompt.find("brief"), std::string::npos) << "instructions are not carried over";

  const Json third = Post(server, fmt::format(R"({{"input":"Three","previous_response_id":"{}"}})", IdOf(second)));
  for (const char* part : {"One", "Hello", "Two", "World", "Three"})
    EXPECT_NE(LastPrompt(server).find(part), std::string::npos) << part;
  // Another branch.
  Post(server, fmt::format(R"({{"input":"Other","previous_response_id":"{}"}})", IdOf(first)));
  EXPECT_EQ(LastPrompt(server).find("Two"), std::string::npos);
}

TEST(OpenAiResponses, ArePromptsOfStreamsToo) {
  FakeServer server;
  auto exchange = server.Handle("POST", "/v1/responses", R"({"input":"One","stream":true})");
  const std::vector<Json> parts = Parts(exchange->body);
  const Json& last = parts.back()["response"];
  EXPECT_EQ(parts.front()["response"]["id"], last["id"]);
  EXPECT_EQ(parts.front()["response"]["store"], true);
  EXPECT_EQ(Body(*server.Handle("GET", "/v1/responses/" + IdOf(last))), last);
  exchange = server.Handle("POST", "/v1/responses",
                           fmt::format(R"({{"input":"Two","stream":true,"previous_response_id":"{}"}})", IdOf(last)));
  EXPECT_EQ(Parts(exchange->body).front()["response"]["previous_response_id"], last["id"]);
  EXPECT_NE(LastPrompt(server).find("One"), std::string::npos);
  const auto count = server.Handle("POST", "/v1/responses/input_tokens",
                                   fmt::format(R"({{"input":"Two","previous_response_id":"{}"}})", IdOf(last)));
  EXPECT_EQ(Body(*count)["input_tokens"], server.scheduler->requests.back().prompt.size());
}

TEST(OpenAiResponses, AreFoundAndForgotten) {
  FakeServer server;
  const Json made = Post(server, R"({"input":"One","metadata":{"a":"b"}})");
  const std::string path = "/v1/responses/" + IdOf(made);
  EXPECT_EQ(Body(*server.Handle("GET", path)), made);
  EXPECT_EQ(Body(*server.Handle("GET", "/responses/" + IdOf(made))), made);
  EXPECT_EQ(server.Handle("GET", path + "?stream=true")->status, 400);
  EXPECT_EQ(server.Handle("POST", path + "/cancel")->status, 400);
  const auto wrong = server.Handle("PUT", path);
  EXPECT_EQ(wrong->status, 405);
  EXPECT_EQ(wrong->Header("Allow"), "GET, HEAD, DELETE, OPTIONS");
  const Json deleted = Body(*server.Handle("DELETE", path));
  EXPECT_EQ(deleted["deleted"], true);
  EXPECT_EQ(deleted["id"], made["id"]);
  for (const auto& [method, end] :
       {std::pair("GET", ""), {"DELETE", ""}, {"GET", "/input_items"}, {"POST", "/cancel"}}) {
    const auto exchange = server.Handle(method, path + end);
    EXPECT_EQ(exchange->status, 404) << method << end;
    EXPECT_EQ(Body(*exchange)["error"]["type"], "invalid_request_error");
    EXPECT_EQ(Body(*exchange)["error"]["message"], fmt::format("Response with id '{}' not found.", IdOf(made)));
  }
  const auto exchange =
      server.Handle("POST", "/v1/responses", fmt::format(R"({{"input":"a","previous_response_id":"{}"}})", IdOf(made)));
  EXPECT_EQ(exchange->status, 400);
  EXPECT_EQ(Body(*exchange)["error"]["code"], "previous_response_not_found");
  EXPECT_EQ(Body(*exchange)["error"]["param"], "previous_response_id");
  EXPECT_EQ(server.Handle("POST", "/v1/responses", R"({"input":"a","previous_response_id":7})")->status, 400);
  EXPECT_EQ(server.Handle("POST", "/v1/responses", R"({"input":"a","store":"yes"})")->status, 400);
  EXPECT_EQ(server.Handle("GET", "/v1/responses/input_tokens")->status, 405) << "another path, not a name";
}

TEST(OpenAiResponses, ThatAreNotStoredAreNotFound) {
  FakeServer server;
  const Json made = Post(server, R"({"input":"One","store":false})");
  EXPECT_EQ(made["store"], false);
  EXPECT_EQ(server.Handle("GET", "/v1/responses/" + IdOf(made))->status, 404);
  // The test's server keeps three, and 64 KiB.
  const Json first = Post(server, R"({"input":"One","store":null})");
  EXPECT_EQ(server.Handle("GET", "/v1/responses/" + IdOf(first))->status, 200) << "control";
  for (int i = 0; i < 3; ++i) Post(server, R"({"input":"More"})");
  EXPECT_EQ(server.Handle("GET", "/v1/responses/" + IdOf(first))->status, 404);
  const Json large =
      Post(server, fmt::format(R"({{"input":"a","metadata":{{"a":"{}"}}}})", std::string(size_t{64} << 10, 'x')));
  EXPECT_EQ(large["store"], false) << "it says that it could not be kept";
  EXPECT_EQ(server.Handle("GET", "/v1/responses/" + IdOf(large))->status, 404);
}

TEST(OpenAiResponses, OfOtherKeysAreNotFound) {
  FakeServer server;
  server::Router router(server.catalog, server.front, {"one", "two"}, {});
  const auto handle = [&router](const char* method, const std::string& path, const std::string& key,
                                const std::string& body = "") {
    auto exchange = std::make_shared<FakeExchange>();
    router.Handle(
        {.method = method, .path = path, .query = {}, .body = body, .headers = {{"Authorization", "Bearer " + key}}},
        exchange);
    return exchange;
  };
  const Json made = Body(*handle("POST", "/v1/responses", "one", R"({"input":"secret"})"));
  const std::string path = "/v1/responses/" + IdOf(made);
  EXPECT_EQ(handle("GET", path, "two")->status, 404);
  EXPECT_EQ(handle("GET", path + "/input_items", "two")->status, 404);
  EXPECT_EQ(handle("DELETE", path, "two")->status, 404);
  EXPECT_EQ(handle("GET", path, "")->status, 401);
  const std::string next = fmt::format(R"({{"input":"a","previous_response_id":"{}"}})", IdOf(made));
  EXPECT_EQ(handle("POST", "/v1/responses", "two", next)->status, 400);
  const std::string item =
      fmt::format(R"({{"input":[{{"type":"item_reference","id":"{}"}}]}})", made["output"][0]["id"].get<std::string>());
  EXPECT_EQ(handle("POST", "/v1/responses", "two", item)->status, 400);
  for (const std::string& body : {next, item}) EXPECT_EQ(handle("POST", "/v1/responses", "one", body)->status, 200);
  EXPECT_EQ(handle("GET", path, "one")->status, 200) << "control";
}

TEST(OpenAiResponses, ListTheirInput) {
  FakeServer server;
  const Json first = Post(server, R"({"input":[{"role":"user","content":"One"},
      {"type":"message","id":"mine","role":"assistant","content":"Two"},
      {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
      {"type":"function_call_output","call_id":"c","output":"4"},{"role":"user","content":"Three"}]})");
  const std::string path = "/v1/responses/" + IdOf(first) + "/input_items";
  const Json list = Body(*server.Handle("GET", path + "?order=asc"));
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 5U);
  EXPECT_EQ(list["has_more"], false);
  EXPECT_EQ(list["first_id"], list["data"][0]["id"]);
  EXPECT_EQ(list["last_id"], list["data"][4]["id"]);
  EXPECT_EQ(list["data"][0]["content"][0], Json({{"type", "input_text"}, {"text", "One"}}));
  EXPECT_EQ(list["data"][1]["id"], "mine");
  EXPECT_EQ(list["data"][1]["content"][0]["type"], "output_text");
  EXPECT_EQ(list["data"][2]["name"], "f");
  std::set<std::string> ids;
  for (const Json& item : list["data"]) {
    EXPECT_EQ(item["status"], "completed");
    ids.insert(IdOf(item));
  }
  EXPECT_EQ(ids.size(), 5U);
  // By pages, the newest first.
  std::vector<std::string> seen;
  std::string after;
  for (bool more = true; more;) {
    const Json page = Body(*server.Handle("GET", path + "?limit=2" + after));
    for (const Json& item : page["data"]) seen.push_back(IdOf(item));
    more = page["has_more"].get<bool>();
    after = "&after=" + page["last_id"].get<std::string>();
    ASSERT_LE(seen.size(), 5U);
  }
  ASSERT_EQ(seen.size(), 5U);
  EXPECT_EQ(seen.front(), IdOf(list["data"][4]));
  EXPECT_EQ(std::set(seen.begin(), seen.end()), ids);
  for (const char* wrong : {"?limit=0", "?limit=101", "?limit=a", "?order=up", "?after=nobody"})
    EXPECT_EQ(server.Handle("GET", path + wrong)->status, 400) << wrong;

  const Json second = Post(server, fmt::format(R"({{"input":"Four","previous_response_id":"{}"}})", IdOf(first)));
  const Json all = Body(*server.Handle("GET", "/v1/responses/" + IdOf(second) + "/input_items?order=asc"));
  ASSERT_EQ(all["data"].size(), 7U) << "with what the earlier one answered, and its output";
  EXPECT_EQ(all["data"][5]["id"], first["output"][0]["id"]);
}

TEST(OpenAiResponses, ItemsStandForThemselves) {
  FakeServer server;
  const Json first = Post(server, R"({"input":[{"id":"question","role":"user","content":"One"}]})");
  Post(server, fmt::format(R"({{"input":[{{"type":"item_reference","id":"question"}},
      {{"type":"item_reference","id":"{}"}},{{"role":"user","content":"Two"}}]}})",
                           first["output"][0]["id"].get<std::string>()));
  const std::string by_reference = LastPrompt(server);
  Post(server, fmt::format(R"({{"input":"Two","previous_response_id":"{}"}})", IdOf(first)));
  EXPECT_EQ(by_reference, LastPrompt(server));
  for (const char* wrong : {R"("id":"nobody")", R"("id":5)", R"("a":1)"})
    EXPECT_EQ(
        server.Handle("POST", "/v1/responses", fmt::format(R"({{"input":[{{"type":"item_reference",{}}}]}})", wrong))
            ->status,
        400);
}

TEST(OpenAiResponses, CallsAndTheirResultsAreCarriedOver) {
  FakeServer server;
  server.scheduler->text = R"(<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>)";
  const std::string tools = R"("tools":[{"type":"function","name":"f","parameters":{"type":"object"}}])";
  const Json first = Post(server, R"({"input":"Call",)" + tools + "}");
  ASSERT_EQ(first["output"][0]["type"], "function_call") << first.dump();
  server.scheduler->text = "Done";
  Post(server, fmt::format(R"({{"input":[{{"type":"function_call_output","call_id":"{}","output":"42"}}],
      "previous_response_id":"{}",{}}})",
                           first["output"][0]["call_id"].get<std::string>(), IdOf(first), tools));
  const std::string prompt = LastPrompt(server);
  EXPECT_NE(prompt.find(R"({"name":"f","arguments":{"a":1}})"), std::string::npos) << prompt;
  EXPECT_NE(prompt.find("42"), std::string::npos) << prompt;
}

}  // namespace
}  // namespace pith::testing
