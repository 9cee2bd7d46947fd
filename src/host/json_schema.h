// JSON schemas as grammars, by llama.cpp's converter.
#ifndef PITH_HOST_JSON_SCHEMA_H_
#define PITH_HOST_JSON_SCHEMA_H_

#include <string>

#include "pith/types.h"

namespace pith {

// GBNF for SamplerOptions::grammar. kInvalidArgument: the schema is no JSON, or says what the converter cannot;
// kUnsupported: libllama was built without the converter.
Result<std::string> GrammarOfJsonSchema(const std::string& schema);

}  // namespace pith

#endif  // PITH_HOST_JSON_SCHEMA_H_
