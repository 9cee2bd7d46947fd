// What all protocols share: the model that is served, the scheduler, and errors in each protocol's shape.
#ifndef PITH_SERVER_PROTOCOL_H_
#define PITH_SERVER_PROTOCOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "host/fim_tokens.h"
#include "host/model.h"
#include "host/sampler.h"
#include "server/http_server.h"
#include "server/json_reader.h"
#include "server/scheduler.h"
#include "server/text_memory.h"
#include "server/tools.h"
#include "server/topic_memory.h"
#include "session/text_model.h"

namespace pith::server {

// One model as requests see it. Read by many threads.
struct ServedModel {
  std::string id;  // in "model"
  std::shared_ptr<const TextModel> text;
  ModelInfo info;
  std::string chat_template;  // its text or name
  std::string bos, eos;       // texts of these tokens; empty if there is none
  FimTokens fim;
  int num_ctx = 0;            // of one sequence
  size_t most_token_bytes = 0;  // of a text, that a token stands for; 0: nobody knows
  int num_slots = 1;
  int ping_seconds = 30;    // of a stream that is silent for so long; -1: none
  SamplerOptions sampling;  // where a request says nothing
  Recipe recipe;            // of the server
  int64_t created = 0;      // unix time
  bool generates = true;    // false: it gives embeddings alone
  std::shared_ptr<TopicMemory> topics;
  // "64MiB", or "20%" of the full f16 cache of the context, as bytes.
  std::function<Result<size_t>(const std::string&)> parse_budget;

  bool drops_nothing() const { return recipe.text.empty() || recipe.text == "full"; }
};

struct ServerContext {
  ServedModel model;
  std::shared_ptr<Scheduler> scheduler;
  TextMemory memory;
  bool saves_slots = false;
  std::atomic<bool> draining{false};
};

enum class Dialect { kOpenAi, kAnthropic, kOllama };
Dialect DialectOf(std::string_view path);

// {"error": {message, type, param, code}}, {"type": "error", "error": {type, message}} or {"error": message}. `extra`:
// further members of OpenAI's inner object. 429 and 503 get Retry-After.
HttpResponse ErrorResponse(Dialect dialect, int status, const std::string& message);
HttpResponse ErrorResponse(Dialect dialect, int status, const std::string& type, const std::string& message,
                           const Json& extra);
// The same without the HTTP around it, for streams.
Json ErrorJson(Dialect dialect, int status, const std::string& type, const std::string& message);
// A Result's error: kInvalidArgument and what cannot be done are the client's (400), kBusy is 429, or 503 while the
// server drains.
HttpResponse ErrorResponse(Dialect dialect, const Error& error, bool draining);
int StatusOf(const Error& error, bool draining);

HttpResponse JsonResponse(const Json& body);

// Seconds since 1970; and as "2026-01-02T03:04:05.678901234Z".
int64_t UnixTime();
std::string TimestampNow();
std::string TimestampOf(int64_t unix_seconds);

}  // namespace pith::server

#endif  // PITH_SERVER_PROTOCOL_H_
