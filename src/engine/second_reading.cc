#include "engine/second_reading.h"

#include <algorithm>
#include <cstdint>

#include "policy/act/residue.h"

namespace pith {

int PrefixOf(const Sequence& sequence, const ResolvedRecipe& recipe) {
  int prefix = recipe.num_sinks;
  for (const auto& [from, to] : sequence.pinned) {
    if (from <= prefix) prefix = std::max(prefix, to);
  }
  return std::min(prefix, sequence.next_position);
}

std::optional<ReferenceShape> ReferenceShapeOf(const EngineCore& core, const Sequence& sequence) {
  if (!(sequence.setup->formats.entry == PageFormat())) return std::nullopt;
  ReferenceShape references;
  for (const int layer : core.layers.layers()) {
    const LayerShape& shape = core.shape(layer);
    if (core.ops->params(layer).alibi_slopes != nullptr) return std::nullopt;
    references.widths.push_back(static_cast<size_t>(shape.num_heads * shape.key_dim));
    references.token_bytes += references.widths.back() * sizeof(uint16_t);
    references.group = std::max(references.group, shape.num_heads / shape.num_kv_heads);
  }
  return references;
}

void ReserveBlockReferences(const EngineCore& core, const Sequence& sequence, const Policy& policy, int num_tokens,
                            ReferenceQueries& references) {
  const ResidueOptions* const residue = policy.residue();
  if (residue == nullptr) return;
  const std::optional<ReferenceShape> shape = ReferenceShapeOf(core, sequence);
  if (!shape) return;
  const size_t most = kBlockReferenceBytes / std::max<size_t>(shape->token_bytes, 1);
  const int kept = std::min(residue->rows / shape->group, static_cast<int>(std::min(most, size_t{INT32_MAX})));
  // Nobody is asked for scratch.
  (void)references.Reserve(num_tokens, kept, shape->widths, nullptr);
}

Result<std::unique_ptr<PassFork>> PassFork::Make(EngineCore& core, Sequence& source, bool in_passing) {
  std::unique_ptr<PassFork> fork(new PassFork(core, source));
  fork->sequence_.in_passing = in_passing;
  PITH_RETURN_IF_ERROR(fork->Open());
  return fork;
}

Status PassFork::Open() {
  const size_t used = source_.account->used_bytes();
  sequence_.id = source_.id;
  sequence_.setup = source_.setup;
  sequence_.share = source_.share;
  sequence_.ceiling_bytes = sequence_.planned_bytes = source_.ceiling_bytes - std::min(source_.ceiling_bytes, used);
  sequence_.floor_bytes = source_.floor_bytes - std::min(source_.floor_bytes, used);
  sequence_.next_position = source_.next_position;
  sequence_.pinned = source_.pinned;
  sequence_.evicts = false;
  const int slot = core_.slots.FindFreeForReading();
  if (slot < 0) return OutOfBudget("a second reading takes a place for a sequence, and all are in use");
  core_.slots.Take(slot);
  sequence_.slot = slot;
  // What the source was promised beyond what it holds is the fork's while it reads.
  (void)source_.account->SetLimits(0, source_.ceiling_bytes);
  sequence_.own_account = MemoryAccount::Open(core_.ledger.get(), sequence_.floor_bytes, sequence_.ceiling_bytes);
  sequence_.account = sequence_.own_account.get();
  if (sequence_.account == nullptr) return OutOfBudget("the KV budget has no room for a second reading");
  PITH_ASSIGN_OR_RETURN(sequence_.cache_id, core_.cache->Fork(source_.cache_id, sequence_.account));
  core_.context->CopySlot(source_.slot, slot);
  return {};
}

PassFork::~PassFork() {
  if (sequence_.slot < 0) return;
  if (sequence_.cache_id >= 0) {
    core_.cache->Free(sequence_.cache_id);
    core_.context->ClearSlot(sequence_.slot);
  }
  core_.slots.Give(sequence_.slot);
  sequence_.own_account.reset();
  (void)source_.account->SetLimits(source_.floor_bytes, source_.ceiling_bytes);
}

}  // namespace pith
