#include "server/infill.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "base/utf8.h"

namespace pith::server {
namespace {

using Tokens = std::vector<int32_t>;

// Of tokenizers of which nobody knows it.
constexpr size_t kMostTokenBytes = 1024;

// So much of a text as its tokens can matter: nobody waits for those that nobody reads.
std::string_view Front(std::string_view text, size_t bytes) {
  if (text.size() <= bytes) return text;
  text = text.substr(0, bytes);
  return text.substr(0, std::min(FindInvalidUtf8(text), text.size()));
}
std::string_view Back(std::string_view text, size_t bytes) {
  if (text.size() <= bytes) return text;
  text.remove_prefix(text.size() - bytes);
  while (!text.empty() && (static_cast<unsigned char>(text.front()) & 0xc0) == 0x80) text.remove_prefix(1);
  return text;
}

void Append(Tokens& to, const Tokens& more) { to.insert(to.end(), more.begin(), more.end()); }

struct Halves {
  size_t prefix, suffix;  // tokens that are kept
};
// Three to one, and to either what the other leaves.
Halves Share(size_t prefix, size_t suffix, size_t room) {
  if (prefix + suffix <= room) return {prefix, suffix};
  const size_t less = std::min(suffix, std::max(room / 4, room - std::min(room, prefix)));
  return {std::min(prefix, room - less), less};
}

// "[separator]NAME\nTEXT", or what llama-server writes where there is no such token.
Result<Tokens> FileTokens(const ServedModel& model, const InfillFile& file, size_t most_bytes) {
  Tokens tokens;
  std::string head = "\n\n--- snippet ---\n\n";
  if (model.fim.separator >= 0) {
    tokens.push_back(model.fim.separator);
    head = (file.name.empty() ? "tmp" : file.name) + "\n";
  }
  PITH_ASSIGN_OR_RETURN(const Tokens name, model.text->Tokenize(head, false, false));
  PITH_ASSIGN_OR_RETURN(const Tokens text, model.text->Tokenize(Front(file.text, most_bytes), false, false));
  Append(tokens, name);
  Append(tokens, text);
  return tokens;
}

// What stands in front of [prefix], in `room` tokens.
Result<Tokens> Surroundings(const ServedModel& model, const InfillParts& parts, size_t room, size_t most_bytes) {
  Tokens head, last;
  if (model.fim.repository >= 0) {
    head.push_back(model.fim.repository);
    PITH_ASSIGN_OR_RETURN(const Tokens name, model.text->Tokenize("myproject\n", false, false));
    Append(head, name);
  }
  if (model.fim.separator >= 0) {
    last.push_back(model.fim.separator);
    PITH_ASSIGN_OR_RETURN(const Tokens name, model.text->Tokenize("filename\n", false, false));
    Append(last, name);
  }
  if (head.size() + last.size() > room) return Tokens();
  size_t left = room - head.size() - last.size();
  std::vector<Tokens> files;
  for (auto file = parts.extra.rbegin(); file != parts.extra.rend(); ++file) {
    PITH_ASSIGN_OR_RETURN(Tokens tokens, FileTokens(model, *file, most_bytes));
    if (tokens.size() > left) break;
    left -= tokens.size();
    files.push_back(std::move(tokens));
  }
  for (auto file = files.rbegin(); file != files.rend(); ++file) Append(head, *file);
  Append(head, last);
  return head;
}

}  // namespace

Status CheckInfill(const ServedModel& model) {
  if (model.fim.complete()) return {};
  std::string missing;
  for (const auto& [token, name] :
       {std::pair{model.fim.prefix, "prefix"}, {model.fim.suffix, "suffix"}, {model.fim.middle, "middle"}}) {
    if (token < 0) missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  return Unsupported(
      fmt::format("this model fills in nothing between two texts: its vocabulary lacks the tokens for {}", missing));
}

void ReadSuffix(JsonReader& reader, const ServedModel& model, std::string& suffix) {
  reader.Text("suffix", suffix);
  if (suffix.empty()) return;
  if (const Status can = CheckInfill(model); !can) reader.Fail("suffix", "is not supported: " + can.error().message);
}

Result<std::vector<int32_t>> InfillPrompt(const ServedModel& model, const InfillParts& parts, int max_tokens) {
  PITH_RETURN_IF_ERROR(CheckInfill(model));
  const auto num_ctx = static_cast<size_t>(model.num_ctx);
  const size_t most_bytes = num_ctx * (model.most_token_bytes > 0 ? model.most_token_bytes : kMostTokenBytes);
  // The answer gets at least an eighth of the context, as far as it wants that, and at most half.
  const size_t wanted = max_tokens < 0 ? num_ctx / 8 : static_cast<size_t>(max_tokens);
  const size_t most = num_ctx - std::clamp<size_t>(wanted, 1, std::max<size_t>(num_ctx / 2, 1));
  PITH_ASSIGN_OR_RETURN(Tokens prompt, model.text->Tokenize("", true, true));
  PITH_ASSIGN_OR_RETURN(const Tokens prefix, model.text->Tokenize(Back(parts.prefix, most_bytes), false, false));
  PITH_ASSIGN_OR_RETURN(const Tokens suffix, model.text->Tokenize(Front(parts.suffix, most_bytes), false, false));
  PITH_ASSIGN_OR_RETURN(const Tokens begun, model.text->Tokenize(Back(parts.begun, most_bytes), false, false));
  const size_t fixed = prompt.size() + begun.size() + 3;
  if (fixed > most) {
    return OutOfContext(
        fmt::format("the request has {} tokens between the two texts, and the context of {} tokens has "
                    "no room for them and an answer",
                    fixed, num_ctx));
  }
  const Halves kept = Share(prefix.size(), suffix.size(), most - fixed);
  if (parts.names_files) {
    PITH_ASSIGN_OR_RETURN(const Tokens around,
                          Surroundings(model, parts, most - fixed - kept.prefix - kept.suffix, most_bytes));
    Append(prompt, around);
  }
  prompt.push_back(model.fim.prefix);
  prompt.insert(prompt.end(), prefix.end() - static_cast<std::ptrdiff_t>(kept.prefix), prefix.end());
  Append(prompt, begun);
  prompt.push_back(model.fim.suffix);
  prompt.insert(prompt.end(), suffix.begin(), suffix.begin() + static_cast<std::ptrdiff_t>(kept.suffix));
  prompt.push_back(model.fim.middle);
  return prompt;
}

}  // namespace pith::server
