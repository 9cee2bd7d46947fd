// What pith sim and pith sim train understand alike.
#ifndef PITH_CLI_SIM_FLAGS_H_
#define PITH_CLI_SIM_FLAGS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "evict/trace.h"
#include "pith/types.h"

namespace pith::cli {

// What stands between commas, empty parts, too.
std::vector<std::string> SplitCommas(std::string_view text);

// "25MB,64MiB,10000": bytes, or blocks. Empty: none. kInvalidArgument: a part is no size.
Result<std::vector<uint64_t>> ParseCapacities(std::string_view text);

// format: a name of ParseFormatName(), or empty: as the file's name says. Errors of ReadFile() and ReadTrace().
Result<evict::Trace> ReadTraceFile(const std::string& path, const std::string& format);

}  // namespace pith::cli

#endif  // PITH_CLI_SIM_FLAGS_H_
