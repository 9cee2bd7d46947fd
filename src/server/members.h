// Members of requests that change nothing here, as tables: what their values must be, and which ask for what is not
// there.
#ifndef PITH_SERVER_MEMBERS_H_
#define PITH_SERVER_MEMBERS_H_

#include <span>
#include <string_view>

#include "pith/types.h"
#include "server/json_reader.h"

namespace pith::server {

enum class MemberKind {
  kText,
  kBool,
  kNumber,  // from least to most
  kWhole,   // the same, without a fraction
  kObject,
  kArray,
  kChoice,   // one of the words
  kRefused,  // nothing may be asked for; the words are the sentence behind the name
};

struct Member {
  const char* name;
  MemberKind kind;
  std::string_view words = {};  // "low|high"
  double least = -2147483648.0, most = 2147483647.0;
};

// Those of `members` that the object has. What is wrong is the reader's error.
void CheckMembers(JsonReader& reader, std::span<const Member> members);

// Those of `members` that the object of that name has, where there is one.
Status CheckMembersOf(JsonReader& reader, const char* name, std::span<const Member> members);

// `value` is one of "low|medium|high".
bool IsChoice(std::string_view value, std::string_view words);

// What the protocols' own documents say of members that nothing here reads.
// openai: of chat and text completions and of /v1/responses. chat, responses: of one of these alone.
extern const std::span<const Member> kOpenAiMembers, kChatMembers, kResponsesMembers;
// Of "thinking", "reasoning", "text" and "output_config".
extern const std::span<const Member> kThinkingMembers, kReasoningMembers, kTextMembers, kOutputMembers;
extern const std::span<const Member> kAnthropicMembers, kLlamaMembers, kLlamaEmbeddingMembers, kOllamaMembers,
    kOllamaOptions;

}  // namespace pith::server

#endif  // PITH_SERVER_MEMBERS_H_
