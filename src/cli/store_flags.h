// --store of the commands that read prompts.
#ifndef PITH_CLI_STORE_FLAGS_H_
#define PITH_CLI_STORE_FLAGS_H_

#include <memory>
#include <string>

#include "cli/command.h"
#include "pith/types.h"
#include "session/stored_prefixes.h"

namespace pith::cli {

struct StoreFlags {
  std::string spec;  // empty: none

  bool given() const { return !spec.empty(); }
  // recipe: of the sequences that read.
  Status Check(const std::string& recipe) const;
  bool places() const;
  // Null: none was asked for.
  Result<std::shared_ptr<store::Store>> OpenStore() const;
  // What a model finds and keeps in it; null where the store is.
  Result<std::shared_ptr<StoredPrefixes>> Use(std::shared_ptr<store::Store> store, const HostModel& model) const;
  // Both, for one model.
  Result<std::shared_ptr<StoredPrefixes>> Open(const HostModel& model) const;
};
// After the answer: contexts that came are compressed and placed (place=evicpress). An interrupt ends it.
void PlaceContexts(StoredPrefixes* prefixes, Engine& engine, const OutputFlags& output);
void AddStoreFlag(CLI::App& command, StoreFlags& flags);

}  // namespace pith::cli

#endif  // PITH_CLI_STORE_FLAGS_H_
