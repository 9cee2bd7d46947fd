#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "engine/engine_impl.h"
#include "engine/inspection.h"
#include "engine/rewind.h"
#include "engine/saved_sequences.h"
#include "engine/splice.h"
#include "engine/synthetic.h"

namespace pith {

Status EngineImpl::Init() {
  PITH_RETURN_IF_ERROR(core_.Init(&runner_));
  runner_.Init();
  return {};
}

Status EngineImpl::SetBudget(SequenceId id, size_t floor_bytes, size_t ceiling_bytes) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return table_.SetBudget(*sequence, floor_bytes, ceiling_bytes);
}

Result<SequenceId> EngineImpl::Fork(SequenceId id) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const source, table_.Find(id));
  return table_.Fork(*source);
}

void EngineImpl::Free(SequenceId id) {
  table_.Free(id);
  runner_.cancels().Remove(id);
}

Status EngineImpl::Rewind(SequenceId id, int num_tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return pith::Rewind(core_, *sequence, num_tokens);
}

int EngineImpl::RewindTarget(SequenceId id, int num_tokens) const {
  const Result<Sequence*> found = table_.Find(id);
  return found ? pith::RewindTarget(core_, **found, num_tokens) : 0;
}

Status EngineImpl::Splice(SequenceId target_id, SequenceId source_id, int from, int to, bool pin) {
  PITH_ASSIGN_OR_RETURN(Sequence* const target, table_.Find(target_id));
  PITH_ASSIGN_OR_RETURN(const Sequence* const source, table_.Find(source_id));
  return pith::Splice(core_, table_, *target, *source, from, to, pin);
}

SpliceSource EngineImpl::Spliceable(SequenceId id) const {
  const Result<Sequence*> found = table_.Find(id);
  return found ? pith::Spliceable(core_, **found) : SpliceSource();
}

Status EngineImpl::Save(SequenceId id, const std::string& path, const SessionNote& note, SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, table_.Find(id));
  return pith::Save(core_, *sequence, path, note, form);
}

Result<std::vector<std::byte>> EngineImpl::SaveToMemory(SequenceId id, const SessionNote& note, SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, table_.Find(id));
  return pith::SaveToMemory(core_, *sequence, note, form);
}

Result<RestoredSequence> EngineImpl::Restore(const std::string& path, const SequenceOptions& options) {
  return pith::Restore(core_, table_, path, options);
}

Result<RestoredSequence> EngineImpl::RestoreFromMemory(std::span<const std::byte> saved,
                                                       const SequenceOptions& options) {
  return pith::RestoreFromMemory(core_, table_, saved, options);
}

std::span<const float> EngineImpl::logits(SequenceId id) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? LogitsOf(core_, *sequence) : std::span<const float>();
}

void EngineImpl::SetEviction(SequenceId id, bool on) {
  if (Sequence* const sequence = table_.Lookup(id)) sequence->evicts = on;
}

void EngineImpl::SetPromptContinues(SequenceId id, bool on) {
  if (Sequence* const sequence = table_.Lookup(id)) sequence->prompt_continues = on;
}

Status EngineImpl::FillForBenchmark(SequenceId id, int num_tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  if (sequence->next_position != 0) return InvalidArgument("only an empty sequence can be filled");
  PITH_RETURN_IF_ERROR(CheckRoom(*sequence, static_cast<size_t>(num_tokens)));
  if (core_.layers.count() != core_.info->num_layers) {
    return Unsupported("a synthetic cache is made for models whose layers all attend over everything");
  }
  const int kept =
      sequence->evicts_while_running() ? sequence->share.keep_entries + sequence->share.slack_entries / 2 : num_tokens;
  if (const Status status = FillHeads(*core_.cache, sequence->cache_id, std::min(num_tokens, kept), num_tokens,
                                      sequence->setup->column_initials);
      !status) {
    for (HeadCache& head : core_.cache->heads(sequence->cache_id)) head.Clear();
    return status;
  }
  sequence->next_position = num_tokens;
  sequence->entries_seen = num_tokens * core_.layers.num_heads();
  return {};
}

Result<double> EngineImpl::Compress(SequenceId id, const Recipe& recipe, double keep_fraction) {
  const CompressTarget target{.sequence = id, .keep_fraction = keep_fraction};
  PITH_ASSIGN_OR_RETURN(const std::vector<double> kept, CompressForks(id, recipe, {&target, 1}));
  return kept.front();
}

Result<std::vector<double>> EngineImpl::CompressForks(SequenceId source, const Recipe& recipe,
                                                      std::span<const CompressTarget> targets) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(source));
  return compressor_.CompressForks(*sequence, recipe, targets);
}

Result<bool> EngineImpl::CompressOn(SequenceId id, const Recipe& recipe, double keep_fraction) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return compressor_.CompressOn(*sequence, recipe, keep_fraction);
}

Result<double> EngineImpl::CompressPart(SequenceId id, const Recipe& recipe, double keep_fraction, int32_t from,
                                        int32_t to) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return compressor_.CompressPart(*sequence, recipe, keep_fraction, from, to);
}

Result<bool> EngineImpl::ReadAgain(SequenceId id, const Recipe& recipe, int rows) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  if (rows < 1) return InvalidArgument("a second reading goes on by one row at least");
  PITH_ASSIGN_OR_RETURN(const std::optional<EntryGuard> part, turns_.PartToRead(*sequence));
  return part ? compressor_.ReadAgain(*sequence, recipe, *part, rows) : Result<bool>(true);
}

Status EngineImpl::EndTurn(SequenceId id) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return turns_.EndTurn(*sequence);
}

Result<bool> EngineImpl::EndTurnOn(SequenceId id) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return turns_.EndTurnOn(*sequence);
}

Result<bool> EngineImpl::MakeRoomOn(SequenceId id, int rows) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return turns_.MakeRoomOn(*sequence, rows);
}

bool EngineImpl::HasRoomFor(SequenceId id, int rows) {
  const Result<Sequence*> sequence = table_.Find(id);
  return !sequence || turns_.HasRoomFor(**sequence, rows);
}

Status EngineImpl::SetGuide(SequenceId id, std::span<const int32_t> tokens) {
  PITH_ASSIGN_OR_RETURN(Sequence* const sequence, table_.Find(id));
  return turns_.SetGuide(*sequence, tokens);
}

std::vector<int32_t> EngineImpl::Tokens(SequenceId id) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? sequence->tokens : std::vector<int32_t>();
}

std::vector<float> EngineImpl::Keys(SequenceId id, int layer, int kv_head, int32_t from, int32_t to) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? pith::Keys(core_, *sequence, layer, kv_head, from, to) : std::vector<float>();
}

LayerQueries EngineImpl::Queries(SequenceId id, int layer, int num_queries) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? pith::Queries(core_, *sequence, layer, num_queries) : LayerQueries();
}

double EngineImpl::KeptBytes(SequenceId id) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? pith::KeptBytes(core_, *sequence) : 0;
}

std::vector<float> EngineImpl::EntryRows(SequenceId id, int layer, bool values) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? pith::EntryRows(core_, *sequence, layer, values) : std::vector<float>();
}

std::vector<int32_t> EngineImpl::EntryPositions(SequenceId id, int layer, int kv_head) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? pith::EntryPositions(core_, *sequence, layer, kv_head) : std::vector<int32_t>();
}

Result<std::vector<std::vector<EntryView>>> EngineImpl::EntriesAt(SequenceId id, int32_t position) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, table_.Find(id));
  return pith::EntriesAt(core_, *sequence, position);
}

Result<std::vector<float>> EngineImpl::AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int layer,
                                                        int num_queries) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const from, table_.Find(queries_of));
  PITH_ASSIGN_OR_RETURN(const Sequence* const over, table_.Find(entries_of));
  return pith::AttentionOutputs(core_, *from, *over, layer, num_queries);
}

int EngineImpl::num_tokens(SequenceId id) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? sequence->next_position : 0;
}

KvStats EngineImpl::stats() const { return StatsOf(core_, table_); }

SequenceStats EngineImpl::stats(SequenceId id) const {
  const Sequence* const sequence = table_.Lookup(id);
  return sequence != nullptr ? StatsOf(core_, *sequence) : SequenceStats();
}

Result<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<HostModel> model, const EngineOptions& options) {
  auto engine = std::make_unique<EngineImpl>(std::move(model), options);
  PITH_RETURN_IF_ERROR(engine->Init());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace pith
