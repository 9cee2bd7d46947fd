// Arguments as people type them, before the parser sees them.
#ifndef PITH_CLI_ARGUMENTS_H_
#define PITH_CLI_ARGUMENTS_H_

#include <string>
#include <string_view>
#include <vector>

#include "cli/options.h"
#include "pith/types.h"

namespace pith::cli {

// What the parser of `app` gets for argv[1] and so on. It knows letters after one dash, and takes them for values where
// llama.cpp has names of several letters (-ub, -ngl, -fa, ...): those become their long names. Values stay values
// whatever they look like, but none is empty, except of -p and --system; numbers are decimal; backslashes in -p and
// --system stand for characters where -e is given. "help" is --help. kInvalidArgument: one sentence, with the command
// that was probably meant where none is given.
Result<std::vector<std::string>> ReadArguments(const CLI::App& app, int argc, const char* const* argv);

// "X may be what is meant" and `rest`, of the choice that a word nearly is; "" where there is none.
std::string MayBeMeant(std::string_view word, const std::vector<std::string>& choices, std::string_view rest);

// \n \r \t \a \b \f \v \e \0 \\ \' \" and \xHH; other backslashes stay.
std::string Unescape(std::string_view text);

}  // namespace pith::cli

#endif  // PITH_CLI_ARGUMENTS_H_
