// What the store's measurements share.
#ifndef PITH_CLI_STORE_MEASURE_UTIL_H_
#define PITH_CLI_STORE_MEASURE_UTIL_H_

#include <string>

#include "pith/types.h"

namespace pith::cli {

// So that the next read comes from the disk, as far as the system follows the advice.
void DropFromPageCache(const std::string& folder);

// A new one in it, for the caller to remove.
Result<std::string> MakeBenchFolder(const std::string& folder);

}  // namespace pith::cli

#endif  // PITH_CLI_STORE_MEASURE_UTIL_H_
