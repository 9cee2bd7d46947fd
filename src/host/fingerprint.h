// Whether files are those that a session was saved with.
#ifndef PITH_HOST_FINGERPRINT_H_
#define PITH_HOST_FINGERPRINT_H_

#include <cstdint>
#include <span>
#include <string>

#include "pith/types.h"

namespace pith {

// Of the files' contents and sizes, in order. All bytes where the files have 256 MiB together (adapters and small
// models: 30 ms from the page cache); of more, 16,384 pieces of 4 KiB at equal distances beside the first MiB, which
// has the metadata. So weights that differ throughout, as another training makes them, are told apart at any size; a
// few changed bytes of a large model, or a forgery, need not be. kIo: a file can no longer be read.
Result<uint64_t> ContentFingerprint(std::span<const std::string> paths);

}  // namespace pith

#endif  // PITH_HOST_FINGERPRINT_H_
