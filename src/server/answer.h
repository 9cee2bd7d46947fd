// From a request to its answer: submits the prompts, follows what the scheduler says, and tells a protocol's writer.
#ifndef PITH_SERVER_ANSWER_H_
#define PITH_SERVER_ANSWER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/api.h"
#include "server/chat_request.h"
#include "server/http_server.h"
#include "server/protocol.h"
#include "server/scheduler.h"

namespace pith::server {

struct ChoiceEnd {
  int choice = 0;    // prompts first: of prompt p, choice i is p * num_choices + i
  std::string text;  // all of it, without calls; of a stream, what was not sent before
  std::vector<ChatToolCall> calls;
  std::vector<int32_t> tokens;  // of the choice; of a stream, those not sent before
  std::vector<TokenLogprobs> logprobs;
  int num_tokens = 0;
  StopReason stop = StopReason::kEnd;
  std::string stop_string;  // kStopString: which
  bool is_last = false;     // of all choices: Finished() comes next
};

struct AnswerTotals {
  RequestUsage usage;
  RequestTimes times;
  CacheReport cache;
  int slot = -1;
};

struct Delta {
  int choice = 0;
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs;
  std::optional<AnswerTotals> so_far = {};  // of this choice, where timings are wanted with each token
};

// How far a prompt is read.
struct PromptProgress {
  int total = 0, cached = 0, done = 0;  // tokens; those that were there are done, too
  double seconds = 0;                   // since it was begun
};

// One protocol's way of saying it. Called on the connections' thread.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;
  virtual void Begin(const RequestUsage& usage, int slot) {
    (void)usage, (void)slot;
  }  // before anything else but Failed()
  // Of streams of one prompt, where it was asked for; the first time before anything is read.
  virtual void Progress(const PromptProgress& progress) { (void)progress; }
  // What a stream says while there is nothing to say, so that nobody takes its connection for dead; empty: nothing.
  virtual std::string Ping() { return {}; }
  // Of one prompt, before its texts, where they were asked for.
  virtual void PromptLogprobs(int prompt, std::vector<TokenLogprobs> logprobs) { (void)prompt, (void)logprobs; }
  virtual void Embedding(int prompt, std::vector<float> embedding) { (void)prompt, (void)embedding; }
  virtual void Text(Delta delta) = 0;  // of streams alone
  virtual void Ended(ChoiceEnd end) = 0;
  virtual void Finished(const AnswerTotals& totals) = 0;
  // begun: Begin() was called, so that a stream has its header. `response`: the whole error, where it has none.
  virtual void Failed(const Error& error, HttpResponse response, bool begun) = 0;
};

// On a worker thread, with a request that is prepared.
void StartAnswer(const Call& call, ChatRequest request, std::unique_ptr<AnswerWriter> writer);

// Members that replies share.
Json KvJson(const CacheReport& cache);
// llama-server's timings{cache_n, prompt_n, ...} and prompt_progress{total, cache, ...}
Json TimingsJson(const AnswerTotals& totals);
Json ProgressJson(const PromptProgress& progress);
inline constexpr const char* kSsePing = ":\n\n";  // a comment
const char* FinishReason(const ChoiceEnd& end);  // OpenAI's
// An error that may be about the prompt's length, with n_prompt_tokens and n_ctx where it is.
HttpResponse LengthAwareError(const ServerContext& context, Dialect dialect, const ChatRequest& request,
                              const Error& error);

}  // namespace pith::server

#endif  // PITH_SERVER_ANSWER_H_
