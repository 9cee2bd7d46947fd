// The engine's one implementation. It names sequences and hands on; what happens, happens in rooms, each with its own
// header, of which one knows those above it:
//
//   engine_core      what all share: model, context, plan, ledger, cache, layers
//   shrinker         scores a sequence and keeps what its recipe selects
//   evictor          what goes while text is read or written, and when
//   sequence_table   names, bytes and places of sequences
//   block_echo       judges a block by its own queries while it runs
//   block_runner     rows that pass through the graph together, and what becomes of those that fail
//   second_reader    reads a prompt again
//   block_rereader   the same block by block, and evicts by it
//   compressor       compression of what was read
//   turn_keeper      turns of conversations
//   steps            what callers want read, cut into blocks
//
// Beside them, functions that keep nothing: entry_counts, demotion, prune_keys, rewind, splice, saved_sequences,
// inspection.
#ifndef PITH_ENGINE_ENGINE_IMPL_H_
#define PITH_ENGINE_ENGINE_IMPL_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/block_rereader.h"
#include "engine/block_runner.h"
#include "engine/compressor.h"
#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/evictor.h"
#include "engine/second_reader.h"
#include "engine/sequence_table.h"
#include "engine/shrinker.h"
#include "engine/steps.h"
#include "engine/turn_keeper.h"

namespace pith {

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::shared_ptr<HostModel> model, const EngineOptions& options) : core_(std::move(model), options) {}
  Status Init();

  Result<SequenceId> NewSequence(const SequenceOptions& options) override { return table_.New(options); }
  Result<SequenceId> NewSequence() override { return table_.New(); }
  Result<Admission> Admit(const SequenceOptions& options, size_t num_tokens) const override {
    return table_.Admit(options, num_tokens);
  }
  Status SetBudget(SequenceId id, size_t floor_bytes, size_t ceiling_bytes) override;
  Result<SequenceId> Fork(SequenceId id) override;
  Status Rewind(SequenceId id, int num_tokens) override;
  int RewindTarget(SequenceId id, int num_tokens) const override;
  Status Splice(SequenceId target, SequenceId source, int from, int to, bool pin) override;
  SpliceSource Spliceable(SequenceId id) const override;
  void Free(SequenceId id) override;
  Status Save(SequenceId id, const std::string& path, const SessionNote& note, SavedForm form) override;
  Result<RestoredSequence> Restore(const std::string& path, const SequenceOptions& options) override;
  Result<RestoredSequence> Restore(const std::string& path) override { return Restore(path, core_.options); }
  Result<std::vector<std::byte>> SaveToMemory(SequenceId id, const SessionNote& note, SavedForm form) override;
  Result<RestoredSequence> RestoreFromMemory(std::span<const std::byte> saved, const SequenceOptions& options) override;

  void Step(std::span<const StepItem> items, std::span<Status> statuses) override { steps_.Step(items, statuses); }
  int block_tokens() const override { return core_.plan.block_tokens; }
  Status Prefill(SequenceId id, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                 const Progress& progress) override {
    return steps_.Prefill(id, tokens, pin, all_logits, progress);
  }
  Status PrefillTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t first_row,
                         std::vector<float>& logits, const Progress& progress) override {
    return steps_.PrefillTogether(ids, tokens, first_row, logits, progress);
  }
  Status Decode(SequenceId id, int32_t token) override { return DecodeBatch({&id, 1}, {&token, 1}); }
  Status DecodeBatch(std::span<const SequenceId> ids, std::span<const int32_t> tokens) override {
    return steps_.DecodeBatch(ids, tokens);
  }
  std::span<const float> logits(SequenceId id) const override;
  Status FillForBenchmark(SequenceId id, int num_tokens) override;
  void SetEviction(SequenceId id, bool on) override;
  void SetPromptContinues(SequenceId id, bool on) override;

  Result<double> Compress(SequenceId id, const Recipe& recipe, double keep_fraction) override;
  Result<bool> CompressOn(SequenceId id, const Recipe& recipe, double keep_fraction) override;
  Result<double> CompressPart(SequenceId id, const Recipe& recipe, double keep_fraction, int32_t from,
                              int32_t to) override;
  Result<std::vector<double>> CompressForks(SequenceId source, const Recipe& recipe,
                                            std::span<const CompressTarget> targets) override;
  Result<bool> ReadAgain(SequenceId id, const Recipe& recipe, int rows) override;
  Status EndTurn(SequenceId id) override;
  Result<bool> EndTurnOn(SequenceId id) override;
  Result<bool> MakeRoomOn(SequenceId id, int rows) override;
  bool HasRoomFor(SequenceId id, int rows) override;
  Status SetGuide(SequenceId id, std::span<const int32_t> tokens) override;

  std::vector<int32_t> Tokens(SequenceId id) const override;
  std::vector<float> Keys(SequenceId id, int layer, int kv_head, int32_t from, int32_t to) const override;
  LayerQueries Queries(SequenceId id, int layer, int num_queries) const override;
  double KeptBytes(SequenceId id) const override;
  std::vector<float> EntryRows(SequenceId id, int layer, bool values) const override;
  std::vector<int32_t> EntryPositions(SequenceId id, int layer, int kv_head) const override;
  Result<std::vector<std::vector<EntryView>>> EntriesAt(SequenceId id, int32_t position) override;
  Result<std::vector<float>> AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer,
                                              int num_queries) override;
  int num_tokens(SequenceId id) const override;
  KvStats stats() const override;
  SequenceStats stats(SequenceId id) const override;
  int decode_threads() const override { return runner_.decode_threads(); }
  EngineTimes times() const override { return core_.times; }
  const HostModel& model() const override { return *core_.model; }
  const EngineOptions& options() const override { return core_.options; }
  void Cancel(SequenceId id) override { runner_.cancels().Add(id); }
  using Engine::Cancel;

 private:
  EngineCore core_;
  Shrinker shrinker_{core_};
  Evictor evictor_{core_, shrinker_};
  SequenceTable table_{core_, evictor_};
  BlockRunner runner_{core_, table_, evictor_};
  SecondReader reader_{core_, runner_, cancelled_};
  BlockRereader rereader_{core_, shrinker_, reader_};
  Compressor compressor_{core_, table_, shrinker_, reader_};
  TurnKeeper turns_{core_, compressor_};
  Steps steps_{core_, table_, runner_, rereader_, turns_, cancelled_};
};

}  // namespace pith

#endif  // PITH_ENGINE_ENGINE_IMPL_H_
