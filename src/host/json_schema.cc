#include "host/json_schema.h"

#include <exception>
#include <vector>

#include <fmt/format.h>

#include "base/escaped.h"
#include "host/grammar_bounds.h"

// scripts/build_llama.sh takes llama.cpp's converter along with its templates; a prefix of one's own may lack it.
#if __has_include("json-schema-to-grammar.h")
#include "json-schema-to-grammar.h"
#define PITH_HAS_JSON_SCHEMA 1

// The converter takes these from llama.cpp's common.cpp, which needs all of its tools around it.
std::string string_repeat(const std::string& text, size_t count) {
  std::string result;
  for (; count > 0; --count) result += text;
  return result;
}
std::string string_join(const std::vector<std::string>& parts, const std::string& between) {
  std::string result;
  for (size_t i = 0; i < parts.size(); ++i) result += (i == 0 ? "" : between) + parts[i];
  return result;
}
std::vector<std::string> string_split(const std::string& text, const std::string& between) {
  std::vector<std::string> parts;
  size_t from = 0;
  for (size_t at = 0; (at = text.find(between, from)) != std::string::npos; from = at + between.size()) {
    parts.push_back(text.substr(from, at - from));
  }
  parts.push_back(text.substr(from));
  return parts;
}
#endif

namespace pith {

#ifdef PITH_HAS_JSON_SCHEMA
Result<std::string> GrammarOfJsonSchema(const std::string& schema) {
  PITH_RETURN_IF_ERROR(CheckSchemaBounds(schema));
  try {
    return json_schema_to_grammar(common_json::parse(schema));
  } catch (const std::exception& error) {
    return InvalidArgument(fmt::format("the JSON schema cannot be used: {}", Escaped(error.what(), 300)));
  }
}
#else
Result<std::string> GrammarOfJsonSchema(const std::string&) {
  return Unsupported(
      "this libllama was built without the converter of JSON schemas; give the grammar itself with --grammar");
}
#endif

}  // namespace pith
