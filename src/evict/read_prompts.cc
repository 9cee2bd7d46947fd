// Mooncake's JSON lines: one prompt a line, as a chain of blocks of 512 tokens named by their chained hashes.
#include <algorithm>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "evict/trace_builder.h"

namespace pith::evict {
namespace {

using nlohmann::json;

// Fields of other kinds are skipped; `hash_ids` is the only deep one that counts. Brackets outside strings, counted
// before anything is parsed: destroying deeply nested values recurses.
bool TooDeep(std::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > 8) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// A whole number of up to 2^32 - 1, 0 where it is missing.
bool Small(const json& object, const char* field, uint32_t& value) {
  value = 0;
  const auto found = object.find(field);
  if (found == object.end()) return true;
  if (!found->is_number_unsigned() || found->get<uint64_t>() > UINT32_MAX) return false;
  value = static_cast<uint32_t>(found->get<uint64_t>());
  return true;
}

// Fills `blocks`.
Status ParsePrompt(const Lines& lines, std::string_view line, Prompt& prompt, std::vector<uint64_t>& blocks) {
  if (TooDeep(line)) return lines.Bad("this JSON is nested too deep");
  const json object = JsonOf(line);
  if (object.is_discarded()) return lines.Bad("this is not valid JSON");
  if (!object.is_object()) return lines.Bad("this is not a JSON object");
  const auto time = object.find("timestamp");
  if (time == object.end() || !time->is_number() || !(time->get<double>() >= 0)) {
    return lines.Bad("the field \"timestamp\" is no number of milliseconds");
  }
  prompt.time = time->get<double>() / 1000;
  if (!Small(object, "input_length", prompt.input_tokens) || !Small(object, "output_length", prompt.output_tokens)) {
    return lines.Bad("the field \"input_length\" or \"output_length\" is no number of tokens");
  }
  const auto ids = object.find("hash_ids");
  if (ids == object.end() || !ids->is_array()) return lines.Bad("the field \"hash_ids\" is no list");
  blocks.clear();
  for (const json& id : *ids) {
    if (!id.is_number_unsigned()) return lines.Bad("the field \"hash_ids\" holds something that is no block's number");
    blocks.push_back(id.get<uint64_t>());
  }
  return {};
}

}  // namespace

Result<Trace> ReadPrompts(std::string_view text, std::string_view name) {
  Lines lines(text, name);
  TraceBuilder builder;
  builder.Reserve(text.size() / 8);
  std::string_view line;
  std::vector<uint64_t> blocks;
  std::vector<uint64_t> sorted;
  while (lines.Next(line)) {
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    Prompt prompt;
    PITH_RETURN_IF_ERROR(ParsePrompt(lines, line, prompt, blocks));
    sorted = blocks;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      return lines.Bad("a block appears twice in one prompt");
    }
    if (blocks.empty()) continue;
    prompt.first = static_cast<uint32_t>(builder.trace().num_accesses());
    builder.trace().prompts.push_back(prompt);
    for (size_t i = blocks.size(); i-- > 0;) builder.Add(blocks[i], 1, prompt.time);
    if (builder.trace().num_accesses() >= kNever) return Unsupported(fmt::format("{} is too long", name));
  }
  return builder.Finish(name);
}

}  // namespace pith::evict
