// What one says about a generation: its text, why it ended, what the cache holds.
#ifndef PITH_CLI_GENERATE_H_
#define PITH_CLI_GENERATE_H_

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "engine/engine.h"
#include "session/generator.h"

namespace pith::cli {

// To standard output at once. False: it takes no more.
bool PrintText(std::string_view text);

// "cut after 512 tokens (-n gives more)"; empty where the answer ended by itself.
std::string CutNote(const GenerationResult& answer, int max_tokens);

// {budget_bytes, peak_bytes, block_bytes, entries, recipe, kept_fraction, ...}
nlohmann::ordered_json KvJson(const KvStats& stats, const Recipe& recipe);
// "KV 12.00 MiB of 64.00 MiB at the peak, kept 10.3% of 45,000 entries (keydiff)"
std::string KvLine(const KvStats& stats, const Recipe& recipe);

}  // namespace pith::cli

#endif  // PITH_CLI_GENERATE_H_
