#include "host/json_schema.h"

#include <exception>

#include <fmt/format.h>

#include "base/escaped.h"

// scripts/build_llama.sh takes llama.cpp's converter along with its templates; a prefix of one's own may lack it.
#if __has_include("json-schema-to-grammar.h")
#include "json-schema-to-grammar.h"
#define PITH_HAS_JSON_SCHEMA 1
#endif

namespace pith {

#ifdef PITH_HAS_JSON_SCHEMA
Result<std::string> GrammarOfJsonSchema(const std::string& schema) {
  try {
    return json_schema_to_grammar(common_json::parse(schema));
  } catch (const std::exception& error) {
    return InvalidArgument(fmt::format("the JSON schema cannot be used: {}", Escaped(error.what(), 300)));
  }
}
#else
Result<std::string> GrammarOfJsonSchema(const std::string&) {
  return Unsupported("this libllama was built without the converter of JSON schemas; give the grammar itself with --grammar");
}
#endif

}  // namespace pith
