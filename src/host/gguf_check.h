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

#include "pith/types.h"

namespace pith {

// kNotFound: no such file. kIo: unreadable. kCorrupt: anything that breaks the
// format; the sentence begins with the path. Each part of a split model is a
// complete GGUF and is checked by itself.
Status CheckGguf(const std::string& path);

// The same of a file in memory; `name` stands in the messages.
Status CheckGgufBytes(std::span<const std::byte> bytes, std::string_view name);

}  // namespace pith

#endif  // PITH_HOST_GGUF_CHECK_H_
