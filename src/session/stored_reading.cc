#include "session/stored_reading.h"

#include <algorithm>
#include <vector>

#include "base/stopwatch.h"

namespace pith {

Status ReadThroughStore(StoredPrefixes& prefixes, const ReadingKey& key, Conversation& conversation,
                        EngineSequence& sequence, const Progress& progress, StoredReading& reading) {
  const std::vector<int32_t> text(conversation.pending().begin(), conversation.pending().end());
  const size_t num_pinned = conversation.num_pinned();
  reading.taken = prefixes.TakeInto(sequence, key, text, num_pinned);
  if (!sequence.is_there()) PITH_RETURN_IF_ERROR(sequence.Reset());
  size_t done = 0;
  if (reading.taken) {
    done = reading.taken->tokens;
    reading.compute_seconds = reading.taken->compute_seconds;
    // What two texts begin with becomes a context, up to the end of a block, where a third one is likely to meet it.
    if (prefixes.places() && reading.taken->went_back) {
      PITH_ASSIGN_OR_RETURN(const int border, sequence.GoBack(static_cast<int>(done - done % store::kBlockTokens)));
      done = reading.taken->tokens = static_cast<size_t>(border);
      (void)prefixes.Keep(sequence.engine(), sequence.id(), key, std::span(text).first(done),
                          std::min(num_pinned, done), reading.compute_seconds, true);
    }
    conversation.AlreadyRead(done);
  }
  const Engine& engine = sequence.engine();
  const bool cuts = prefixes.places() || !CanAlwaysGoBack(engine.model().info(), engine.options().recipe);
  while (done < text.size()) {
    const size_t cut = cuts ? prefixes.NextCut(key, text, num_pinned, done) : 0;
    const size_t end = cut > 0 ? cut : text.size();
    const Stopwatch watch;
    const size_t first = done;
    PITH_RETURN_IF_ERROR(conversation.Feed(sequence, end - done, [&](size_t part, size_t) {
      return !progress || progress(first + part, text.size());
    }));
    done = end;
    reading.compute_seconds += watch.seconds();
    if (cut > 0) {
      (void)prefixes.Keep(sequence.engine(), sequence.id(), key, std::span(text).first(cut),
                          std::min(num_pinned, cut), reading.compute_seconds, true);
    }
  }
  return {};
}

}  // namespace pith
