// Regular expressions of JSON schemas: what no dialect reads.
#ifndef PITH_HOST_PATTERN_SYNTAX_H_
#define PITH_HOST_PATTERN_SYNTAX_H_

#include <string_view>

#include "pith/types.h"

namespace pith {

// kInvalidArgument, with what is wrong: no regular expression of ECMA-262's (JSON Schema, 6.3.3), where others agree:
// groups and classes without an end, braces that are no repetition, a repetition of nothing, a range or a repetition
// that ends before it begins, a backslash before nothing. Dialects' own groups ("(?P<a>", "(?i)") and escapes pass:
// llama.cpp's converter takes what it does not know for any text.
Status CheckPatternSyntax(std::string_view pattern);

}  // namespace pith

#endif  // PITH_HOST_PATTERN_SYNTAX_H_
