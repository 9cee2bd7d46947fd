// pith store: looks into a folder of kept prefixes, and tidies it.
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/store_measure.h"
#include "cli/terminal.h"
#include "store/spec.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

constexpr const char* kStoreExamples = R"(
What run, chat and serve keep with --store DIR. KEY is a key that ls prints, or its beginning.
  ls      all prefixes, the oldest first      stat    how many, how large
  get     one prefix as a file for run --prompt-cache       rm      removes one, for every process
  verify  reads everything and drops what is damaged        gc      gives back what is dead in the files
  bench   what loading takes, against reading the text again; in a folder of its own in DIR
  compare full prefill, LRU offload, one compressor and LRU, and place=evicpress over the same requests, likewise

Examples:
  pith run -f book.txt --raw --store ~/.cache/pith/store
  pith store ls ~/.cache/pith/store
  pith store get ~/.cache/pith/store 1f02964d -o book.session
  pith store verify ~/.cache/pith/store,ssd=20GiB
  pith store bench /tmp --ctx 500,1000,4000 --keep 0.2
  pith store compare /tmp --ctx 1000,2000,4000 --contexts 50 --requests 200 -f book.txt
)";

struct StoreCommandFlags {
  std::string action;
  std::string spec;
  std::string key;
  std::string output;
  OutputFlags out;
  StoreBenchFlags bench;

  bool measures() const { return action == "bench" || action == "compare"; }
};

Status CheckStore(const StoreCommandFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const store::StoreOptions options, store::ParseStoreSpec(flags.spec));
  if (!options.remote.empty()) {
    return InvalidArgument(fmt::format("store {} is for stores in folders, not on servers", flags.action));
  }
  if (options.folder.empty()) return InvalidArgument("a store in memory alone ends with its process: give a folder");
  const bool one = flags.action == "get" || flags.action == "rm";
  if (one && flags.key.empty()) return InvalidArgument(fmt::format("say which one: store {} DIR KEY", flags.action));
  if (!one && !flags.key.empty()) return InvalidArgument(fmt::format("store {} takes no key", flags.action));
  if (flags.measures()) {
    PITH_RETURN_IF_ERROR(flags.bench.model.Check());
    PITH_RETURN_IF_ERROR(ParseIntegers(flags.bench.ctx, "--ctx", 128, 1 << 20));
    const std::vector<std::string> recipes = SplitRecipes(flags.bench.recipe);
    if (recipes.empty() || (recipes.size() > 1 && flags.action == "bench")) {
      return InvalidArgument("--recipe takes one compressor; several, between semicolons, for compare");
    }
    for (const std::string& recipe : recipes) PITH_RETURN_IF_ERROR(ParseRecipe(recipe));
    PITH_RETURN_IF_ERROR(ParseCodedForm(flags.bench.save_format));
    const auto is_share = [](double share) { return share > 0 && share <= 1; };
    if (!is_share(flags.bench.keep) || !is_share(flags.bench.ram_share) || !is_share(flags.bench.loss)) {
      return InvalidArgument("--keep, --ram-share and --loss take shares between 0 and 1");
    }
  }
  if ((flags.action == "get") == flags.output.empty()) {
    return InvalidArgument(flags.action == "get" ? "store get needs -o FILE" : "-o belongs to store get");
  }
  return {};
}

std::string TimeText(double unix_seconds) {
  return fmt::format("{:%Y-%m-%d %H:%M}", fmt::localtime(static_cast<std::time_t>(unix_seconds)));
}

ordered_json ToJson(const store::ObjectInfo& info) {
  return {{"key", info.key.Hex()},
          {"tokens", info.num_tokens()},
          {"bytes", info.payload_bytes},
          {"pinned_tokens", info.num_pinned},
          {"rewinds_to", {info.rewind_least, info.rewind_most}},
          {"compute_seconds", info.compute_seconds},
          {"written", TimeText(info.written_at)},
          {"label", info.label},
          {"config", info.config}};
}

void Print(const ordered_json& json) { PrintJson(JsonText(json, 2)); }

int Ls(store::Store& store, bool as_json) {
  auto list = ordered_json::array();
  if (!as_json) fmt::print("{:<32}  {:>7}  {:>11}  {:<16}  what\n", "key", "tokens", "size", "written");
  for (const store::ObjectInfoPtr& object : store.List()) {
    const store::ObjectInfo& info = *object;
    if (as_json) {
      list.push_back(ToJson(info));
    } else {
      fmt::print("{}  {:>7}  {:>11}  {}  {}\n", info.key.Hex(), info.num_tokens(), FormatBytes(info.payload_bytes),
                 TimeText(info.written_at), info.label);
    }
  }
  if (as_json) Print(list);
  return kExitOk;
}

int Stat(store::Store& store, uint64_t limit_bytes, bool as_json) {
  const store::StoreStats stats = store.stats();
  size_t tokens = 0;
  double seconds = 0;
  const std::vector<store::ObjectInfoPtr> objects = store.List();
  for (const store::ObjectInfoPtr& object : objects) {
    tokens += object->num_tokens();
    seconds += object->compute_seconds;
  }
  const auto& ssd = stats.tiers[static_cast<size_t>(store::Tier::kSsd)];
  if (as_json) {
    Print({{"prefixes", objects.size()},
           {"tokens", tokens},
           {"compute_seconds", seconds},
           {"live_bytes", ssd.bytes},
           {"file_bytes", stats.ssd_file_bytes},
           {"limit_bytes", limit_bytes},
           {"segments", stats.ssd_segments}});
    return kExitOk;
  }
  fmt::print("{} prefixes of {} tokens, which took {:.1f} s to read; {} in {} files of {} (limit {})\n", objects.size(),
             FormatCount(static_cast<int64_t>(tokens)), seconds, FormatBytes(ssd.bytes), stats.ssd_segments,
             FormatBytes(stats.ssd_file_bytes), FormatBytes(limit_bytes));
  return kExitOk;
}

Result<store::ObjectInfoPtr> FindOne(store::Store& store, const std::string& key) {
  store::ObjectInfoPtr found;
  for (store::ObjectInfoPtr& object : store.List()) {
    if (!object->key.Hex().starts_with(key)) continue;
    if (found != nullptr) return InvalidArgument(fmt::format("several keys begin with {}", key));
    found = std::move(object);
  }
  if (found == nullptr) return NotFound(fmt::format("the store has no prefix {}", key));
  return found;
}

Result<int> Get(store::Store& store, const StoreCommandFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const store::ObjectInfoPtr info, FindOne(store, flags.key));
  const auto loaded = store.Load(info->key);
  if (!loaded) return Corrupt(fmt::format("the prefix {} is damaged or gone", info->key.Hex()));
  const std::span<const std::byte> bytes = loaded->payload->bytes();
  PITH_RETURN_IF_ERROR(
      WriteFile(flags.output, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())));
  return kExitOk;
}

Result<int> Remove(store::Store& store, const StoreCommandFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const store::ObjectInfoPtr info, FindOne(store, flags.key));
  if (!store.Remove(info->key)) return NotFound(fmt::format("the prefix {} is gone already", info->key.Hex()));
  return kExitOk;
}

Result<int> Verify(store::Store& store, const StoreCommandFlags& flags) {
  ProgressLine progress("verifying", flags.out.progress);
  const size_t count = store.List().size();
  const auto damaged = store.Verify([&](size_t done, size_t total) {
    progress.Update(static_cast<double>(done), static_cast<double>(total));
    return !Interrupted();
  });
  if (Interrupted()) return Cancelled("stopped while the store was verified");
  if (flags.out.json) {
    auto list = ordered_json::array();
    for (const store::ObjectInfoPtr& info : damaged) list.push_back(info->key.Hex());
    Print({{"prefixes", count}, {"damaged", list}});
  } else {
    fmt::print("{} prefixes are whole, {} were damaged and are gone\n", count - damaged.size(), damaged.size());
  }
  return damaged.empty() ? kExitOk : kExitError;
}

Result<int> Compact(store::Store& store, bool as_json) {
  constexpr double kShare = 0.5;
  PITH_ASSIGN_OR_RETURN(const uint64_t freed, store.Compact(kShare));
  if (as_json) Print({{"freed_bytes", freed}});
  else fmt::print("{} given back\n", FormatBytes(freed));
  return kExitOk;
}

Result<int> MeasureStore(const StoreCommandFlags& flags, const std::string& folder) {
  StoreBenchFlags bench = flags.bench;
  bench.out = flags.out;
  bench.folder = folder;
  return flags.action == "bench" ? BenchStore(bench) : CompareStores(bench);
}

Result<int> RunStore(const StoreCommandFlags& flags) {
  PITH_ASSIGN_OR_RETURN(store::StoreOptions options, store::ParseStoreSpec(flags.spec));
  const uint64_t limit_bytes = options.ssd_bytes;
  if (flags.measures()) return MeasureStore(flags, options.folder);
  std::error_code error;
  if (!std::filesystem::is_directory(options.folder, error)) {
    return NotFound(fmt::format("there is no store in {}", options.folder));
  }
  PITH_ASSIGN_OR_RETURN(options, store::ParseStoreSpecToLook(flags.spec));
  options.ram_bytes = 0;
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<store::Store> store, store::Store::Open(options));
  if (flags.action == "ls") return Ls(*store, flags.out.json);
  if (flags.action == "stat") return Stat(*store, limit_bytes, flags.out.json);
  if (flags.action == "get") return Get(*store, flags);
  if (flags.action == "rm") return Remove(*store, flags);
  if (flags.action == "verify") return Verify(*store, flags);
  return Compact(*store, flags.out.json);
}

}  // namespace

namespace {

void AddStoreBenchFlags(CLI::App& command, StoreBenchFlags& flags) {
  AddOption(command, "--ctx", flags.ctx, "bench, compare: tokens of the prefixes (default 250,500,1000,2000,4000)",
            "N,...");
  AddOption(command, "--keep", flags.keep, "bench: share of the entries that is kept (default 0.2)", "SHARE");
  AddOption(command, "--recipe", flags.recipe,
            "bench, compare: the one compressor (default keydiff); compare: several, too, between semicolons",
            "RECIPE");
  AddOption(command, "--server", flags.server, "bench: a server to load from, too (redis://HOST:PORT)", "URL");
  AddSaveFormat(command, flags.save_format);
  AddNumber(command, "-r,--repeat", flags.repeat, 1, 1000, "bench: loads of each prefix (default 5)", "N");
  AddNumber(command, "--contexts", flags.contexts, 2, 10000, "compare: contexts (default 12)", "N");
  AddNumber(command, "--requests", flags.requests, 1, 1000000, "compare: requests for them (default 48)", "N");
  AddOption(command, "--ram-share", flags.ram_share, "compare: of all whole caches, what memory holds (default 0.2)",
            "SHARE");
  AddOption(command, "--loss", flags.loss, "compare: of quality that a context may lose (default 0.03)", "SHARE");
  AddOption(command, "-f,--file", flags.text, "compare: text that contexts are cut from (default: pseudo-text)",
            "FILE");
  AddModelFlags(command, flags.model);
}

}  // namespace

void AddStore(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<StoreCommandFlags>();
  CLI::App* command = AddCommand(app, "store", "List, check and tidy the prefixes that --store keeps", kStoreExamples);
  Require(AddChoice(*command, "action", flags->action, {"ls", "stat", "get", "rm", "verify", "gc", "bench", "compare"},
                    "What to do", "ACTION"));
  Require(AddOption(*command, "store", flags->spec, "The folder, with options as for --store", "STORE"));
  AddOption(*command, "key", flags->key, "Of one prefix", "KEY");
  AddOption(*command, "-o,--output", flags->output, "File that get writes", "FILE");
  AddStoreBenchFlags(*command, flags->bench);
  AddOutputFlags(*command, flags->out);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckStore(*flags); };
    chosen.run = [flags] { return RunStore(*flags); };
  });
}

}  // namespace pith::cli
