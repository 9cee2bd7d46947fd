// Sequences leave an engine, into a file or memory (session_file.h), and come back.
#ifndef PITH_ENGINE_SAVED_SEQUENCES_H_
#define PITH_ENGINE_SAVED_SEQUENCES_H_

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "pith/types.h"

namespace pith {

// As Engine's functions of these names. What is restored is a new sequence of the table.
Status Save(const EngineCore& core, const Sequence& sequence, const std::string& path, const SessionNote& note,
            SavedForm form);
Result<std::vector<std::byte>> SaveToMemory(const EngineCore& core, const Sequence& sequence, const SessionNote& note,
                                            SavedForm form);
Result<RestoredSequence> Restore(EngineCore& core, SequenceTable& table, const std::string& path,
                                 const SequenceOptions& options);
Result<RestoredSequence> RestoreFromMemory(EngineCore& core, SequenceTable& table, std::span<const std::byte> saved,
                                           const SequenceOptions& options);

}  // namespace pith

#endif  // PITH_ENGINE_SAVED_SEQUENCES_H_
