#include "cli/store_flags.h"

#include <fmt/format.h>

#include "cli/terminal.h"
#include "store/spec.h"

namespace pith::cli {

Status StoreFlags::Check(const std::string& recipe) const {
  if (!given()) return {};
  PITH_ASSIGN_OR_RETURN(const store::StoreOptions options, store::ParseStoreSpec(spec));
  PITH_ASSIGN_OR_RETURN(const Recipe parsed, ParseRecipe(recipe));
  if (parsed.turns) {
    return InvalidArgument("what turns= keeps depends on where turns ended, which --store does not know");
  }
  if (!options.places) return {};
  if (parsed.policy != nullptr && (!parsed.policy->keeps_everything() || parsed.policy->prune() != nullptr)) {
    return InvalidArgument("place=evicpress compresses what was read in full: give --recipe full");
  }
  return {};
}

bool StoreFlags::places() const {
  const auto options = given() ? store::ParseStoreSpec(spec) : Result<store::StoreOptions>();
  return options && options->places;
}

Result<std::shared_ptr<store::Store>> StoreFlags::OpenStore() const {
  if (!given()) return std::shared_ptr<store::Store>();
  PITH_ASSIGN_OR_RETURN(const store::StoreOptions options, store::ParseStoreSpec(spec));
  return store::Store::Open(options);
}

Result<std::shared_ptr<StoredPrefixes>> StoreFlags::Use(std::shared_ptr<store::Store> store,
                                                        const HostModel& model) const {
  if (store == nullptr) return std::shared_ptr<StoredPrefixes>();
  PITH_ASSIGN_OR_RETURN(const store::StoreOptions options, store::ParseStoreSpec(spec));
  auto prefixes = std::make_shared<StoredPrefixes>(store, model);
  if (options.places) {
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<ContextPlacer> placer,
                          ContextPlacer::Make(store, {.quality_loss = options.quality_loss}));
    prefixes->SetPlacer(std::move(placer));
  }
  return prefixes;
}

Result<std::shared_ptr<StoredPrefixes>> StoreFlags::Open(const HostModel& model) const {
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<store::Store> store, OpenStore());
  return Use(std::move(store), model);
}

void PlaceContexts(StoredPrefixes* prefixes, Engine& engine, const OutputFlags& output) {
  if (prefixes == nullptr || !prefixes->places()) return;
  ProgressLine progress("placing what was read", output.progress);
  for (double done = 0; !Interrupted() && prefixes->PlaceNext(engine); ++done) progress.Update(done, done + 1);
}

void AddStoreFlag(CLI::App& command, StoreFlags& flags) {
  AddOption(command, "--store", flags.spec,
            fmt::format("Keep what was read, so that a text that begins alike starts at once, in any process. {}",
                        store::kStoreSpecHelp),
            "STORE");
}

}  // namespace pith::cli
