#include "engine/saved_sequences.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/byte_io.h"
#include "engine/inspection.h"
#include "engine/session_file.h"

namespace pith {
namespace {

// Where the same words are one recipe by blocks and another for whole prompts, which of the two.
std::string RecipeOf(const SequenceSetup& setup) {
  const RepeatOptions* const repeat = setup.policy().repeat();
  const bool differs = setup.options.recipe.while_partial != nullptr || (repeat != nullptr && repeat->by_blocks);
  return setup.recipe.text +
         (differs && setup.compress == CompressMode::kAfter && !setup.recipe.has_turns() ? " of whole prompts" : "");
}

SessionOwner OwnerOf(const EngineCore& core, const SequenceSetup& setup) {
  return {.fingerprint = core.model->fingerprint(),
          .description = core.info->description,
          .recipe = RecipeOf(setup),
          .num_ctx = setup.num_ctx,
          .num_vocab = core.info->num_vocab,
          .num_global_heads = core.layers.num_heads(),
          .format = setup.formats.full()};
}

std::optional<CodedForm> CodedFormOf(const EngineCore& core, SavedForm form) {
  return form == SavedForm::kExact ? std::nullopt : core.options.saved;
}

// read(owner, sequence, note) fills a new sequence.
template <typename Read>
Result<RestoredSequence> RestoreBy(const EngineCore& core, SequenceTable& table, const SequenceOptions& options,
                                   const Read& read) {
  RestoredSequence restored;
  PITH_ASSIGN_OR_RETURN(restored.sequence, table.New(options));
  Sequence& sequence = *table.Lookup(restored.sequence);
  Status status = read(OwnerOf(core, *sequence.setup), sequence, restored.note);
  if (status) status = CheckPinned(sequence, 0);
  restored.has_logits = !sequence.kept_logits.empty();
  if (status) return restored;
  table.Free(restored.sequence);
  return tl::unexpected<Error>(status.error());
}

}  // namespace

Status Save(const EngineCore& core, const Sequence& sequence, const std::string& path, const SessionNote& note,
            SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> recurrent,
                        core.context->SaveSlot(sequence.slot, sequence.next_position));
  return SaveSession(path, OwnerOf(core, *sequence.setup), sequence, *core.cache,
                     {recurrent, LogitsOf(core, sequence), note, CodedFormOf(core, form)});
}

Result<std::vector<std::byte>> SaveToMemory(const EngineCore& core, const Sequence& sequence, const SessionNote& note,
                                            SavedForm form) {
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> recurrent,
                        core.context->SaveSlot(sequence.slot, sequence.next_position));
  // The header's place comes first, so that the body is copied nowhere.
  MemoryWriter writer, header;
  writer.bytes().resize(kSessionHeaderBytes);
  WriteSessionBody(writer, OwnerOf(core, *sequence.setup), sequence, *core.cache,
                   {recurrent, LogitsOf(core, sequence), note, CodedFormOf(core, form)});
  const std::span<const std::byte> body = std::span(writer.bytes()).subspan(kSessionHeaderBytes);
  WriteSessionHeader(header, body.size(), SessionSum(body));
  std::ranges::copy(header.bytes(), writer.bytes().begin());
  return std::move(writer.bytes());
}

Result<RestoredSequence> Restore(EngineCore& core, SequenceTable& table, const std::string& path,
                                 const SequenceOptions& options) {
  return RestoreBy(core, table, options, [&](const SessionOwner& owner, Sequence& sequence, SessionNote& note) {
    return RestoreSession(path, owner, *core.cache, *core.context, sequence, note);
  });
}

Result<RestoredSequence> RestoreFromMemory(EngineCore& core, SequenceTable& table, std::span<const std::byte> saved,
                                           const SequenceOptions& options) {
  return RestoreBy(core, table, options,
                   [&](const SessionOwner& owner, Sequence& sequence, SessionNote& note) -> Status {
                     MemoryReader whole(saved);
                     PITH_RETURN_IF_ERROR(CheckSession(whole));
                     MemoryReader reader(saved.subspan(kSessionHeaderBytes));
                     std::vector<std::byte> recurrent;
                     PITH_RETURN_IF_ERROR(ReadSessionBody(reader, owner, *core.cache, sequence, recurrent, note));
                     return core.context->RestoreSlot(sequence.slot, sequence.next_position, recurrent);
                   });
}

}  // namespace pith
