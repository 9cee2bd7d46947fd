// Which store a user means: "DIR", "file:DIR,ram=256MiB,ssd=8GiB,evictor=lru", "ram:1GiB", "redis://HOST:PORT",
// "redis-cluster://HOST:PORT,HOST:PORT,ram=1GiB".
#ifndef PITH_STORE_SPEC_H_
#define PITH_STORE_SPEC_H_

#include <string>
#include <string_view>

#include "pith/types.h"
#include "store/store.h"

namespace pith::store {

inline constexpr size_t kDefaultRamBytes = size_t{256} << 20;
inline constexpr uint64_t kDefaultSsdBytes = uint64_t{8} << 30;

// kInvalidArgument: it is none; kUnsupported: of a kind that this build does not have. Opens nothing.
Result<StoreOptions> ParseStoreSpec(std::string_view text);

// For whoever only looks into a folder, to which another process may have given a higher limit: where the text names
// none, all that lies there fits.
Result<StoreOptions> ParseStoreSpecToLook(std::string_view text);

// How they are written, for --help.
inline constexpr std::string_view kStoreSpecHelp =
    "DIR or file:DIR keeps in a folder, ram:SIZE in memory alone, redis://HOST:PORT on a server of Redis or Valkey, "
    "redis-cluster://HOST:PORT,... on a cluster. After it, between commas: ram=SIZE (of prefixes in "
    "memory, default 256MiB), ssd=SIZE (of the folder, default 8GiB), evictor=lru|gdsf|s3fifo|sieve|lfu|lhd|wtinylfu, "
    "place=evicpress (what many texts begin with is compressed, and placed in memory or on disk, by what it loses and "
    "saves; needs --recipe full), loss=PERCENT (of quality that it may lose for a load from disk, default 3%)";

}  // namespace pith::store

#endif  // PITH_STORE_SPEC_H_
