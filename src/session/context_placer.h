// EVICPRESS over a store (store/placement.h): what each context is worth when it is compressed is measured on the model
// itself, then contexts are compressed and moved between memory and disk as the placement says.
//
// A context is an object whose configuration begins with kContextMark: text that others were seen, or are expected, to
// begin with. Its quality under a method and ratio is the mean over probes of exp(-KL(full || compressed)) over the
// tokens with which the model goes on from the probe. A probe is a few tokens from within the context, read again
// behind its end: an answer must look them up. Once texts have gone on behind a context, what they began with are its
// probes; a context that is still whole is profiled by them anew, and where its quality differs from what was
// thought, or uses have changed, all are placed anew, if that is worth the copies.
//
// Threads: the engine's.
#ifndef PITH_SESSION_CONTEXT_PLACER_H_
#define PITH_SESSION_CONTEXT_PLACER_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "store/placement.h"
#include "store/store.h"

namespace pith {

inline constexpr const char* kContextMark = "context";

// Sequences beside its own that an engine needs for this.
inline constexpr int kPlacerSequences = 3;

struct PlacerOptions {
  // Share of its quality that a context may lose before it is moved to the disk instead: so much is worth loading an
  // average context from there.
  double quality_loss = 0.03;
  // Two of the paper's, and one that first lowers entries to four bits: a share dropped is one of bytes.
  std::vector<std::string> methods = {"keydiff", "knorm", "score=keydiff:recent=16 alloc=ada:alpha=0.5 format=q4"};
  std::vector<double> ratios = {0, 0.3, 0.5, 0.66, 0.85};
  size_t num_probes = 3;
  size_t probe_tokens = 12;
  size_t answer_tokens = 12;
  double half_life_seconds = 3600;  // of uses
  double drift = 0.05;              // of mean quality, for which all are placed anew
  double gain = 0.05;               // of what loading and losses cost, below which nothing is copied
};

struct TierSpeeds {  // bytes a second, until a sequence is there
  double ram = 0, ssd = 0;
};

class ContextPlacer {
 public:
  // kInvalidArgument: a method is no recipe.
  static Result<std::unique_ptr<ContextPlacer>> Make(std::shared_ptr<store::Store> store, PlacerOptions options);

  // Profiles one context that has no place yet, decides, and carries out what follows; else looks after one whose texts
  // went on otherwise than its probes, or after all where uses have changed. False: there is nothing to be done.
  bool PlaceNext(Engine& engine, const TierSpeeds& speeds);
  // A text began with the context (any object may be named), and went on with these tokens.
  void NoteUse(const store::Key& key, std::span<const int32_t> rest);
  // Contexts whose place is memory are loaded into it.
  void Warm();

  // Contexts that were profiled again by real texts, and how often all were placed anew.
  uint64_t num_refreshed() const { return num_refreshed_; }
  uint64_t num_rearranged() const { return num_rearranged_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Uses {
    double count = 0;  // decayed
    Clock::time_point last{};
    std::vector<std::vector<int32_t>> probes;  // what the last texts went on with
    size_t fresh = 0;                          // of them, since the last profile
    std::vector<double> quality;               // as they say; empty: as the configuration says
  };
  struct Context {
    store::ObjectInfoPtr info;
    double full_bytes = 0;
    double frequency = 1;
    std::vector<double> quality;  // [methods, ratios]; empty: not profiled yet
    store::Configuration at;
  };

  ContextPlacer(std::shared_ptr<store::Store> store, PlacerOptions options, std::vector<Recipe> methods)
      : store_(std::move(store)), options_(std::move(options)), methods_(std::move(methods)) {}
  std::vector<Context> Contexts() const;
  double CountOf(const Uses& uses) const;
  store::PlacementOptions PlacementFor(const std::vector<Context>& contexts, const TierSpeeds& speeds) const;
  bool PlaceNew(Engine& engine, std::vector<Context> contexts, const TierSpeeds& speeds);
  bool RefreshOne(Engine& engine, std::vector<Context>& contexts, const TierSpeeds& speeds);
  bool HaveUsesChanged(const std::vector<Context>& contexts) const;
  void Rearrange(Engine& engine, std::vector<Context>& contexts, const TierSpeeds& speeds);
  // [methods, ratios], of a sequence that has read `text`.
  Result<std::vector<double>> Profile(Engine& engine, SequenceId sequence, std::span<const int32_t> text,
                                      const std::vector<std::vector<int32_t>>& real);
  bool ReadConfig(const std::string& text, Context& context) const;
  std::string WriteConfig(const Context& context) const;
  Result<std::vector<double>> ProfileStored(Engine& engine, const Context& context);
  // Logits of the answer's tokens; `answer` empty: it is generated first. Leaves the sequence as it is.
  Result<std::vector<float>> AnswerLogits(Engine& engine, SequenceId sequence, std::span<const int32_t> probe,
                                          std::vector<int32_t>& answer) const;
  Status Carry(Engine& engine, const Context& context, const store::Configuration& to);

  const std::shared_ptr<store::Store> store_;
  const PlacerOptions options_;
  const std::vector<Recipe> methods_;
  std::set<store::Key> failed_;  // not tried again
  std::map<store::Key, Uses> uses_;
  std::map<store::Key, double> placed_for_;  // counts of uses with which all were placed anew last
  uint64_t num_refreshed_ = 0, num_rearranged_ = 0;
};

}  // namespace pith

#endif  // PITH_SESSION_CONTEXT_PLACER_H_
