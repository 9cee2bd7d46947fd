// Saving and restoring sequences.
#include "engine/engine_impl.h"
#include "engine/session_file.h"

namespace pith {

SessionOwner EngineImpl::Owner() const {
  return {.fingerprint = model_->fingerprint(),
          .description = model_->info().description,
          .recipe = active_.front().recipe.text,
          .num_ctx = options_.num_ctx,
          .num_vocab = model_->info().num_vocab,
          .num_global_heads = num_global_heads_};
}

Status EngineImpl::Save(SequenceId id, const std::string& path, const SessionNote& note) {
  const Sequence& sequence = sequences_.at(id);
  const bool has_logits = sequence.output >= 0 || !sequence.restored_logits.empty();
  return SaveSession(path, Owner(), sequence, *cache_, *context_, has_logits ? logits(id) : std::span<const float>(),
                     note);
}

Result<RestoredSequence> EngineImpl::Restore(const std::string& path) {
  RestoredSequence restored;
  PITH_ASSIGN_OR_RETURN(restored.sequence, NewSequence());
  Sequence& sequence = sequences_.at(restored.sequence);
  Status status = RestoreSession(path, Owner(), *cache_, *context_, sequence, restored.note);
  if (status) status = CheckPinned(sequence, 0);
  restored.has_logits = !sequence.restored_logits.empty();
  if (status) return restored;
  Free(restored.sequence);
  return tl::unexpected<Error>(status.error());
}

}  // namespace pith
