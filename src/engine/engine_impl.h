// The engine's one implementation, split by purpose: engine.cc makes and ends sequences, engine_step.cc runs blocks,
// engine_attention.cc what happens in their layers, engine_evict.cc decides what stays, engine_compress.cc shrinks what
// was read, engine_repeat.cc reads a prompt again, engine_rewind.cc goes back, engine_splice.cc takes over what another
// sequence has read, engine_session.cc saves and restores.
#ifndef PITH_ENGINE_ENGINE_IMPL_H_
#define PITH_ENGINE_ENGINE_IMPL_H_

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/ledger.h"
#include "base/thread_governor.h"
#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/layer_ops.h"
#include "engine/merger.h"
#include "engine/plan.h"
#include "engine/sequence.h"
#include "engine/session_file.h"
#include "engine/stand_ins.h"
#include "engine/statistics_undo.h"
#include "host/context.h"
#include "policy/cascade.h"

namespace pith {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

inline int32_t PositionOf(const HeadCache& head, int entry) {
  return head.layout_of(entry).positions(head.page_of(entry))[entry % kPageEntries];
}
class EngineImpl final : public Engine, public AttentionSink {
 public:
  EngineImpl(std::shared_ptr<HostModel> model, const EngineOptions& options)
      : model_(std::move(model)), options_(options) {}
  ~EngineImpl() override;

  Status Init();

  Result<SequenceId> NewSequence(const SequenceOptions& options) override;
  Result<SequenceId> NewSequence() override {
    return AddSequence(default_setup_, options_.floor_bytes, options_.ceiling_bytes);
  }
  Result<Admission> Admit(const SequenceOptions& options, size_t num_tokens) const override;
  Status SetBudget(SequenceId sequence, size_t floor_bytes, size_t ceiling_bytes) override;
  Result<SequenceId> Fork(SequenceId sequence) override;
  Status Rewind(SequenceId sequence, int num_tokens) override;
  int RewindTarget(SequenceId sequence, int num_tokens) const override;
  Status Splice(SequenceId target, SequenceId source, int from, int to, bool pin) override;
  SpliceSource Spliceable(SequenceId sequence) const override;
  void Free(SequenceId sequence) override;
  Status Save(SequenceId sequence, const std::string& path, const SessionNote& note, SavedForm form) override;
  Result<RestoredSequence> Restore(const std::string& path, const SequenceOptions& options) override;
  Result<RestoredSequence> Restore(const std::string& path) override { return Restore(path, options_); }
  Result<std::vector<std::byte>> SaveToMemory(SequenceId sequence, const SessionNote& note, SavedForm form) override;
  Result<RestoredSequence> RestoreFromMemory(std::span<const std::byte> saved, const SequenceOptions& options) override;
  void Step(std::span<const StepItem> items, std::span<Status> statuses) override;
  int block_tokens() const override { return plan_.block_tokens; }
  Status Prefill(SequenceId sequence, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                 const Progress& progress) override;
  Status PrefillTogether(std::span<const SequenceId> sequences, std::span<const int32_t> tokens, size_t first_row,
                         std::vector<float>& logits, const Progress& progress) override;
  Status Decode(SequenceId sequence, int32_t token) override;
  Status DecodeBatch(std::span<const SequenceId> sequences, std::span<const int32_t> tokens) override;
  std::span<const float> logits(SequenceId sequence) const override;
  Status FillForBenchmark(SequenceId sequence, int num_tokens) override;
  void SetEviction(SequenceId sequence, bool on) override;
  void SetPromptContinues(SequenceId sequence, bool on) override;
  Result<double> Compress(SequenceId sequence, const Recipe& recipe, double keep_fraction) override;
  Result<double> CompressPart(SequenceId sequence, const Recipe& recipe, double keep_fraction, int32_t from,
                              int32_t to) override;
  Result<std::vector<double>> CompressForks(SequenceId source, const Recipe& recipe,
                                            std::span<const CompressTarget> targets) override;
  Result<bool> ReadAgain(SequenceId sequence, const Recipe& recipe, int rows) override;
  Status EndTurn(SequenceId sequence) override;
  Status SetGuide(SequenceId sequence, std::span<const int32_t> tokens) override;
  std::vector<int32_t> Tokens(SequenceId sequence) const override {
    const Sequence* const found = Lookup(sequence);
    return found != nullptr ? found->tokens : std::vector<int32_t>();
  }
  std::vector<float> Keys(SequenceId sequence, int layer, int kv_head, int32_t from, int32_t to) const override;
  LayerQueries Queries(SequenceId sequence, int layer, int num_queries) const override;
  double KeptBytes(SequenceId sequence) const override;
  std::vector<float> EntryRows(SequenceId sequence, int layer, bool values) const override;
  std::vector<int32_t> EntryPositions(SequenceId sequence, int layer, int kv_head) const override;
  Result<std::vector<std::vector<EntryView>>> EntriesAt(SequenceId sequence, int32_t position) override;
  Result<std::vector<float>> AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer,
                                              int num_queries) override;
  int num_tokens(SequenceId sequence) const override;
  KvStats stats() const override;
  SequenceStats stats(SequenceId sequence) const override;
  int decode_threads() const override { return token_governor_->threads(); }
  EngineTimes times() const override { return times_; }
  const HostModel& model() const override { return *model_; }
  const EngineOptions& options() const override { return options_; }
  void Cancel(SequenceId sequence) override;
  using Engine::Cancel;

  void OnAttention(const AttentionCall& call, const Team& team) override;
  bool ShouldStop() override;

 private:
  // Sequences (engine.cc).
  using SetupPtr = std::shared_ptr<const SequenceSetup>;
  Status InitBudget();
  EngineOptions WithDefaults(const SequenceOptions& options) const;
  Result<SequenceId> AddSequence(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes);
  // An account, a slot and what is remembered beside pages; no cache yet. kOutOfBudget.
  Result<std::unique_ptr<Sequence>> MakeSequence(const SetupPtr& setup, size_t floor_bytes, size_t ceiling_bytes);
  Status HoldOwnBytes(Sequence& sequence) const;
  Result<SequenceId> Register(std::unique_ptr<Sequence> sequence);
  int FreeSlot() const;
  // Makes borrowed bytes free until so many are: sequences that drop go back to their floors. False: they are not
  // there.
  bool Reclaim(size_t bytes, const Sequence* except);
  void PlanOwnShare(Sequence& sequence, size_t bytes) const;
  // Null: there is none of that name.
  Sequence* Lookup(SequenceId id) const;
  // The sequence, or why it cannot be used.
  Result<Sequence*> Find(SequenceId id) const;

  // Going back (engine_rewind.cc).
  // From the whole sequence to [least, most] of its tokens, or less exactly where pages of few bits begin.
  struct RewindRange {
    int least = 0;
    int most = 0;
    int whole_pages = 0;        // below this, only multiples of a page's entries
    const char* reason = "";    // of `most`, a part of a sentence
  };
  RewindRange RangeOf(const Sequence& sequence) const;
  void LimitByRecipe(const Sequence& sequence, RewindRange& range) const;
  void LimitByHeads(const Sequence& sequence, RewindRange& range) const;
  Status Empty(Sequence& sequence);
  bool IsTurnEnd(const Sequence& sequence, int num_tokens) const;
  int TurnTarget(const Sequence& sequence, int num_tokens) const;

  // Text that was read elsewhere (engine_splice.cc).
  Status CheckSplices(const Sequence& sequence) const;
  Status ExtendAll(Sequence& sequence, int count);
  void CopyTurned(const Sequence& source, const Sequence& target, int from, int count);

  // For people who look (engine_inspect.cc).
  static bool CanJudge(const Sequence& sequence);

  // Blocks (engine_step.cc).
  Status CheckItem(const Sequence& sequence, const StepItem& item) const;
  Status CheckRoom(const Sequence& sequence, size_t num_tokens) const;
  // The pinned tokens and `more` of them fit into what stays.
  Status CheckPinned(const Sequence& sequence, int64_t more) const;
  // Rows of one more sequence for the block being built.
  void AddGroup(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits, int num_sparse_rows);
  void BeginBlock();
  // Holds the bytes that the block's rows take; a group that cannot have them is left out with its error.
  void ReserveBlock();
  Status ReserveGroup(Sequence& sequence, int num_rows);
  void ReleaseBlock();
  // Room for what statistics were, as far as there is any: before rows are promised bytes, and then for what is there.
  void PlanUndo();
  void LeaveOutFailed();
  size_t BytesToExtend(const Sequence& sequence, int num_rows) const;
  // Of a sequence that converts full pages: what it will hold more when the rows are read, at most.
  size_t BytesToKeep(const Sequence& sequence, int num_rows) const;
  // Runs the groups of the block; their errors are in groups_.
  void RunBlock();
  void BeginGroup(RowGroup& group);
  Status CheckHostBytes();
  void FinishBlock();
  void FinishGroup(RowGroup& group);
  void CopyRows(const RowGroup& group, std::vector<float>& to);
  void EndItems(std::span<const StepItem> items, std::span<Status> statuses);
  // Takes back what a failed group's rows have left in the cache, or declares its sequence lost.
  void RollBack(RowGroup& group);
  // One block of one sequence.
  Status RunRows(Sequence& sequence, std::span<const int32_t> tokens, size_t first_logits, int num_sparse_rows);
  // Rows of a block of a prompt that may skip attention work: not those of the prompt's last segment.
  static int SparseRows(const Sequence& sequence, int count, bool ends);
  // Those of all threads, whether all of them run now or not.
  int NumParts(int nth) const { return std::min(std::max(nth, options_.num_threads), nth * kernels::kMaxMembers); }
  Error FullError(const Sequence& sequence) const;
  void TakeCancels();
  Status CopyHidden(const RowGroup& group, std::vector<float>& to);

  // Layers (engine_attention.cc).
  void PrepareLayer(const AttentionCall& call, const Team& team);
  void ClearOutput(const AttentionCall& call, const RowGroup& group, const Team& team) const;
  void ActInLayer(const AttentionCall& call, const Team& team);
  // Thread 0: the last queries of all groups, for recipes that look at them.
  void KeepQueries(const AttentionCall& call, int global_layer);
  void DropOutOfWindow(RowGroup& group, int layer);
  // Demote() would convert pages of entries that were there before the group's rows.
  bool DemotesOld(const RowGroup& group, int layer) const;

  // Eviction (engine_evict.cc).
  // All threads: full pages of a layer go to the low format.
  void DemoteLayer(int layer, const Team& team);
  Status DemoteAll(const Sequence& sequence);
  Status EvictAcrossLayers(const RowGroup& group);
  // By the running recipe, to what its share keeps.
  Status EvictAll(Sequence& sequence);
  // Down to what the sequence's share keeps, whatever its schedule says. kOutOfBudget.
  Status EvictToShare(Sequence& sequence);
  // A layer that the recipe judges by itself has more than the budget between evictions allows.
  bool HoldsTooMuch(const RowGroup& group, int layer) const;
  void EvictInLayer(const AttentionCall& call, RowGroup& group, const Team& team);
  // All threads, right after LayerOps::Score() into scores_. True: it failed, and so has the group.
  bool FailByFault(RowGroup& group, const Team& team);
  // All threads, after a loop with TakeSelection(). True: it was none, and the group has failed.
  bool FailBySelection(RowGroup& group, const Team& team);
  template <typename T>
  void TakeSelection(Result<T> selected, T& into);
  // Before a block, which may have to be evicted from layer by layer by a recipe that compares layers.
  void PrepareCascade(RowGroup& group);
  // All threads, after each global layer of such a block.
  void CascadeInLayer(const AttentionCall& call, RowGroup& group, const Team& team);
  // Of all global layers and heads, before an eviction.
  int64_t MostEntries(const RowGroup& group) const;
  // One sequence to shrink by the scores of another (or its own). No budget: the running one.
  struct Shrink {
    Sequence* sequence = nullptr;
    std::optional<Budget> budget;
    std::optional<PageFormat> format;  // that what stays is converted to
    std::optional<PageFormat> lower = {};  // that what does not stay is converted to (act=demote)
  };
  // Of each global layer and kv head: the channels that keys keep (act=prune).
  using ChosenChannels = std::vector<std::vector<std::vector<uint16_t>>>;
  // By the last queries of `source` and what `target` holds.
  ChosenChannels ChooseChannels(const Sequence& source, const Sequence& target, const PruneOptions& prune);
  // Old pages lose all other channels; those of a sequence that has lost some already lose the same.
  Status PruneKeys(const Sequence& target, const PruneOptions& prune, const ChosenChannels& chosen);
  // All threads: scores every layer of `source` and keeps what the recipe selects in each of `targets`.
  Status ScoreAndKeep(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                      std::span<const Shrink> targets, const Team& team);
  Status ScoreAndKeepOnTeam(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                            std::span<const Shrink> targets);
  // All threads: `kept` of the layer's entries stay, and those of `target` beyond the ones of `source`. kept is
  // thread 0's, written before a sync. The status is thread 0's too.
  Status KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept,
                   const Team& team);
  // What does not stay of one head joins its state, where the recipe has states.
  Status KeepInHead(const Policy& policy, int layer, size_t h, HeadCache& head, std::span<const int32_t> kept) const;
  // Of the slice of the heads that was judged, as entries of whole heads, with those beside it.
  void WidenToHeads(const Sequence& source, const EntryGuard& guard, int layer, KeptHeads& kept) const;
  // All threads, before KeepHeads(): entries that stand in for what goes take the places of some of it, which are then
  // kept, too.
  Status MakeStandIns(const Policy& policy, Sequence& source, const EntryGuard& guard, const Shrink& target,
                      const Budget& budget, int layer, KeptHeads& kept, const Team& team);
  int StandInsBeside(const Sequence& source, const EntryGuard& guard, int first_layer,
                     std::span<const KeptHeads> layers, const Policy& policy, const Budget& budget) const;
  int64_t EntriesOf(const Sequence& sequence, int layer) const;
  // Of these, what counts against a share: with act=demote those that were not lowered.
  int64_t HeldOf(const Sequence& sequence, int layer) const;
  int64_t GlobalHeldOf(const Sequence& sequence) const;
  // Of each head of so many entries, after an eviction.
  static int KeepOf(const Sequence& sequence, double entries);
  // From the order of time to that of the cache, where they differ.
  void ToIndices(const Sequence& source, int layer, KeptHeads& kept) const;
  int64_t GlobalEntriesOf(const Sequence& sequence) const;
  void ForgetValueNorms(const Sequence& sequence, std::span<HeadCache> heads);
  Budget BlockBudget(const Sequence& sequence, int64_t entries, int heads) const;
  int LayerOf(int global_layer) const;

  // Compression (engine_compress.cc).
  Result<ActiveRecipe> ActiveFor(const Sequence& sequence, const ResolvedRecipe& recipe) const;
  // Of what a caller gave.
  Result<ActiveRecipe> ActiveFor(const Sequence& sequence, const Recipe& recipe) const;
  // kInvalidArgument: the recipe cannot work on what the sequence is stored in.
  Status CheckFormat(const Sequence& sequence, const ResolvedRecipe& recipe) const;
  Result<Shrink> ShrinkByDemotion(const ResolvedRecipe& recipe, Sequence& target, double mean, double bytes) const;
  Result<Shrink> ShrinkFor(const ActiveRecipe& active, Sequence& target, double mean, double keep) const;
  Status RunCompression(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                        std::vector<Shrink>& shrinks, bool selects, FlightLoan& loan);

  // As CompressPart(), of a part that is there and a recipe that is known. keep: entries per head.
  Status ShrinkPart(Sequence& sequence, const ActiveRecipe& active, const EntryGuard& part, double keep);
  // Entries of global layers within the part, over all heads.
  int64_t EntriesWithin(const Sequence& sequence, int32_t from, int32_t to) const;

  // Turns of a conversation (engine_turns.cc).
  // Before rows are read into a sequence whose recipe has turns=: what it holds is compressed, where there would be no
  // room for them.
  Status MakeRoomForRows(Sequence& sequence, int num_rows);
  bool HasRoomForRows(const Sequence& sequence, int num_rows) const;
  Status CloseTurn(Sequence& sequence);
  // What CloseTurn() will do with the running turn.
  struct TurnPlan {
    FrozenTurn turn;
    double keep = 0;      // entries per head
    bool drops = false;   // some of its entries
    int num_dropped = 0;  // turns before it, the oldest first
  };
  // None: nothing was read in it.
  std::optional<TurnPlan> PlanTurn(const Sequence& sequence) const;
  Status CompressTurn(Sequence& sequence, const TurnPlan& plan);
  Status CompressToBlock(Sequence& sequence);
  Status ShrinkOrDrop(Sequence& sequence, const EntryGuard& part, double keep);
  static int MostGuideTokens(const Sequence& sequence, const RepeatOptions& repeat);
  int RowsAtOnce(const Sequence& sequence) const;
  Status DropOldestTurn(Sequence& sequence);
  double EntriesPerHead(const Sequence& sequence, FrozenTurn turn) const;
  // Entries per head that turns which are over may hold.
  double TurnCap(const Sequence& sequence) const;

  // Second readings (engine_repeat.cc).
  // run() -> its result; all that it takes is the recipe's time.
  template <typename Run>
  auto AsRecipesTime(const Run& run) {
    const EngineTimes before = times_;
    const Clock::time_point began = Clock::now();
    auto result = run();
    const double seconds = SecondsSince(began);
    times_ = {.attention = before.attention, .policy = before.policy + seconds, .total = before.total + seconds};
    return result;
  }
  // Before ScoreAndKeep() for a recipe with a second reading: fills source.repeat, which may be there already. Nothing
  // else of the source changes. kOutOfBudget, kUnsupported, kCancelled.
  // part: of the sequence's tokens, only these are repeated.
  Status ReadAll(Sequence& source, const ActiveRecipe& active, const EntryGuard& part);
  // The same by so many rows. True: source.repeat is there.
  Result<bool> ReadOn(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int rows);
  Status BeginReading(Sequence& source, const ActiveRecipe& active, const EntryGuard& part);
  void EndReading(Sequence& source);
  Result<bool> BeginPass(Sequence& source, SecondReading& reading);
  Result<std::unique_ptr<Sequence>> ForkForPass(Sequence& source);
  Status ReadPass(Sequence& source, SecondReading& reading, int rows);
  void EndPass(Sequence& source, SecondReading& reading);
  std::vector<int32_t> GuideOf(const Sequence& source, const RepeatOptions& options) const;
  Status ReserveReferences(const Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int chunk,
                           int overhead, RepeatColumns& columns) const;
  int PrefixOf(const Sequence& sequence, const ResolvedRecipe& recipe) const;
  Result<int> ChunkOf(const Sequence& sequence, const ActiveRecipe& active, int overhead) const;
  // Logits of the last block outlive the next one.
  void KeepLogits();

  // Sessions (engine_session.cc).
  SessionOwner Owner(const SequenceSetup& setup) const;
  std::optional<CodedForm> CodedFormOf(SavedForm form) const;
  // read(owner, sequence, note) fills a new sequence.
  template <typename Read>
  Result<RestoredSequence> RestoreFrom(const SequenceOptions& options, const Read& read);

  std::shared_ptr<HostModel> model_;
  EngineOptions options_;
  MemoryPlan plan_;
  SetupPtr default_setup_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<MemoryAccount> flight_;  // promised to the rows of the next step
  size_t flight_bytes_ = 0;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<HostContext> context_;
  std::unique_ptr<LayerOps> ops_;
  std::optional<ThreadGovernor> token_governor_, block_governor_;  // of steps with one row per sequence; of others

  std::vector<int> global_index_;  // of each layer among the global ones, -1: not global
  std::vector<int> global_layers_;  // those that are
  int num_global_layers_ = 0;
  int64_t num_global_heads_ = 0;
  int spare_slot_ = -1;  // of the host context, for second readings
  bool is_spare_used_ = false;

  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<bool> slot_used_;
  SequenceId next_id_ = 0;
  std::mutex cancel_mutex_;
  std::set<SequenceId> cancels_;  // by cancel_mutex_
  std::atomic<bool> has_cancels_{false};

  // The block being run.
  std::vector<int32_t> tokens_, positions_, slots_;
  std::vector<uint8_t> wants_logits_;
  std::vector<RowGroup> groups_;
  bool wants_hidden_ = false;  // of the block
  std::vector<Status> step_statuses_;  // of decoding
  std::vector<StepItem> step_items_;
  std::vector<size_t> item_of_group_;
  bool in_block_ = false;  // libllama's graph runs
  LayerScores scores_;
  std::vector<LayerScores> all_scores_;
  KeptHeads kept_;                   // of the layer at hand, thread 0's word to the others
  std::vector<KeptHeads> all_kept_;  // of all layers, or of the first ones
  Status select_status_;             // of the policy that was to write them
  int num_stand_ins_ = 0;            // of each head for which new entries are made
  std::vector<Cascade> cascades_;    // of each group of rows
  std::vector<StatisticsUndo> undos_;  // likewise
  Merger merger_;
  // While a second reading runs, else null.
  const Policy* repeat_policy_ = nullptr;
  RepeatColumns* repeat_columns_ = nullptr;
  RepeatPass repeat_pass_;
  EngineTimes times_;
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_IMPL_H_
