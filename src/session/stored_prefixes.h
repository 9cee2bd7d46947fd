// Sequences to and from a store of prefixes (src/store): which objects stand for a text that an engine would read, when
// it pays to load one, and what is worth keeping.
//
// Threads: the engine's.
#ifndef PITH_SESSION_STORED_PREFIXES_H_
#define PITH_SESSION_STORED_PREFIXES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/engine.h"
#include "session/context_placer.h"
#include "store/store.h"

namespace pith {

class EngineSequence;

// How a text is read, as far as the bytes of its cache depend on it.
struct ReadingKey {
  std::string recipe;       // its text
  std::string format;       // StoredFormat()
  std::string compress;     // what happens to the whole prompt once it is read; empty: nothing
  size_t budget_bytes = 0;  // of the sequence; matters where entries were dropped
  std::string tenant;
};

class StoredPrefixes {
 public:
  // Text of fewer tokens is not kept: it is read as fast as it is loaded.
  static constexpr size_t kLeastTokens = 64;

  StoredPrefixes(std::shared_ptr<store::Store> store, const HostModel& model);

  struct Taken {
    size_t tokens = 0;           // of the text that need not be read
    bool has_logits = false;     // the text ends there, and its logits are there
    bool went_back = false;      // from an object that parts from the text
    store::Tier tier = store::Tier::kRam;
    double load_seconds = 0;     // until the sequence was there
    double compute_seconds = 0;  // that reading these tokens takes
  };
  // Places contexts (store: place=evicpress); null: nobody does.
  void SetPlacer(std::unique_ptr<ContextPlacer> placer) { placer_ = std::move(placer); }
  bool places() const { return placer_ != nullptr; }
  // One context more. False: none is left. The engine has room for kPlacerSequences more.
  bool PlaceNext(Engine& engine);
  // Contexts whose place is memory come into it.
  void Warm();

  // Makes a sequence of saved bytes and goes back to `tokens` of the text or fewer. Returns how many it has then; 0:
  // it is of no use.
  using Adopt = std::function<Result<size_t>(std::span<const std::byte> saved, size_t tokens)>;
  // The object that saves most, if that is more than `at_least` tokens and pays. num_pinned: of the text's tokens.
  // Counts the lookup. None: a miss, whatever the reason.
  std::optional<Taken> Take(const ReadingKey& key, std::span<const int32_t> text, size_t num_pinned, size_t at_least,
                            const Adopt& adopt);
  // The same for an EngineSequence, which is empty after a miss.
  std::optional<Taken> TakeInto(EngineSequence& sequence, const ReadingKey& key, std::span<const int32_t> text,
                                size_t num_pinned);

  // Stores what a sequence has read. compute_seconds: that reading all of `text` takes. Objects that it makes
  // superfluous go. False: nothing was stored, or it is there already. is_context: others will begin with it.
  bool Keep(Engine& engine, SequenceId sequence, const ReadingKey& key, std::span<const int32_t> text,
            size_t num_pinned, double compute_seconds, bool is_context = false);

  // Where to stop reading `text` and keep what was read so far, behind `from`: where it parts from texts that were read
  // before, and at the end of what is pinned. 0: nowhere. Worth asking where a sequence cannot go back.
  size_t NextCut(const ReadingKey& key, std::span<const int32_t> text, size_t num_pinned, size_t from);

  store::Store& store() { return *store_; }

 private:
  // Spaces of caches that lost nothing, and of those that did.
  struct Roots {
    Sha256Digest whole, dropped;
  };
  Roots RootsOf(const ReadingKey& key) const;
  bool Pays(const store::Match& match) const;
  // Until a sequence is there, as far as it was measured.
  double LoadBytesPerSecond(store::Tier tier) const;

  const std::shared_ptr<store::Store> store_;
  const std::string model_;        // fingerprint; empty: its files can't be read, and nothing is stored
  const std::string description_;
  std::unique_ptr<ContextPlacer> placer_;
  double restore_bytes_per_second_ = 0;  // moving average; 0: not known yet
};

// Sequences of this model go back to any place only where nothing was dropped, slides or recurs.
bool CanAlwaysGoBack(const ModelInfo& info, const Recipe& recipe);

// Of the engine's own sequences, and how their entries are saved where that moves them.
std::string StoredFormat(const Engine& engine);

// The key of what an engine's own sequences read.
ReadingKey KeyOfEngine(const Engine& engine);

}  // namespace pith

#endif  // PITH_SESSION_STORED_PREFIXES_H_
