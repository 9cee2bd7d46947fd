#include "server/json_reader.h"

#include <cmath>
#include <exception>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"

namespace pith::server {
namespace {

constexpr size_t kDeepest = 96;
// Members are looked up one after the other, so that reading an object costs their square.
constexpr size_t kMostMembers = 4096;
constexpr size_t kMostCompared = size_t{1} << 26;  // names, in all objects

Status CheckShape(std::string_view text) {
  std::vector<size_t> members;  // of each open object, array elements are not counted
  std::vector<char> open;
  size_t compared = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        for (++i; i < text.size() && text[i] != '"'; ++i) i += text[i] == '\\';
        break;
      case '{':
      case '[':
        open.push_back(text[i]);
        members.push_back(0);
        if (open.size() > kDeepest)
          return InvalidArgument(fmt::format("the JSON is nested deeper than {} levels", kDeepest));
        break;
      case '}':
      case ']':
        if (open.empty()) return {};  // the parser says it better
        open.pop_back();
        members.pop_back();
        break;
      case ':':
        if (!members.empty() && ++members.back() > kMostMembers) {
          return InvalidArgument(fmt::format("an object of the JSON has more than {} members", kMostMembers));
        }
        compared += members.empty() ? 0 : members.back();
        if (compared > kMostCompared) return InvalidArgument("the JSON has too many objects of many members");
        break;
      default:
        break;
    }
  }
  return {};
}

// "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ..." without its beginning.
std::string Reason(std::string_view text) {
  if (const size_t at = text.find("] "); text.starts_with('[') && at != std::string_view::npos)
    text.remove_prefix(at + 2);
  return Escaped(text, 200);
}

}  // namespace

Result<Json> ParseJson(std::string_view text) {
  PITH_RETURN_IF_ERROR(CheckShape(text));
  try {
    return Json::parse(text);
  } catch (const std::exception& error) {
    return InvalidArgument(fmt::format("the request is no valid JSON: {}", Reason(error.what())));
  }
}

Result<Json> ParseJsonObject(std::string_view text) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return InvalidArgument("the request's body is empty; it must be a JSON object");
  }
  PITH_ASSIGN_OR_RETURN(Json value, ParseJson(text));
  if (!value.is_object()) return InvalidArgument("the request's body must be a JSON object");
  return Result<Json>(std::move(value));
}

const Json* JsonReader::Find(const char* name) const {
  const auto at = object_.find(name);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

void JsonReader::Fail(const char* name, const std::string& what) {
  if (!error_) error_ = fmt::format("'{}{}' {}", path_, name, what);
}

Status JsonReader::status() const { return error_ ? InvalidArgument(*error_) : Status(); }

void JsonReader::Require(const char* name) {
  if (Find(name) == nullptr) Fail(name, "is missing");
}

void JsonReader::Text(const char* name, std::string& out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(name, "must be a string");
  out = value->get_ref<const std::string&>();
}

void JsonReader::Bool(const char* name, bool& out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, "must be true or false");
  out = value->get<bool>();
}

void JsonReader::Number(const char* name, double least, double greatest, float& out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= least && number <= greatest)) {
    return Fail(name, fmt::format("must be a number from {} to {}", least, greatest));
  }
  out = static_cast<float>(number);
}

void JsonReader::Integer(const char* name, int64_t least, int64_t greatest, int& out) {
  std::optional<int64_t> number;
  Integer64(name, number);
  if (error_ || !number) return;
  if (*number < least || *number > greatest) {
    return Fail(name, fmt::format("must be a whole number from {} to {}", least, greatest));
  }
  out = static_cast<int>(*number);
}

void JsonReader::Integer64(const char* name, std::optional<int64_t>& out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (value->is_number_unsigned()) {
    const auto number = value->get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return Fail(name, "is too large a number");
    out = static_cast<int64_t>(number);
  } else if (value->is_number_integer()) {
    out = value->get<int64_t>();
  } else if (value->is_number_float() && std::trunc(value->get<double>()) == value->get<double>() &&
             std::abs(value->get<double>()) < 9e15) {
    out = static_cast<int64_t>(value->get<double>());  // 16.0
  } else {
    Fail(name, "must be a whole number");
  }
}

void JsonReader::Texts(const char* name, std::vector<std::string>& out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  std::vector<std::string> texts;
  if (value->is_string()) {
    texts.push_back(value->get<std::string>());
  } else if (value->is_array()) {
    for (const Json& one : *value) {
      if (!one.is_string()) return Fail(name, "must be a string or an array of strings");
      texts.push_back(one.get<std::string>());
    }
  } else {
    return Fail(name, "must be a string or an array of strings");
  }
  out = std::move(texts);
}

const Json* JsonReader::Object(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (value->is_object()) return value;
  Fail(name, "must be an object");
  return nullptr;
}

const Json* JsonReader::Array(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (value->is_array()) return value;
  Fail(name, "must be an array");
  return nullptr;
}

Result<std::vector<int32_t>> ReadTokens(const Json& array, std::string_view name, int num_vocab) {
  std::vector<int32_t> tokens;
  tokens.reserve(array.size());
  for (const Json& one : array) {
    if (!one.is_number_integer()) return InvalidArgument(fmt::format("'{}' must be an array of token numbers", name));
    const bool known = one.is_number_unsigned() && one.get<uint64_t>() < static_cast<uint64_t>(num_vocab);
    if (!known) {
      return InvalidArgument(
          fmt::format("'{}' has the token {}, but the vocabulary goes from 0 to {}", name, JsonText(one),
                      num_vocab - 1));
    }
    tokens.push_back(one.get<int32_t>());
  }
  return tokens;
}

}  // namespace pith::server
