// Where pith keeps what it fetches and builds.
#ifndef PITH_BASE_PATHS_H_
#define PITH_BASE_PATHS_H_

#include <string>

namespace pith {

// $PITH_CACHE_DIR, else $XDG_CACHE_HOME/pith, else ~/.cache/pith, where ~ is $HOME or
// the user's home of the password database. The same rule as in scripts/common.sh. The
// folder need not exist.
std::string CacheDir();

// The model for commands without -m: $PITH_DEFAULT_MODEL, else the file that
// scripts/fetch_model.sh puts below CacheDir(). The file need not exist.
std::string DefaultModelPath();

}  // namespace pith

#endif  // PITH_BASE_PATHS_H_
