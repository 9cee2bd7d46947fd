// The protocols, one file each: a request's JSON in, an answer in that protocol's shape out. All on worker threads.
#ifndef PITH_SERVER_API_H_
#define PITH_SERVER_API_H_

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "server/catalog.h"
#include "server/chat_request.h"
#include "server/http_server.h"
#include "server/kept_responses.h"
#include "server/protocol.h"

namespace pith::server {

// What a handler gets: its request and where the answer goes.
struct Call {
  ModelCatalog& catalog;
  ServerContext& context;  // of the model that was asked for
  std::shared_ptr<const void> lease;  // that keeps it loaded
  HttpRequest request;
  std::shared_ptr<HttpExchange> exchange;
  std::shared_ptr<KeptResponses> responses;
  std::string tenant;  // whose key it came with
  Dialect dialect = Dialect::kOpenAi;
  std::shared_ptr<Json> parsed;  // the body as JSON, for BodyOf() to take; null: not yet

  void Reply(const Json& reply) const { exchange->Send(JsonResponse(reply)); }
  void Fail(const Error& error) const { exchange->Send(ErrorResponse(dialect, error, context.draining)); }
  void Fail(int status, const std::string& message) const { exchange->Send(ErrorResponse(dialect, status, message)); }
};

// api_openai.cc
void OpenAiChat(Call& call);
void OpenAiChatTokens(Call& call);  // .../input_tokens
void OpenAiCompletions(Call& call);
void OpenAiModels(Call& call);  // and Anthropic's, who ask with their own headers
void OpenAiModel(Call& call);   // /v1/models/{id}
// api_responses.cc
void OpenAiResponses(Call& call);
void OpenAiResponsesTokens(Call& call);
// api_kept_responses.cc: /v1/responses/{id}
void OpenAiKeptResponse(Call& call);
void OpenAiForgetResponse(Call& call);
void OpenAiCancelResponse(Call& call);  // .../cancel
void OpenAiInputItems(Call& call);      // .../input_items
// api_anthropic.cc
void AnthropicMessages(Call& call);
void AnthropicCountTokens(Call& call);
// api_ollama.cc
void OllamaGenerate(Call& call);
void OllamaChat(Call& call);
void OllamaTags(Call& call);
void OllamaShow(Call& call);
void OllamaPs(Call& call);
void OllamaVersion(Call& call);
// api_llama.cc
void LlamaHealth(Call& call);
void LlamaProps(Call& call);
void LlamaSlots(Call& call);
void LlamaSlotAction(Call& call);  // /slots/{id}?action=
void SlotTokenView(Call& call);    // our own: /slots/{id}?position=
void LlamaTokenize(Call& call);
void LlamaDetokenize(Call& call);
void LlamaApplyTemplate(Call& call);
void LlamaCompletion(Call& call);
void LlamaInfill(Call& call);
void LlamaRerank(Call& call);
// page.cc
void Page(Call& call);
// metrics.cc
void Metrics(Call& call);
// api_embeddings.cc
void OpenAiEmbeddings(Call& call);
void LlamaEmbedding(Call& call);
void OllamaEmbed(Call& call);
void OllamaEmbeddings(Call& call);

// Shared by protocols that speak OpenAI's chat: messages, tools and tool_choice of an object.
Status ReadMessages(const Json& list, const std::string& path, std::vector<ChatMessage>& messages);
Status ReadTools(JsonReader& reader, ChatRequest& request);
Status ReadToolChoice(JsonReader& reader, ChatRequest& request);
// stream_options, which need a stream.
Status ReadStreamOptions(JsonReader& reader, ChatRequest& request);
// kInvalidArgument: a tool's result that answers no call before it. Nothing is known of calls and results without ids.
Status CheckToolResults(std::span<const ChatMessage> messages);
// A text, or parts of which only texts are understood.
Result<std::string> ReadContent(const Json& content, const std::string& path);
// [{token, logprob, bytes, top_logprobs}]
Json LogprobsJson(const ServedModel& model, const std::vector<TokenLogprobs>& logprobs);
double FiniteLogprob(float logprob);
// A prompt as text, tokens, or several of either, into the request's. kInvalidArgument; errors of TokenizePrompt().
Status ReadPrompts(const Json& prompt, const ServedModel& model, ChatRequest& request, std::vector<std::string>& texts);
// The messages' tokens as "input_tokens" of `reply`: nothing is generated.
void ReplyTokenCount(Call& call, const ChatRequest& request, Json reply);
std::string TextOf(const ServedModel& model, const std::vector<int32_t>& tokens);
// Server-sent events.
std::string Event(const Json& data);
std::string Event(const char* name, const Json& data);
// Parses, prepares and starts: what every generating handler does between its own reading and its own writer.
Result<Json> BodyOf(const Call& call);
// Ollama's: a number with a unit, or of seconds. kInvalidArgument. Negative: for ever; none: nothing was said.
Status ReadKeepAlive(JsonReader& reader, std::optional<double>& seconds);

}  // namespace pith::server

#endif  // PITH_SERVER_API_H_
