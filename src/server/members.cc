#include "server/members.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace pith::server {
namespace {

using enum MemberKind;

constexpr std::string_view kEfforts = "none|minimal|low|medium|high|xhigh|max";

constexpr Member kOpenAi[] = {
    {"user", kText},
    {"metadata", kObject},
    {"service_tier", kChoice, "auto|default|flex|scale|priority|fast"},
    {"safety_identifier", kText},
    {"prompt_cache_retention", kText},
};
constexpr Member kChat[] = {
    {"store", kBool},
    {"reasoning_effort", kChoice, kEfforts},
    {"verbosity", kChoice, "low|medium|high"},
    {"prediction", kObject},
    {"audio", kRefused, "is not supported: this model writes text alone"},
    {"web_search_options", kRefused, "is not supported: this server looks nothing up"},
    {"functions", kRefused, "is OpenAI's old name: give 'tools'"},
    {"function_call", kRefused, "is OpenAI's old name: give 'tool_choice'"},
};
constexpr Member kResponses[] = {
    {"background", kRefused, "is not supported"},
    {"conversation", kRefused, "is not supported: give all of 'input', or 'previous_response_id'"},
    {"prompt", kRefused, "is not supported: give all of 'input', or 'previous_response_id'"},
    {"truncation", kChoice, "auto|disabled"},
    {"max_tool_calls", kWhole, {}, 1},
};
constexpr Member kAnthropic[] = {
    {"metadata", kObject},
    {"service_tier", kChoice, "auto|standard_only"},
    {"inference_geo", kText},
    {"speed", kChoice, "standard|fast"},
    {"context_management", kObject},
    {"cache_control", kObject},
    {"mcp_servers", kRefused, "is not supported: this server calls no others"},
    {"container", kRefused, "is not supported: this server runs no programs"},
};
constexpr Member kThinking[] = {
    {"type", kChoice, "enabled|disabled|adaptive|between_tools"},
    {"budget_tokens", kWhole, {}, 1024},
    {"display", kChoice, "summarized|omitted"},
};
constexpr Member kReasoning[] = {
    {"effort", kChoice, kEfforts},
    {"summary", kChoice, "auto|concise|detailed"},
    {"generate_summary", kChoice, "auto|concise|detailed"},
};
constexpr Member kTextConfig[] = {{"verbosity", kChoice, "low|medium|high"}};
constexpr Member kOutputConfig[] = {{"effort", kChoice, kEfforts}};
constexpr Member kLlama[] = {
    {"n_keep", kWhole, {}, -1}, {"n_discard", kWhole, {}, 0}, {"t_max_prompt_ms", kWhole}, {"min_keep", kWhole, {}, 0},
    {"lora", kArray},
};
constexpr Member kLlamaEmbedding[] = {
    {"embd_normalize", kWhole, {}, -1},  // lengths are always 1
};
constexpr Member kOllama[] = {
    {"think", kChoice, "true|false|low|medium|high|max"},
    {"truncate", kBool},
    {"shift", kBool},
};
constexpr Member kOptions[] = {
    {"num_ctx", kWhole, {}, 0},  // the server's own is what holds
    {"num_keep", kWhole},       {"num_batch", kWhole},       {"num_gpu", kWhole}, {"num_thread", kWhole},
    {"main_gpu", kWhole},       {"tfs_z", kNumber},          {"use_mmap", kBool}, {"use_mlock", kBool},
    {"low_vram", kBool},        {"f16_kv", kBool},           {"numa", kBool},     {"vocab_only", kBool},
    {"logits_all", kBool},      {"penalize_newline", kBool},
};

// Nothing is asked for: false, "", "none", "auto", and what is empty.
bool AsksNothing(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_string()) return IsChoice(value.get_ref<const std::string&>(), "|none|auto");
  return value.is_structured() && value.empty();
}

void CheckChoice(JsonReader& reader, const Member& member, const Json& value) {
  std::string word;
  if (value.is_string()) word = value.get<std::string>();
  if (value.is_boolean()) word = value.get<bool>() ? "true" : "false";
  if (!word.empty() && IsChoice(word, member.words)) return;
  std::string list(member.words);
  for (size_t at = 0; (at = list.find('|', at)) != std::string::npos; at += 2) list.replace(at, 1, ", ");
  reader.Fail(member.name, "must be one of " + list);
}

void Check(JsonReader& reader, const Member& member, const Json& value) {
  const bool is_whole =
      value.is_number_integer() || (value.is_number_float() && value == std::floor(value.get<double>()));
  const auto in_range = [&] {
    const double number = value.get<double>();
    return number >= member.least && number <= member.most;
  };
  switch (member.kind) {
    case kText:
      return value.is_string() ? void() : reader.Fail(member.name, "must be a string");
    case kBool:
      return value.is_boolean() ? void() : reader.Fail(member.name, "must be true or false");
    case kNumber:
      return value.is_number() && in_range() ? void() : reader.Fail(member.name, "must be a number");
    case kWhole:
      if (is_whole && in_range()) return;
      return reader.Fail(member.name,
                         fmt::format("must be a whole number from {:.0f} to {:.0f}", member.least, member.most));
    case kObject:
      return value.is_object() ? void() : reader.Fail(member.name, "must be an object");
    case kArray:
      return value.is_array() ? void() : reader.Fail(member.name, "must be an array");
    case kChoice:
      return CheckChoice(reader, member, value);
    case kRefused:
      return AsksNothing(value) ? void() : reader.Fail(member.name, std::string(member.words));
  }
}

}  // namespace

bool IsChoice(std::string_view value, std::string_view words) {
  while (true) {
    const size_t end = std::min(words.find('|'), words.size());
    if (words.substr(0, end) == value) return true;
    if (end == words.size()) return false;
    words.remove_prefix(end + 1);
  }
}

void CheckMembers(JsonReader& reader, std::span<const Member> members) {
  for (const Member& member : members) {
    if (const Json* value = reader.Find(member.name); value != nullptr) Check(reader, member, *value);
  }
}

Status CheckMembersOf(JsonReader& reader, const char* name, std::span<const Member> members) {
  const Json* object = reader.Object(name);
  PITH_RETURN_IF_ERROR(reader.status());
  if (object == nullptr) return {};
  JsonReader inner(*object, reader.Path(name) + ".");
  CheckMembers(inner, members);
  return inner.status();
}

const std::span<const Member> kOpenAiMembers = kOpenAi, kChatMembers = kChat, kResponsesMembers = kResponses;
const std::span<const Member> kThinkingMembers = kThinking, kReasoningMembers = kReasoning, kTextMembers = kTextConfig,
                              kOutputMembers = kOutputConfig;
const std::span<const Member> kAnthropicMembers = kAnthropic, kLlamaMembers = kLlama,
                              kLlamaEmbeddingMembers = kLlamaEmbedding, kOllamaMembers = kOllama,
                              kOllamaOptions = kOptions;

}  // namespace pith::server
