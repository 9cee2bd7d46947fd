#include "cli/generate.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "base/text.h"

namespace pith::cli {

bool PrintText(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  return std::fflush(stdout) == 0 && written;
}

std::string CutNote(const GenerationResult& answer, int max_tokens) {
  switch (answer.stop) {
    case StopReason::kLength: return fmt::format("cut after {} tokens (-n gives more)", max_tokens);
    case StopReason::kContext: return "cut, since the context is full (-c gives more)";
    case StopReason::kBudget: return fmt::format("cut: {}", answer.stop_message);
    case StopReason::kInterrupted: return "interrupted";
    case StopReason::kCallback: return "cut, since nothing more could be written";
    case StopReason::kEnd:
    case StopReason::kStopString: return {};
  }
  return {};
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
