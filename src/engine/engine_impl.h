// The engine's one implementation, split by purpose: engine.cc runs blocks, engine_evict.cc decides what stays,
// engine_repeat.cc reads a prompt again, engine_session.cc saves and restores.
#ifndef PITH_ENGINE_ENGINE_IMPL_H_
#define PITH_ENGINE_ENGINE_IMPL_H_

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/ledger.h"
#include "cache/kv_cache.h"
#include "engine/cache_formats.h"
#include "engine/engine.h"
#include "engine/layer_ops.h"
#include "engine/merger.h"
#include "engine/plan.h"
#include "engine/sequence.h"
#include "engine/session_file.h"
#include "engine/thread_governor.h"
#include "host/context.h"
#include "policy/cascade.h"

namespace pith {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Eviction while text streams by needs its sinks (StreamingLLM, arXiv:2309.17453);
// a recipe may say otherwise.
inline constexpr int kDefaultSinks = 4;
inline int SinksOf(const Recipe& recipe) { return recipe.num_sinks >= 0 ? recipe.num_sinks : kDefaultSinks; }

class EngineImpl final : public Engine, public AttentionSink {
 public:
  EngineImpl(std::shared_ptr<HostModel> model, const EngineOptions& options) : model_(std::move(model)), options_(options) {}
  ~EngineImpl() override;

  Status Init();

  Result<SequenceId> NewSequence() override;
  Result<SequenceId> Fork(SequenceId sequence) override;
  void Free(SequenceId sequence) override;
  Status Save(SequenceId sequence, const std::string& path, const SessionNote& note) override;
  Result<RestoredSequence> Restore(const std::string& path) override;
  Status Prefill(SequenceId sequence, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                 const Progress& progress) override;
  Status PrefillTogether(std::span<const SequenceId> sequences, std::span<const int32_t> tokens, size_t first_row,
                         std::vector<float>& logits, const Progress& progress) override;
  Status Decode(SequenceId sequence, int32_t token) override;
  Status DecodeBatch(std::span<const SequenceId> sequences, std::span<const int32_t> tokens) override;
  std::span<const float> logits(SequenceId sequence) const override;
  Status FillForBenchmark(SequenceId sequence, int num_tokens) override;
  void SetEviction(bool on) override { eviction_on_ = on; }
  void SetPromptContinues(bool on) override { prompt_continues_ = on; }
  Result<double> Compress(SequenceId sequence, const Recipe& recipe, double keep_fraction) override;
  Result<std::vector<double>> CompressForks(SequenceId source, const Recipe& recipe,
                                            std::span<const CompressTarget> targets) override;
  double KeptBytes(SequenceId sequence) const override;
  std::vector<int32_t> EntryPositions(SequenceId sequence, int layer, int kv_head) const override;
  Result<std::vector<float>> AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer, int num_queries) override;
  int num_tokens(SequenceId sequence) const override { return sequences_.at(sequence).next_position; }
  KvStats stats() const override;
  int decode_threads() const override { return governor_->threads(); }
  EngineTimes times() const override { return times_; }
  const HostModel& model() const override { return *model_; }

  void OnAttention(const AttentionCall& call, const Team& team) override;

 private:
  SessionOwner Owner() const;
  std::vector<PlannedLayer> BuildLayers();
  void AddRecipe(const Recipe& recipe);
  // kUnsupported: a recipe must undo the rotation of queries and cannot.
  Status CheckRotations() const;
  // All threads: full pages of a layer go to the low format.
  void DemoteLayer(const Sequence& sequence, int layer, const Team& team);
  Status DemoteAll(const Sequence& sequence);
  void EvictAcrossLayers(Sequence& sequence);
  Status RunBlock();
  Status RunDecodeBlock();
  void FinishBlock();
  // A layer that the recipe judges by itself has more than the budget between evictions allows.
  bool HoldsTooMuch(const Sequence& sequence, int layer) const;
  void EvictInLayer(const AttentionCall& call, RowGroup& group, const Team& team);
  // Before a block, which may have to be evicted from layer by layer by a recipe that compares layers.
  void PrepareCascade(RowGroup& group);
  // All threads, after each global layer of such a block.
  void CascadeInLayer(const AttentionCall& call, RowGroup& group, const Team& team);
  // Of all global layers and heads, before an eviction.
  int64_t MostEntries() const { return static_cast<int64_t>(plan_.keep_entries + plan_.slack_entries) * num_global_heads_; }
  // One sequence to shrink by the scores of another (or its own). No budget: the running one.
  struct Shrink {
    Sequence* sequence = nullptr;
    std::optional<Budget> budget;
    std::optional<PageFormat> format;  // that what stays is converted to
  };
  // All threads: scores every layer of `source` and keeps what the recipe selects in each of `targets`.
  Status ScoreAndKeep(Sequence& source, const ActiveRecipe& active, int num_sinks, std::span<const Shrink> targets, const Team& team);
  Status ScoreAndKeepOnTeam(Sequence& source, const ActiveRecipe& active, int num_sinks, std::span<const Shrink> targets) {
    Status result;
    context_->RunOnTeam([&](const Team& team) {
      Status status = ScoreAndKeep(source, active, num_sinks, targets, team);
      if (team.ith == 0) result = std::move(status);
    });
    return result;
  }
  // Before ScoreAndKeep() for a recipe with a second reading: fills source.repeat, which may be there already. Nothing
  // else of the source changes. kOutOfBudget, kUnsupported, kCancelled.
  Status ReadAgain(Sequence& source, const ActiveRecipe& active);
  Status RunPass(const Sequence& source, std::span<const int32_t> tokens);
  // One block of one sequence; without all_logits only the last row has some.
  Status RunRows(Sequence& sequence, std::span<const int32_t> tokens, bool all_logits, int num_sparse_rows);
  int PrefixOf(const Sequence& sequence, const Recipe& recipe) const;
  Result<int> ChunkOf(const Sequence& sequence, const RepeatOptions& options, int overhead) const;
  int LayerOf(int global_layer) const;
  // All threads: `kept` of the layer's entries stay, and those of `target` beyond the ones of `source`. kept is
  // thread 0's, written before a sync. The status is thread 0's too.
  Status KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept, const Team& team);
  int64_t EntriesOf(const Sequence& sequence, int layer) const;
  int64_t GlobalEntriesOf(const Sequence& sequence) const;
  void ForgetValueNorms(std::span<HeadCache> heads);
  Error Explained(Error error) const;
  void Fail(const Error& error);
  // After a sync, all threads: fails where one of them was out of pages.
  void FailIfOutOfPages(const Team& team);
  Status CheckRoom(const Sequence& sequence, size_t num_tokens) const;
  // The pinned tokens and `more` of them fit into what stays.
  Status CheckPinned(const Sequence& sequence, int64_t more) const;
  const ActiveRecipe* FindRecipe(const Recipe& recipe) const;
  Budget BlockBudget(int64_t entries, int heads) const;
  // Rows of a block of a prompt that may skip attention work: not those of the prompt's last segment.
  int SparseRows(int count, bool ends) const {
    if (!options_.recipe.prefill) return 0;
    const int segment = options_.recipe.prefill->segment;
    return ends ? (count - 1) / segment * segment : count;
  }
  // Those of all threads, whether all of them run now or not.
  int NumParts(int nth) const { return std::min(std::max(nth, options_.num_threads), nth * kernels::kMaxMembers); }
  bool evicts_while_running() const { return style_.evicts; }

  std::shared_ptr<HostModel> model_;
  EngineOptions options_;
  MemoryPlan plan_;
  EvictionStyle style_;
  CacheFormats formats_;
  std::atomic<bool> out_of_pages_{false};  // a thread of the team found none
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<HostContext> context_;
  std::unique_ptr<LayerOps> ops_;

  std::vector<ActiveRecipe> active_;  // the running recipe first, then those for Compress()
  int num_columns_ = 0;               // of all of them, in pages
  std::vector<std::pair<int, float>> column_initials_;
  std::vector<int> global_index_;     // of each layer among the global ones, -1: not global
  int num_global_layers_ = 0;
  int64_t num_global_heads_ = 0;
  int ring_window_ = 0;
  uint32_t observed_needs_ = 0;  // of the recipes that observe every query
  bool counts_moments_ = false;
  bool reads_again_ = false;  // a recipe may want a second reading, so tokens are remembered
  int spare_slot_ = -1;       // of the host context, for that reading
  std::optional<ThreadGovernor> governor_;
  bool eviction_on_ = true;
  bool prompt_continues_ = false;

  std::map<SequenceId, Sequence> sequences_;
  std::vector<bool> slot_used_;
  SequenceId next_id_ = 0;

  // The block being run.
  std::vector<int32_t> tokens_, positions_, slots_;
  std::vector<uint8_t> wants_logits_;
  std::vector<RowGroup> groups_;
  bool prepared_ = false;  // thread 0's word to the others, read after a sync
  bool evict_now_ = false;
  bool failed_ = false;
  Error error_;
  LayerScores scores_;
  std::vector<LayerScores> all_scores_;
  KeptHeads kept_;                   // of the layer at hand, thread 0's word to the others
  std::vector<KeptHeads> all_kept_;  // of all layers, or of the first ones
  std::vector<Cascade> cascades_;    // of each group of rows
  Merger merger_;
  // While a second reading runs, else null.
  const Policy* repeat_policy_ = nullptr;
  RepeatColumns* repeat_columns_ = nullptr;
  RepeatPass repeat_pass_;
  EngineTimes times_;
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_IMPL_H_
