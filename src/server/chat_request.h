// The one request that all protocols become: messages or prompts, how to sample, what the answer must be.
#ifndef PITH_SERVER_CHAT_REQUEST_H_
#define PITH_SERVER_CHAT_REQUEST_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"
#include "server/json_reader.h"
#include "server/protocol.h"
#include "server/scheduler.h"
#include "server/tools.h"

namespace pith::server {

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::vector<ToolSpec> tools;
  ToolChoice tool_choice = ToolChoice::kAuto;
  std::string named_tool;  // with kRequired: this one
  bool parallel_calls = true;
  bool pin = true;     // the system messages and tools are never dropped
  std::string schema;  // of the answer; empty: none. "{}": any JSON
  bool stream = false;
  bool include_usage = false;
  bool opens_answer = true;    // false: the prompt ends with the last message
  bool continues_last = true;  // where that is the assistant's
  // llama-server's, of streams: timings with each token, and how far the prompt is read.
  bool timings_per_token = false;
  bool returns_progress = false;
  int ping_seconds = -1;  // as ServedModel's
  std::string session;
  bool is_evict_off = false;  // the client wants no eviction: what does not fit is an error

  // What goes to the scheduler, once for each prompt: all but the prompt itself is filled by the protocol.
  std::vector<std::vector<int32_t>> prompts;
  std::string prompt_text;  // of messages, as the template wrote them
  size_t least_tokens = 0;  // of a text that is too long whatever its tokens are: it has none in `prompts`
  Request base;

  bool uses_tools() const { return !tools.empty() && tool_choice != ToolChoice::kNone; }
};

// A request with the server's defaults, of a client that `tenant` stands for.
ChatRequest NewRequest(const ServedModel& model, std::string tenant);

// Members that OpenAI's and llama-server's requests share: temperature, top_p, ..., seed, logit_bias, grammar.
// kOpenAi: temperatures up to 2, biases up to 100 and of tokens by their numbers alone. kAnthropic: temperatures up
// to 1.
enum class SamplingRules { kOpenAi, kAnthropic, kLlama };
void ReadSampling(JsonReader& reader, const ServedModel& model, SamplingRules rules, SamplerOptions& sampling);
// llama-server's n_cmpl (and n), t_max_predict_ms, and what it tells within streams: of all paths on which its other
// members are read.
void ReadLlamaLimits(JsonReader& reader, int most_choices, ChatRequest& request);
// The last two alone, of protocols without choices.
void ReadStreaming(JsonReader& reader, ChatRequest& request);
// stop, in all its forms.
void ReadStops(JsonReader& reader, const char* name, std::vector<std::string>& stops);
// Our own members and those of the cache: kv_budget, recipe, session, pin, prompt_cache_key, cache_prompt, id_slot.
Status ReadOwnFields(JsonReader& reader, const ServedModel& model, ChatRequest& request);
// OpenAI's response_format, and Responses' text.format, whose schema stands one level higher.
Status ReadFormat(const Json& format, const std::string& path, std::string& schema);

// Messages become prompts, tools and schemas become a grammar. On a worker thread: templates and tokenising take time.
// kInvalidArgument, kUnsupported; kOutOfContext, with the sentence that names the prompt's tokens and the limit.
Status Prepare(ServerContext& context, ChatRequest& request);
// A text's tokens, or kOutOfContext where it has more bytes than any tokens that fit stand for (of tokenizers of which
// that is not known, more than a KiB for each token of the context): nobody waits for tokens that nobody reads.
Result<std::vector<int32_t>> TokenizePrompt(const ServedModel& model, ChatRequest& request, std::string_view text,
                                            bool begins);
// Where no context bounds a text: kInvalidArgument where it is longer than is tokenised at once.
Status CheckTextLength(size_t num_bytes);
// The first check alone.
Status CheckTextBytes(const ServedModel& model, ChatRequest& request, size_t num_bytes);
// The messages as the template writes them.
Result<std::string> RenderPrompt(const ServedModel& model, const ChatRequest& request, bool opens_answer);
// kOutOfContext where a prompt leaves no room to answer.
Status CheckLength(const ServedModel& model, size_t num_tokens);

}  // namespace pith::server

#endif  // PITH_SERVER_CHAT_REQUEST_H_
