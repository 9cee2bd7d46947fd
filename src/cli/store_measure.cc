#include "cli/store_measure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/store_measure_util.h"
#include "cli/terminal.h"
#include "lab/measure.h"
#include "session/stored_prefixes.h"
#include "store/spec.h"

namespace pith::cli {

using nlohmann::ordered_json;

void DropFromPageCache(const std::string& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const int fd = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    (void)::fdatasync(fd);
    (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

Result<std::string> MakeBenchFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::string name = folder + "/bench-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) return IoError(fmt::format("no folder could be made in {}", folder));
  return name;
}

namespace {

constexpr size_t kQuestionTokens = 8;

struct Row {
  size_t tokens = 0, bytes = 0;
  double prefill = 0, ram = 0, ssd = 0, server = 0;  // seconds to the first token
};

ordered_json ToJson(const Row& row) {
  ordered_json json = {{"tokens", row.tokens},
                       {"bytes", row.bytes},
                       {"prefill_ms", 1000 * row.prefill},
                       {"ram_ms", 1000 * row.ram},
                       {"ssd_ms", 1000 * row.ssd},
                       {"ram_share", row.ram / row.prefill},
                       {"ssd_share", row.ssd / row.prefill}};
  if (row.server > 0) {
    json["server_ms"] = 1000 * row.server;
    json["server_share"] = row.server / row.prefill;
  }
  return json;
}

class Bench {
 public:
  Bench(const StoreBenchFlags& flags, std::shared_ptr<HostModel> model, std::string folder)
      : flags_(flags), model_(std::move(model)), folder_(std::move(folder)) {}

  Status Init(size_t most_tokens) {
    PITH_ASSIGN_OR_RETURN(recipe_, ParseRecipe(flags_.recipe));
    EngineOptions options;
    options.num_ctx = static_cast<int>(most_tokens + 2 * kQuestionTokens);
    options.num_threads = flags_.model.num_threads();
    PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
    options.later_recipes = {recipe_};
    PITH_ASSIGN_OR_RETURN(options.saved, ParseCodedForm(flags_.save_format));
    PITH_ASSIGN_OR_RETURN(engine_, Engine::Create(model_, options));
    options_ = engine_->options();
    const size_t limit = size_t{2} << 30;
    PITH_ASSIGN_OR_RETURN(ram_, store::Store::Open({.ram_bytes = limit, .folder = ""}));
    PITH_ASSIGN_OR_RETURN(ssd_, store::Store::Open({.ram_bytes = 0, .folder = folder_, .ssd_bytes = 4 * limit}));
    if (flags_.server.empty()) return {};
    PITH_ASSIGN_OR_RETURN(server_, store::Store::Open({.ram_bytes = 0, .folder = "", .remote = flags_.server}));
    return {};
  }

  Result<Row> Measure(size_t num_tokens) {
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> all, FillerTokens(*model_, num_tokens + kQuestionTokens));
    const std::span<const int32_t> text = std::span(all).first(num_tokens);
    const std::span<const int32_t> question = std::span(all).subspan(num_tokens);
    Row row{.tokens = num_tokens};
    store::ObjectInfo info;
    info.tokens.assign(text.begin(), text.end());
    {
      PITH_ASSIGN_OR_RETURN(const SequenceId id, engine_->NewSequence());
      const Status done = Prepare(id, text, question, row, info);
      engine_->Free(id);
      PITH_RETURN_IF_ERROR(done);
    }
    std::vector<double> from_ram, from_ssd, from_server;
    for (int i = 0; i < flags_.repeat; ++i) {
      PITH_ASSIGN_OR_RETURN(const double ram, FirstToken(*ram_, question));
      DropFromPageCache(folder_);
      PITH_ASSIGN_OR_RETURN(const double ssd, FirstToken(*ssd_, question));
      from_ram.push_back(ram);
      from_ssd.push_back(ssd);
      if (server_ == nullptr) continue;
      PITH_ASSIGN_OR_RETURN(const double server, FirstToken(*server_, question, all));
      from_server.push_back(server);
    }
    if (server_ != nullptr) {
      row.server = Median(from_server);
      (void)server_->Remove(key_);
    }
    row.ram = Median(from_ram);
    row.ssd = Median(from_ssd);
    return row;
  }

  // Bytes a second: what the store loads from disk, and plain reads of the same files in blocks of 1 MiB.
  Result<std::pair<double, double>> Throughput() {
    constexpr size_t kObjects = 16, kBytes = size_t{16} << 20;
    std::vector<std::byte> payload(kBytes);
    for (size_t i = 0; i < kBytes; ++i) payload[i] = static_cast<std::byte>(i * i >> 7);
    std::vector<store::Key> keys;
    for (size_t i = 0; i < kObjects; ++i) {
      store::ObjectInfo info;
      info.tokens.assign(store::kBlockTokens, static_cast<int32_t>(i));
      keys.push_back(store::MakeChain(info.root, info.tokens).whole);
      if (!ssd_->Put(std::move(info), payload)) return IoError("the folder took no more");
    }
    DropFromPageCache(folder_);
    const Stopwatch loading;
    for (const store::Key& key : keys) {
      if (!ssd_->Load(key)) return IoError("what was written could not be read");
    }
    const double load = static_cast<double>(kObjects * kBytes) / loading.seconds();
    DropFromPageCache(folder_);
    PITH_ASSIGN_OR_RETURN(const double plain, PlainRead());
    return std::pair(load, plain);
  }

 private:
  Status Prepare(SequenceId id, std::span<const int32_t> text, std::span<const int32_t> question, Row& row,
                 store::ObjectInfo& info) {
    const Stopwatch reading;
    PITH_RETURN_IF_ERROR(engine_->Prefill(id, text));
    row.prefill = info.compute_seconds = reading.seconds();
    if (flags_.keep < 1) {
      const Result<double> kept = engine_->Compress(id, recipe_, flags_.keep);
      if (!kept) return tl::unexpected<Error>(kept.error());
    }
    PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> saved,
                          engine_->SaveToMemory(id, {.tokens = info.tokens, .text = {}}));
    row.bytes = saved.size();
    key_ = store::MakeChain(info.root, info.tokens).whole;
    if (!ram_->Put(info, saved) || !ssd_->Put(info, saved)) return IoError("the prefix could not be stored");
    if (server_ != nullptr && (!server_->Put(info, saved) || !server_->Sync())) {
      return IoError(fmt::format("{} took nothing", flags_.server));
    }
    const Stopwatch asking;
    PITH_RETURN_IF_ERROR(engine_->Prefill(id, question));
    row.prefill += asking.seconds();
    return {};
  }

  // asked: the text with which a server is asked what it has.
  Result<double> FirstToken(store::Store& store, std::span<const int32_t> question,
                            std::span<const int32_t> asked = {}) {
    const Stopwatch watch;
    const Sha256Digest root{};
    if (!asked.empty()) store.Refresh({.roots = std::span(&root, 1), .tokens = asked});
    const auto loaded = store.Load(key_);
    if (!loaded) return IoError("the prefix was not there");
    PITH_ASSIGN_OR_RETURN(const RestoredSequence restored,
                          engine_->RestoreFromMemory(loaded->payload->bytes(), options_));
    const Status read = engine_->Prefill(restored.sequence, question);
    const double seconds = watch.seconds();
    engine_->Free(restored.sequence);
    PITH_RETURN_IF_ERROR(read);
    return seconds;
  }

  Result<double> PlainRead() const {
    std::vector<std::byte> buffer(size_t{1} << 20);
    size_t bytes = 0;
    const Stopwatch watch;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      const int fd = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0) return IoError("a segment could not be opened");
      for (ssize_t got = 0; (got = ::read(fd, buffer.data(), buffer.size())) > 0;) bytes += static_cast<size_t>(got);
      ::close(fd);
    }
    return static_cast<double>(bytes) / watch.seconds();
  }

  const StoreBenchFlags& flags_;
  std::shared_ptr<HostModel> model_;
  std::string folder_;
  Recipe recipe_;
  SequenceOptions options_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<store::Store> ram_, ssd_, server_;
  store::Key key_;
};

void Print(const std::vector<Row>& rows, const StoreBenchFlags& flags, double load, double plain) {
  const bool server = !flags.server.empty();
  fmt::print("| tokens | size | prefill | from memory | from disk |{}\n|---|---|---|---|---|{}\n",
             server ? " from a server |" : "", server ? "---|" : "");
  for (const Row& row : rows) {
    fmt::print("| {} | {} | {:.0f} ms | {:.0f} ms ({:.1f}%) | {:.0f} ms ({:.1f}%) |{}\n", row.tokens,
               FormatBytes(row.bytes), 1000 * row.prefill, 1000 * row.ram, 100 * row.ram / row.prefill, 1000 * row.ssd,
               100 * row.ssd / row.prefill,
               server ? fmt::format(" {:.0f} ms ({:.1f}%) |", 1000 * row.server, 100 * row.server / row.prefill) : "");
  }
  fmt::print("\nTime to the first token, {:.0f}% of the prefix kept ({}), then {} tokens read. ", 100 * flags.keep,
             flags.recipe, kQuestionTokens);
  fmt::print("Disk: {:.0f} MB/s loaded and checked, {:.0f} MB/s read plainly ({:.0f}%).\n", load / 1e6, plain / 1e6,
             100 * load / plain);
}

Result<int> BenchIn(const StoreBenchFlags& flags, const std::string& folder) {
  PITH_ASSIGN_OR_RETURN(const std::vector<int> lengths, ParseIntegers(flags.ctx, "--ctx", 64, 1 << 20));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.out));
  Bench bench(flags, model, folder);
  PITH_RETURN_IF_ERROR(bench.Init(static_cast<size_t>(*std::ranges::max_element(lengths))));
  std::vector<Row> rows;
  ProgressLine progress("measuring", flags.out.progress);
  for (const int length : lengths) {
    progress.Update(static_cast<double>(rows.size()), static_cast<double>(lengths.size()));
    PITH_ASSIGN_OR_RETURN(const Row row, bench.Measure(static_cast<size_t>(length)));
    rows.push_back(row);
    if (Interrupted()) return Cancelled("stopped between two lengths");
  }
  PITH_ASSIGN_OR_RETURN(const auto speeds, bench.Throughput());
  if (!flags.out.json) {
    Print(rows, flags, speeds.first, speeds.second);
    return kExitOk;
  }
  ordered_json json = {{"model", model->info().description},
                       {"keep", flags.keep},
                       {"recipe", flags.recipe},
                       {"save_format", flags.save_format},
                       {"load_bytes_per_second", speeds.first},
                       {"plain_bytes_per_second", speeds.second},
                       {"rows", ordered_json::array()}};
  for (const Row& row : rows) json["rows"].push_back(ToJson(row));
  PrintJson(JsonText(json, 2));
  return kExitOk;
}

}  // namespace

Result<int> BenchStore(const StoreBenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::string folder, MakeBenchFolder(flags.folder));
  Result<int> code = BenchIn(flags, folder);
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  return code;
}

}  // namespace pith::cli
