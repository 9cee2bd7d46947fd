// Traces in the formats of the world.
#ifndef PITH_EVICT_READ_TRACE_H_
#define PITH_EVICT_READ_TRACE_H_

#include <string_view>

#include "evict/trace.h"
#include "pith/types.h"

namespace pith::evict {

enum class TraceFormat {
  kCsv,      // a header with the columns id and, in any order, time (s), size (bytes), ttl (s), rtt (us)
  kOracle,   // libCacheSim's oracleGeneral: packed u32 time, u64 id, u32 size, i64 next access, little-endian
  kNginx,    // an access log: combined, or "$time_iso8601" $upstream_cache_status $cache_key $bytes $ttl
             // $upstream_response_time
  kPrompts,  // JSON lines of Mooncake: timestamp (ms), input_length, output_length, hash_ids
};

// "csv", "oracle", "nginx", "jsonl"; or by the end of a file's name. kInvalidArgument.
Result<TraceFormat> ParseFormatName(std::string_view name);
Result<TraceFormat> FormatOfFile(std::string_view path);

// `name` begins the sentences. kCorrupt with the line's or the record's number; kUnsupported: too large.
// A number is its own id; other ids are hashed.
Result<Trace> ReadTrace(TraceFormat format, std::string_view text, std::string_view name);

}  // namespace pith::evict

#endif  // PITH_EVICT_READ_TRACE_H_
