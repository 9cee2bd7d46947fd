// Sampling an answer from a prefilled sequence, and what one says about it.
#ifndef PITH_CLI_GENERATE_H_
#define PITH_CLI_GENERATE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith::cli {

enum class StopReason : uint8_t { kEnd, kLength, kContext, kInterrupted };
const char* StopReasonName(StopReason reason);

struct Generation {
  std::string text;  // valid UTF-8
  std::vector<int32_t> tokens;
  StopReason stop = StopReason::kEnd;
  double first_token_seconds = 0;  // of sampling the first token
  double seconds = 0;              // from the first token on
  double decode_tps() const;
};

// Receives whole UTF-8 characters as they come.
using TextSink = std::function<void(std::string_view)>;

// Samples up to max_tokens (-1: no limit) after the tokens in the sequence, until
// end of generation, the context's end or Ctrl-C. The last sampled token is not
// fed back. num_ctx: positions that the engine was made for.
Result<Generation> Generate(Engine& engine, SequenceId sequence, HostSampler& sampler, int max_tokens, int num_ctx,
                            const TextSink& sink);

// Tokens of a prompt; a BOS that both the template and the tokenizer put there
// is kept once.
Result<std::vector<int32_t>> TokenizePrompt(const HostModel& model, std::string_view text);

// {budget_bytes, peak_bytes, block_bytes, entries, recipe, kept_fraction, ...}
nlohmann::ordered_json KvJson(const KvStats& stats, const Recipe& recipe);
// "KV 12.00 MiB of 64.00 MiB at the peak, kept 10.3% of 45,000 entries (keydiff)"
std::string KvLine(const KvStats& stats, const Recipe& recipe);

}  // namespace pith::cli

#endif  // PITH_CLI_GENERATE_H_
