// Options of llama.cpp's programs for which pith has nothing to do, so that their command lines go on working.
#ifndef PITH_CLI_IDLE_OPTIONS_H_
#define PITH_CLI_IDLE_OPTIONS_H_

#include <string_view>

namespace pith::cli {

struct IdleOption {
  std::string_view name;
  bool takes_value;
  std::string_view why;  // why it changes nothing; empty: what it asks for is so in any case
};

// Null: llama.cpp has none of that name, or pith has it, or what it asks for is not so.
const IdleOption* FindIdleOption(std::string_view name);

}  // namespace pith::cli

#endif  // PITH_CLI_IDLE_OPTIONS_H_
