#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/own_code.h"
#include "engine/engine_impl.h"
#include "engine/synthetic.h"

namespace pith {

EngineImpl::~EngineImpl() {
  // The cache returns its pages to the ledger, which must still be there.
  ops_.reset();
  cache_.reset();
}

void EngineImpl::AddRecipe(const Recipe& recipe) {
  const uint32_t needs = recipe.policy->needs();
  const int first = num_columns_;
  for (const ColumnSpec& column : PageColumns(*recipe.policy)) {
    if (column.initial != 0) column_initials_.emplace_back(num_columns_, column.initial);
    ++num_columns_;
  }
  active_.push_back({.recipe = recipe,
                     .first_column = first,
                     .num_columns = static_cast<int>(recipe.policy->columns().size()),
                     .norm_column = (needs & kNeedValueNorms) != 0 ? num_columns_ - 1 : -1});
  if (needs & (kNeedWindowProbs | kNeedWindowQueries)) ring_window_ = std::max(ring_window_, recipe.policy->window());
  if (needs & kNeedEveryQuery) observed_needs_ |= needs & (kNeedEveryQuery | kNeedSquares | kNeedLargest);
  counts_moments_ = counts_moments_ || (needs & kNeedQueryMoments) != 0;
  reads_again_ = reads_again_ || recipe.policy->repeat() != nullptr;
}

std::vector<PlannedLayer> EngineImpl::BuildLayers() {
  for (const LayerShape& shape : model_->info().layers) {
    const bool global = shape.kind == LayerKind::kGlobal;
    global_index_.push_back(global ? num_global_layers_++ : -1);
    if (global) num_global_heads_ += shape.num_kv_heads;
  }
  return LayersOf(model_->info(), formats_.entry, num_columns_);
}

Status EngineImpl::Init() {
  if (!options_.recipe.policy) {
    PITH_ASSIGN_OR_RETURN(options_.recipe, ParseRecipe("full"));
  }
  const int last = model_->info().max_positions;
  if (options_.num_ctx <= 0) {
    options_.num_ctx = last > 0 ? std::min(last, model_->info().trained_ctx) : model_->info().trained_ctx;
  }
  if (last > 0 && options_.num_ctx > last) {
    return InvalidArgument(fmt::format("the positions of this model end after {} tokens, so that a context of {} cannot be reached",
                                       last, options_.num_ctx));
  }
  if (options_.num_threads <= 0) options_.num_threads = 1;
  governor_.emplace(options_.num_threads, options_.adapt_threads);
  if (options_.block_tokens > 4096) return InvalidArgument("a block of more than 4096 tokens is not supported");
  options_ = Settled(model_->info(), std::move(options_));
  PITH_ASSIGN_OR_RETURN(formats_, SettleFormats(options_));
  AddRecipe(options_.recipe);
  for (const Recipe& recipe : options_.later_recipes) AddRecipe(recipe);
  if (options_.compress == CompressMode::kBlock && options_.recipe.policy->repeat() != nullptr) {
    return InvalidArgument(fmt::format("{} reads the whole prompt again before it drops anything, so it cannot evict after each "
                                       "block: use it with --compress after", options_.recipe.text));
  }
  ring_window_ = std::max(ring_window_, options_.keep_queries);
  for (const ActiveRecipe& active : active_) {
    if (active.recipe.policy->merge() == nullptr) continue;
    const std::vector<PageFormat> to = ConversionsOf(active.recipe);
    if (formats_ == CacheFormats() && to.empty()) continue;
    return InvalidArgument(fmt::format("act=merge rewrites keys and values, which a cache in {} cannot do: use f16",
                                       to.empty() ? formats_.low.value_or(formats_.entry).Name() : to.front().Name()));
  }
  const std::vector<PlannedLayer> layers = BuildLayers();
  for (const ActiveRecipe& active : active_) PITH_RETURN_IF_ERROR(active.recipe.policy->CheckLayers(num_global_layers_));
  PITH_RETURN_IF_ERROR(CheckRotations());
  style_ = StyleOf(model_->info(), options_);
  const int num_slots = std::max(options_.max_sequences, 1);
  EngineOptions planned = options_;
  if (reads_again_) planned.max_sequences = num_slots + 1;  // the fork of a second reading
  PITH_ASSIGN_OR_RETURN(plan_, PlanMemory(model_->info(), layers, style_, planned));

  ledger_ = std::make_unique<Ledger>(plan_.budget_bytes);
  if (!ledger_->TryCharge(MemoryTag::kBlock, plan_.block_bytes) ||
      !ledger_->TryCharge(MemoryTag::kRecurrent, plan_.recurrent_bytes) ||
      !ledger_->TryCharge(MemoryTag::kTables, plan_.moment_bytes)) {
    return OutOfBudget("the KV budget does not hold libllama's block");
  }
  cache_ = KvCache::Create(ledger_.get(), CacheLayersOf(model_->info()));
  if (reads_again_) spare_slot_ = num_slots;
  PITH_ASSIGN_OR_RETURN(context_, HostContext::Create(*model_, plan_.block_tokens, num_slots + (reads_again_ ? 1 : 0),
                                                      options_.num_threads, this));
  ops_ = std::make_unique<LayerOps>(*model_, *cache_, column_initials_, options_.recipe.prefill);
  slot_used_.assign(static_cast<size_t>(num_slots), false);
  return {};
}

Status EngineImpl::CheckRotations() const {
  for (const ActiveRecipe& active : active_) {
    if ((active.recipe.policy->needs() & kNeedQueryMoments) == 0) continue;
    for (const LayerShape& layer : model_->info().layers) {
      if (layer.kind != LayerKind::kGlobal || layer.rotation) continue;
      return Unsupported(fmt::format("{} foresees queries by undoing their rotation (RoPE), which {} models apply in a form that "
                                     "cannot be undone", active.recipe.text, model_->info().architecture));
    }
  }
  return {};
}

Result<SequenceId> EngineImpl::NewSequence() {
  const auto slot = std::find(slot_used_.begin(), slot_used_.end(), false);
  if (slot == slot_used_.end()) return OutOfBudget(fmt::format("all {} sequences of this engine are in use", slot_used_.size()));
  Sequence sequence;
  PITH_ASSIGN_OR_RETURN(sequence.cache_id, cache_->NewSequence({formats_.entry, num_columns_, formats_.low}, ledger_->common()));
  const size_t share = (plan_.num_pages + plan_.num_low_pages) / (cache_->num_heads() * slot_used_.size());
  for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
    if (cache_->layers()[layer].num_kv_heads == 0) continue;
    for (HeadCache& head : cache_->heads(sequence.cache_id, static_cast<int>(layer))) {
      (void)head.ReserveTable(std::min<size_t>(share + 8, 4096));
    }
  }
  sequence.slot = static_cast<int>(slot - slot_used_.begin());
  sequence.merge_thresholds.assign(static_cast<size_t>(num_global_layers_), std::nan(""));
  if (ring_window_ > 0) {
    int num_heads = 0, key_dim = 0;
    for (const LayerShape& shape : model_->info().layers) {
      num_heads = std::max(num_heads, shape.num_heads);
      key_dim = std::max(key_dim, shape.key_dim);
    }
    sequence.queries = QueryRing(num_global_layers_, num_heads, key_dim, ring_window_);
  }
  if (counts_moments_) sequence.moments = QueryMoments(MomentsOf(model_->info()));
  if (reads_again_) sequence.tokens.reserve(static_cast<size_t>(options_.num_ctx));
  *slot = true;
  context_->ClearSlot(sequence.slot);
  sequences_.emplace(next_id_, std::move(sequence));
  return next_id_++;
}

Result<SequenceId> EngineImpl::Fork(SequenceId id) {
  const auto slot = std::find(slot_used_.begin(), slot_used_.end(), false);
  if (slot == slot_used_.end()) return OutOfBudget(fmt::format("all {} sequences of this engine are in use", slot_used_.size()));
  Sequence fork = sequences_.at(id);
  PITH_ASSIGN_OR_RETURN(fork.cache_id, cache_->Fork(sequences_.at(id).cache_id, ledger_->common()));
  fork.slot = static_cast<int>(slot - slot_used_.begin());
  fork.output = -1;
  if (reads_again_) fork.tokens.reserve(static_cast<size_t>(options_.num_ctx));
  *slot = true;
  context_->CopySlot(sequences_.at(id).slot, fork.slot);
  sequences_.emplace(next_id_, std::move(fork));
  return next_id_++;
}

void EngineImpl::Free(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  cache_->Free(found->second.cache_id);
  context_->ClearSlot(found->second.slot);
  slot_used_[static_cast<size_t>(found->second.slot)] = false;
  sequences_.erase(found);
}

Status EngineImpl::CheckRoom(const Sequence& sequence, size_t num_tokens) const {
  if (static_cast<size_t>(sequence.next_position) + num_tokens > static_cast<size_t>(options_.num_ctx)) {
    return InvalidArgument(fmt::format("{} tokens do not fit into a context of {}: raise it with -c",
                                       static_cast<size_t>(sequence.next_position) + num_tokens, options_.num_ctx));
  }
  return {};
}

Status EngineImpl::CheckPinned(const Sequence& sequence, int64_t more) const {
  int64_t pinned = more;
  for (const auto& [from, to] : sequence.pinned) pinned += to - from;
  if (!evicts_while_running() || pinned <= plan_.keep_entries) return {};
  return OutOfBudget(fmt::format("the KV budget holds {} entries per head, fewer than the {} pinned tokens", plan_.keep_entries, pinned));
}

Status EngineImpl::RunRows(Sequence& sequence, std::span<const int32_t> tokens, bool all_logits, int num_sparse_rows) {
  tokens_.assign(tokens.begin(), tokens.end());
  positions_.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) positions_[i] = sequence.next_position + static_cast<int32_t>(i);
  slots_.assign(tokens.size(), sequence.slot);
  wants_logits_.assign(tokens.size(), all_logits);
  wants_logits_.back() = 1;  // libllama wants at least one
  groups_.assign(1, RowGroup{&sequence, 0, static_cast<int>(tokens.size()), num_sparse_rows});
  return RunBlock();
}

Status EngineImpl::Prefill(SequenceId id, std::span<const int32_t> tokens, bool pin, std::vector<float>* all_logits,
                           const Progress& progress) {
  if (tokens.empty()) return InvalidArgument("there are no tokens to read");
  Sequence& sequence = sequences_.at(id);
  PITH_RETURN_IF_ERROR(CheckRoom(sequence, tokens.size()));
  if (pin) {
    const int32_t from = sequence.next_position, to = from + static_cast<int32_t>(tokens.size());
    PITH_RETURN_IF_ERROR(CheckPinned(sequence, to - from));
    sequence.pinned.emplace_back(from, to);
  }
  const size_t vocab = static_cast<size_t>(model_->info().num_vocab);
  for (size_t at = 0; at < tokens.size();) {
    if (cancelled()) return Cancelled("stopped while reading the prompt");
    const size_t count = std::min(tokens.size() - at, static_cast<size_t>(plan_.block_tokens));
    const bool ends = at + count == tokens.size() && !prompt_continues_;
    PITH_RETURN_IF_ERROR(RunRows(sequence, tokens.subspan(at, count), all_logits != nullptr, SparseRows(static_cast<int>(count), ends)));
    if (all_logits != nullptr) {
      for (size_t i = 0; i < count; ++i) {
        const std::span<const float> row = context_->logits(static_cast<int>(i));
        all_logits->insert(all_logits->end(), row.begin(), row.begin() + static_cast<std::ptrdiff_t>(vocab));
      }
    }
    at += count;
    if (progress && !progress(at, tokens.size())) return Cancelled("stopped while reading the prompt");
  }
  return {};
}

Status EngineImpl::PrefillTogether(std::span<const SequenceId> ids, std::span<const int32_t> tokens, size_t first_row,
                                   std::vector<float>& logits, const Progress& progress) {
  if (tokens.empty() || ids.empty()) return InvalidArgument("there are no tokens to read");
  if (first_row >= tokens.size()) return InvalidArgument("no token is left whose logits are wanted");
  // A recurrent model takes equal lengths of one sequence after the other.
  const size_t together = model_->info().hybrid ? 1 : std::min(ids.size(), static_cast<size_t>(plan_.block_tokens));
  const size_t vocab = static_cast<size_t>(model_->info().num_vocab), rows = tokens.size() - first_row;
  logits.resize(ids.size() * rows * vocab);
  for (size_t from = 0; from < ids.size(); from += together) {
    const size_t num = std::min(together, ids.size() - from);
    const size_t step = static_cast<size_t>(plan_.block_tokens) / num;
    for (size_t at = 0; at < tokens.size(); at += step) {
      if (cancelled()) return Cancelled("stopped while reading the prompt");
      const size_t count = std::min(step, tokens.size() - at);
      tokens_.clear(), positions_.clear(), slots_.clear(), wants_logits_.clear(), groups_.clear();
      for (size_t s = 0; s < num; ++s) {
        Sequence& sequence = sequences_.at(ids[from + s]);
        PITH_RETURN_IF_ERROR(CheckRoom(sequence, count));
        groups_.push_back({&sequence, static_cast<int>(tokens_.size()), static_cast<int>(count)});
        for (size_t i = 0; i < count; ++i) {
          tokens_.push_back(tokens[at + i]);
          positions_.push_back(sequence.next_position + static_cast<int32_t>(i));
          slots_.push_back(sequence.slot);
          wants_logits_.push_back(at + i >= first_row);
        }
      }
      // libllama wants at least one row's logits.
      const bool none = at + count <= first_row;
      if (none) wants_logits_.back() = 1;
      PITH_RETURN_IF_ERROR(RunBlock());
      int output = 0;
      for (size_t s = 0; s < num && !none; ++s) {
        for (size_t i = std::max(at, first_row); i < at + count; ++i) {
          const std::span<const float> row = context_->logits(output++);
          std::copy_n(row.begin(), vocab, logits.begin() + static_cast<std::ptrdiff_t>(((from + s) * rows + i - first_row) * vocab));
        }
      }
      if (progress && !progress(at + count, tokens.size())) return Cancelled("stopped while reading the prompt");
    }
  }
  return {};
}

Status EngineImpl::Decode(SequenceId id, int32_t token) {
  const SequenceId ids[] = {id};
  const int32_t tokens[] = {token};
  return DecodeBatch(ids, tokens);
}

Status EngineImpl::DecodeBatch(std::span<const SequenceId> ids, std::span<const int32_t> tokens) {
  const OwnCode own(true);
  PITH_CHECK(ids.size() == tokens.size() && ids.size() <= static_cast<size_t>(plan_.block_tokens));
  tokens_.assign(tokens.begin(), tokens.end());
  positions_.clear(), slots_.clear(), groups_.clear();
  wants_logits_.assign(tokens.size(), 1);
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& sequence = sequences_.at(ids[i]);
    PITH_RETURN_IF_ERROR(CheckRoom(sequence, 1));
    positions_.push_back(sequence.next_position);
    slots_.push_back(sequence.slot);
    groups_.push_back({&sequence, static_cast<int>(i), 1, 0});
  }
  return RunDecodeBlock();
}

namespace {

class SystemClock final : public StepClock {
 public:
  double Wall() override { return Read(CLOCK_MONOTONIC); }
  double Cpu() override { return Read(CLOCK_PROCESS_CPUTIME_ID); }

 private:
  static double Read(clockid_t id) {
    timespec now = {};
    clock_gettime(id, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
};

}  // namespace

Status EngineImpl::RunDecodeBlock() {
  static SystemClock system;
  StepClock& clock = options_.clock != nullptr ? *options_.clock : system;
  context_->SetThreads(governor_->threads());
  const double wall = clock.Wall(), cpu = clock.Cpu();
  Status status = RunBlock();
  governor_->Step(clock.Wall() - wall, clock.Cpu() - cpu);
  context_->SetThreads(options_.num_threads);
  return status;
}

Status EngineImpl::FillForBenchmark(SequenceId id, int num_tokens) {
  Sequence& sequence = sequences_.at(id);
  PITH_CHECK(sequence.next_position == 0);
  PITH_RETURN_IF_ERROR(CheckRoom(sequence, static_cast<size_t>(num_tokens)));
  if (num_global_layers_ != model_->info().num_layers) {
    return Unsupported("a synthetic cache is made for models whose layers all attend over everything");
  }
  const int kept = evicts_while_running() ? plan_.keep_entries + plan_.slack_entries / 2 : num_tokens;
  PITH_RETURN_IF_ERROR(FillHeads(*cache_, sequence.cache_id, std::min(num_tokens, kept), num_tokens, column_initials_));
  sequence.next_position = num_tokens;
  sequence.entries_seen = num_tokens * num_global_heads_;
  return {};
}

// Says what a full budget means to the user, who may have asked for no eviction at all.
Error EngineImpl::Explained(Error error) const {
  if (error.code != ErrorCode::kOutOfBudget) return error;
  error.message = fmt::format("the KV budget of {:.2f} MiB is full at {} tokens", static_cast<double>(plan_.budget_bytes) / (1 << 20),
                              groups_.front().sequence->next_position);
  if (!evicts_while_running()) error.message += ", and nothing may be dropped";
  return error;
}

void EngineImpl::Fail(const Error& error) {
  if (!failed_) error_ = error;
  failed_ = true;
}

Status EngineImpl::RunBlock() {
  const Clock::time_point start = Clock::now();
  failed_ = false;
  for (auto& [id, sequence] : sequences_) sequence.output = -1;
  for (RowGroup& group : groups_) {
    group.sequence->next_position += group.num_rows;
    group.sequence->restored_logits.clear();
    group.sequence->repeat.reset();
    if (repeat_policy_ == nullptr) PrepareCascade(group);
    if (!reads_again_ || repeat_policy_ != nullptr) continue;
    const auto first = tokens_.begin() + group.first_row;
    group.sequence->tokens.insert(group.sequence->tokens.end(), first, first + group.num_rows);
  }
  const Status status = context_->Decode({tokens_, positions_, slots_, wants_logits_});
  int output = -1;
  for (const RowGroup& group : groups_) {
    for (int i = 0; i < group.num_rows; ++i) output += wants_logits_[static_cast<size_t>(group.first_row + i)] != 0;
    group.sequence->output = output;
    group.sequence->entries_seen += static_cast<int64_t>(group.num_rows) * num_global_heads_;
  }
  if (status && !failed_) FinishBlock();
  times_.total += SecondsSince(start);
  if (failed_) return tl::unexpected<Error>(error_);
  return status;
}

void EngineImpl::OnAttention(const AttentionCall& call, const Team& team) {
  const int layer = call.cache_layer;
  const int global = global_index_[static_cast<size_t>(layer)];
  for (RowGroup& group : groups_) {
    const Clock::time_point start = Clock::now();
    if (team.ith == 0) {
      prepared_ = evict_now_ = false;
      if (!failed_) {
        const bool observes = call.first && global >= 0 && repeat_policy_ == nullptr;
        if (Status status = ops_->Prepare(call, group, positions_, global, observes ? observed_needs_ : 0,
                                         NumParts(team.nth)); status) {
          prepared_ = true;
          evict_now_ = call.first && global >= 0 && HoldsTooMuch(*group.sequence, layer);
        } else {
          Fail(Explained(status.error()));
        }
      }
    }
    team.Sync();
    const bool evict = evict_now_;  // thread 0 may be at the next group when this is used
    if (!prepared_) {
      // The block is lost, its graph still runs to the end: nothing undefined may flow through it.
      for (int t = team.ith; t < group.num_rows; t += team.nth) {
        const LayerShape& shape = model_->info().layers[static_cast<size_t>(layer)];
        for (int h = 0; h < shape.num_heads; ++h) {
          std::memset(call.output + static_cast<size_t>(group.first_row + t) * call.output_token_stride +
                          static_cast<size_t>(h) * call.output_head_stride,
                      0, sizeof(float) * static_cast<size_t>(shape.value_dim));
        }
      }
      team.Sync();
      continue;
    }
    if (call.first) {
      ops_->Append(call, group, team);
      team.Sync();
    }
    ops_->Attend(team);
    const bool repeats = repeat_policy_ != nullptr;
    if (team.ith == 0 && call.first && global >= 0 && !repeats) ops_->KeepQueries(call, group, global);
    team.Sync();
    if (team.ith == 0) {
      times_.attention += SecondsSince(start) - ops_->observe_seconds();
      times_.policy += ops_->observe_seconds();
    }
    if (!call.first) continue;
    if (global < 0) {
      if (team.ith == 0 && style_.in_layer) {
        for (HeadCache& head : cache_->heads(group.sequence->cache_id, layer)) {
          head.DropPagesBefore(group.sequence->next_position - model_->info().window + 1);
        }
      }
      if (formats_.low) DemoteLayer(*group.sequence, layer, team);
      continue;
    }
    const Clock::time_point policy_start = Clock::now();
    // What a recipe that compares layers evicts is evicted first.
    const bool demotes = formats_.low && (style_.in_layer || !evicts_while_running());
    if (repeats) {
      ops_->ObserveRepeat(layer, global, group, {*repeat_policy_, repeat_pass_, *repeat_columns_}, team);
    } else if (observed_needs_ != 0) {
      ops_->Observe(layer, group, active_, team);
    }
    if (!repeats && counts_moments_) ops_->AddMoments(call, group, global, team);
    if (evict) EvictInLayer(call, group, team);
    if (group.cascades) CascadeInLayer(call, group, team);
    if (demotes) DemoteLayer(*group.sequence, layer, team);
    if (team.ith == 0) times_.policy += SecondsSince(policy_start);
  }
}

std::span<const float> EngineImpl::logits(SequenceId id) const {
  const Sequence& sequence = sequences_.at(id);
  if (!sequence.restored_logits.empty()) return sequence.restored_logits;
  const int output = sequence.output;
  PITH_CHECK(output >= 0);
  return context_->logits(output);
}

KvStats EngineImpl::stats() const {
  KvStats stats;
  ReadLedger(*ledger_, stats);
  for (const auto& [id, sequence] : sequences_) {
    stats.entries += GlobalEntriesOf(sequence);
    stats.entries_seen += sequence.entries_seen;
  }
  if (stats.entries_seen > 0) stats.kept_fraction = static_cast<double>(stats.entries) / static_cast<double>(stats.entries_seen);
  stats.keep_entries = plan_.keep_entries;
  stats.block_tokens = plan_.block_tokens;
  stats.format = formats_.low.value_or(formats_.entry);
  return stats;
}

Result<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<HostModel> model, const EngineOptions& options) {
  auto engine = std::make_unique<EngineImpl>(std::move(model), options);
  PITH_RETURN_IF_ERROR(engine->Init());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace pith
