#include "cli/generate.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "cli/terminal.h"
#include "cli/text.h"

namespace pith::cli {

const char* StopReasonName(StopReason reason) {
  switch (reason) {
    case StopReason::kEnd: return "end";
    case StopReason::kLength: return "length";
    case StopReason::kContext: return "context";
    case StopReason::kInterrupted: return "interrupted";
  }
  return "";
}

double Generation::decode_tps() const {
  // The first token needs no decoding.
  return tokens.size() < 2 || seconds <= 0 ? 0 : static_cast<double>(tokens.size() - 1) / seconds;
}

Result<Generation> Generate(Engine& engine, SequenceId sequence, HostSampler& sampler, int max_tokens, int num_ctx,
                            const TextSink& sink) {
  Generation result;
  Utf8Stream utf8;
  const auto emit = [&result, &sink](const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (sink) sink(text);
  };
  Stopwatch first;
  Stopwatch rest;
  for (;;) {
    if (Interrupted()) {
      result.stop = StopReason::kInterrupted;
      break;
    }
    if (max_tokens >= 0 && result.tokens.size() >= static_cast<size_t>(max_tokens)) {
      result.stop = StopReason::kLength;
      break;
    }
    const int32_t token = sampler.Sample(engine.logits(sequence));
    if (result.tokens.empty()) {
      result.first_token_seconds = first.seconds();
      rest = Stopwatch();
    }
    if (engine.model().IsEndOfGeneration(token)) break;
    result.tokens.push_back(token);
    emit(utf8.Push(engine.model().Piece(token)));
    const bool last = max_tokens >= 0 && result.tokens.size() >= static_cast<size_t>(max_tokens);
    if (last) continue;
    if (engine.num_tokens(sequence) >= num_ctx) {
      result.stop = StopReason::kContext;
      break;
    }
    if (const Status status = engine.Decode(sequence, token); !status) {
      if (!Interrupted()) return tl::unexpected<Error>(status.error());
      result.stop = StopReason::kInterrupted;
      break;
    }
  }
  result.seconds = rest.seconds();
  emit(utf8.Flush());
  return result;
}

Result<std::vector<int32_t>> TokenizePrompt(const HostModel& model, std::string_view text) {
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model.Tokenize(text, true, true));
  const auto added = model.Tokenize("", true, true);  // what the tokenizer adds by itself
  if (added && !added->empty() && tokens.size() >= 2 && tokens[0] == added->front() && tokens[1] == added->front()) {
    tokens.erase(tokens.begin());
  }
  return tokens;
}

nlohmann::ordered_json KvJson(const KvStats& stats, const Recipe& recipe) {
  return {{"budget_bytes", stats.budget_bytes},
          {"peak_bytes", stats.peak_bytes},
          {"block_bytes", stats.block_bytes},
          {"entries", stats.entries},
          {"recipe", recipe.text},
          {"format", stats.format.Name()},
          {"kept_fraction", stats.kept_fraction},
          {"used_bytes", stats.used_bytes},
          {"page_bytes", stats.page_bytes},
          {"table_bytes", stats.table_bytes},
          {"recurrent_bytes", stats.recurrent_bytes},
          {"entries_seen", stats.entries_seen},
          {"keep_entries", stats.keep_entries},
          {"block_tokens", stats.block_tokens}};
}

std::string KvLine(const KvStats& stats, const Recipe& recipe) {
  const int64_t dropped = std::max<int64_t>(0, stats.entries_seen - stats.entries);
  std::string line = fmt::format("KV {} of {} at the peak, ", FormatBytes(stats.peak_bytes),
                                 FormatBytes(stats.budget_bytes));
  if (dropped == 0) {
    line += fmt::format("all {} entries kept", FormatCount(stats.entries));
  } else {
    line += fmt::format("kept {:.1f}% of {} entries, dropped {}", 100 * stats.kept_fraction,
                        FormatCount(stats.entries_seen), FormatCount(dropped));
  }
  const bool other_format = !(stats.format == PageFormat()) && !recipe.format;
  return line + fmt::format(" ({}{})", recipe.text, other_format ? " in " + stats.format.Name() : "");
}

}  // namespace pith::cli
