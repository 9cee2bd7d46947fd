#include "lab/jsonl.h"

#include <string>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/text.h"

namespace pith {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr int64_t kMaxLength = 100'000'000;

// The parser recurses in nothing, but destroying deeply nested values does:
// count brackets outside strings first.
bool TooDeep(std::string_view line) {
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  return false;
}

class Line {
 public:
  Line(std::string_view name, size_t number) : name_(name), number_(number) {}

  tl::unexpected<Error> Bad(std::string_view what) const {
    return Corrupt(fmt::format("{}, line {}: {}", name_, number_, what));
  }

  Status Text(const json& object, const char* field, bool may_be_empty, std::string& to) const {
    const auto found = object.find(field);
    if (found == object.end()) return Bad(fmt::format("the field \"{}\" is missing", field));
    if (!found->is_string()) return Bad(fmt::format("the field \"{}\" is not a string", field));
    to = found->get<std::string>();
    if (to.empty() && !may_be_empty) return Bad(fmt::format("the field \"{}\" is empty", field));
    return {};
  }

  Status OptionalText(const json& object, const char* field, std::string& to) const {
    return object.contains(field) ? Text(object, field, true, to) : Status();
  }

  Status Length(const json& object, int& to) const {
    const auto found = object.find("length");
    if (found == object.end()) return Bad("the field \"length\" is missing");
    const bool whole = found->is_number_unsigned() || (found->is_number_integer() && found->get<int64_t>() >= 0);
    if (!whole || found->get<uint64_t>() > static_cast<uint64_t>(kMaxLength)) {
      return Bad("the field \"length\" is no number of tokens");
    }
    to = found->get<int>();
    return {};
  }

  Status Messages(const json& object, std::vector<ChatMessage>& to) const {
    const auto found = object.find("messages");
    if (found == object.end()) return {};
    if (!found->is_array()) return Bad("the field \"messages\" is no list");
    for (const json& entry : *found) {
      if (!entry.is_object()) return Bad("a message is no object");
      ChatMessage message;
      PITH_RETURN_IF_ERROR(Text(entry, "role", false, message.role));
      PITH_RETURN_IF_ERROR(Text(entry, "content", true, message.content));
      to.push_back(std::move(message));
    }
    return {};
  }

  Result<Task> Parse(std::string_view text) const {
    if (FindInvalidUtf8(text) != std::string_view::npos) return Bad("this is not valid UTF-8");
    if (TooDeep(text)) return Bad(fmt::format("this JSON is nested more than {} deep", kMaxDepth));
    const json object = JsonOf(text);
    if (object.is_discarded()) return Bad("this is not valid JSON");
    if (!object.is_object()) return Bad("this is not a JSON object");
    Task task;
    PITH_RETURN_IF_ERROR(Text(object, "id", false, task.id));
    PITH_RETURN_IF_ERROR(Text(object, "task", false, task.task));
    PITH_RETURN_IF_ERROR(Length(object, task.length));
    PITH_RETURN_IF_ERROR(OptionalText(object, "pinned_text", task.pinned_text));
    PITH_RETURN_IF_ERROR(OptionalText(object, "long_text", task.long_text));
    PITH_RETURN_IF_ERROR(OptionalText(object, "answer_text", task.answer_text));
    PITH_RETURN_IF_ERROR(Messages(object, task.messages));
    if (task.messages.empty()) PITH_RETURN_IF_ERROR(Text(object, "context_text", false, task.context_text));
    PITH_RETURN_IF_ERROR(Text(object, "question_text", true, task.question_text));
    PITH_RETURN_IF_ERROR(Text(object, "target", false, task.target));
    return task;
  }

 private:
  std::string_view name_;
  size_t number_;
};

}  // namespace

Result<std::vector<Task>> ParseTasks(std::string_view text, std::string_view name) {
  std::vector<Task> tasks;
  std::unordered_set<std::string> ids;
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    PITH_ASSIGN_OR_RETURN(Task task, Line(name, number).Parse(line));
    if (!ids.insert(task.id).second) {
      return Line(name, number).Bad(fmt::format("the id \"{}\" appears twice", task.id));
    }
    tasks.push_back(std::move(task));
  }
  if (tasks.empty()) return Corrupt(fmt::format("{} holds no tasks", name));
  return tasks;
}

}  // namespace pith
