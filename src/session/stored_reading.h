// Reads a text into an empty sequence with the help of a store: from where the store's prefix ends, in pieces that the
// store keeps.
#ifndef PITH_SESSION_STORED_READING_H_
#define PITH_SESSION_STORED_READING_H_

#include <cstddef>
#include <optional>

#include "session/conversation.h"
#include "session/stored_prefixes.h"
#include "session/token_sequence.h"

namespace pith {

struct StoredReading {
  std::optional<StoredPrefixes::Taken> taken;  // what the store gave
  double compute_seconds = 0;  // that reading the whole text takes, as it was measured here and before
};

// Reads what is queued; the whole is the caller's to keep (StoredPrefixes::Keep). Errors are those of reading, for
// which `reading` says how far it came.
Status ReadThroughStore(StoredPrefixes& prefixes, const ReadingKey& key, Conversation& conversation,
                        EngineSequence& sequence, const Progress& progress, StoredReading& reading);

}  // namespace pith

#endif  // PITH_SESSION_STORED_READING_H_
