// Grammars and JSON schemas from strangers: what libllama's parsers and llama.cpp's converter would need too much
// memory, stack or time for.
#ifndef PITH_HOST_GRAMMAR_BOUNDS_H_
#define PITH_HOST_GRAMMAR_BOUNDS_H_

#include <string_view>

#include "pith/types.h"

namespace pith {

// kInvalidArgument: GBNF that is too long or nested too deep, with a repetition that ends before it begins, or whose
// repetitions make too many rules. Whether it is GBNF at all is for the sampler to say.
Status CheckGrammarBounds(std::string_view gbnf);

// kInvalidArgument: no JSON object, a schema that is too large once its alternatives are written out, nested too deep,
// with bounds that no value meets (minItems above maxItems, ...), with patterns that are none, with repetitions of
// repetitions, with references in a circle, or with longer names than the converter's expressions have stack for.
Status CheckSchemaBounds(std::string_view schema);

}  // namespace pith

#endif  // PITH_HOST_GRAMMAR_BOUNDS_H_
