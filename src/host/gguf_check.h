// Checks a GGUF file before libllama sees it.
//
// libllama aborts the process on some broken files and reports others only in
// its log. This reader walks all metadata with bounds on everything, so that a
// bad file ends in one sentence instead.
//
// Memory: the names of keys, tensors and vocabulary entries, never more than
// the file's own metadata. Tensor data are not read.
// Threads: reentrant.
#ifndef PITH_HOST_GGUF_CHECK_H_
#define PITH_HOST_GGUF_CHECK_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith {

struct GgufFacts {
  size_t file_bytes = 0;
  // Of a split model, whose parts are complete GGUF files; the first has the model's metadata.
  int part = 0;
  int num_parts = 1;
};

// kNotFound: no such file. kIo: unreadable. kCorrupt: anything that breaks the
// format; the sentence begins with the path.
Result<GgufFacts> CheckGguf(const std::string& path);

// The same of a file in memory; `name` stands in the messages.
Result<GgufFacts> CheckGgufBytes(std::span<const std::byte> bytes, std::string_view name);

// Checks all parts of the model that `path` is, or is the first part of, and returns their paths in order.
// kInvalidArgument: `path` is another part. kNotFound: a part is missing.
Result<std::vector<std::string>> CheckModelFiles(const std::string& path, size_t* total_bytes = nullptr);

}  // namespace pith

#endif  // PITH_HOST_GGUF_CHECK_H_
