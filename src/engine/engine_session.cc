// Saving and restoring sequences.
#include <algorithm>
#include <utility>

#include "base/byte_io.h"
#include "engine/engine_impl.h"
#include "engine/session_file.h"

namespace pith {

SessionOwner EngineImpl::Owner(const SequenceSetup& setup) const {
  return {.fingerprint = model_->fingerprint(),
          .description = model_->info().description,
          .recipe = setup.recipe.text,
          .num_ctx = setup.num_ctx,
          .num_vocab = model_->info().num_vocab,
          .num_global_heads = num_global_heads_,
          .format = setup.formats.full()};
}

std::optional<CodedForm> EngineImpl::CodedFormOf(SavedForm form) const {
  return form == SavedForm::kExact ? std::nullopt : options_.saved;
}

Status EngineImpl::Save(SequenceId id, const std::string& path, const SessionNote& note, SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, Find(id));
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> recurrent,
                        context_->SaveSlot(sequence->slot, sequence->next_position));
  return SaveSession(path, Owner(*sequence->setup), *sequence, *cache_,
                     {recurrent, logits(id), note, CodedFormOf(form)});
}

Result<std::vector<std::byte>> EngineImpl::SaveToMemory(SequenceId id, const SessionNote& note, SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const Sequence* const sequence, Find(id));
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> recurrent,
                        context_->SaveSlot(sequence->slot, sequence->next_position));
  // The header's place comes first, so that the body is copied nowhere.
  MemoryWriter writer, header;
  writer.bytes().resize(kSessionHeaderBytes);
  WriteSessionBody(writer, Owner(*sequence->setup), *sequence, *cache_,
                   {recurrent, logits(id), note, CodedFormOf(form)});
  const std::span<const std::byte> body = std::span(writer.bytes()).subspan(kSessionHeaderBytes);
  WriteSessionHeader(header, body.size(), SessionSum(body));
  std::ranges::copy(header.bytes(), writer.bytes().begin());
  return std::move(writer.bytes());
}

template <typename Read>
Result<RestoredSequence> EngineImpl::RestoreFrom(const SequenceOptions& options, const Read& read) {
  RestoredSequence restored;
  PITH_ASSIGN_OR_RETURN(restored.sequence, NewSequence(options));
  Sequence& sequence = *sequences_.at(restored.sequence);
  Status status = read(Owner(*sequence.setup), sequence, restored.note);
  if (status) status = CheckPinned(sequence, 0);
  restored.has_logits = !sequence.restored_logits.empty();
  if (status) return restored;
  Free(restored.sequence);
  return tl::unexpected<Error>(status.error());
}

Result<RestoredSequence> EngineImpl::Restore(const std::string& path, const SequenceOptions& options) {
  return RestoreFrom(options, [&](const SessionOwner& owner, Sequence& sequence, SessionNote& note) {
    return RestoreSession(path, owner, *cache_, *context_, sequence, note);
  });
}

Result<RestoredSequence> EngineImpl::RestoreFromMemory(std::span<const std::byte> saved,
                                                       const SequenceOptions& options) {
  return RestoreFrom(options, [&](const SessionOwner& owner, Sequence& sequence, SessionNote& note) -> Status {
    MemoryReader whole(saved);
    PITH_RETURN_IF_ERROR(CheckSession(whole));
    MemoryReader reader(saved.subspan(kSessionHeaderBytes));
    std::vector<std::byte> recurrent;
    PITH_RETURN_IF_ERROR(ReadSessionBody(reader, owner, *cache_, sequence, recurrent, note));
    return context_->RestoreSlot(sequence.slot, sequence.next_position, recurrent);
  });
}

}  // namespace pith
