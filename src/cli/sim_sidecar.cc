// pith sim sidecar: Cold-RL's network for caches in other processes.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/escaped.h"
#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "evict/learn/model_file.h"
#include "evict/sidecar_server.h"

namespace pith::cli {
namespace {

using evict::Model;
using evict::ModelKind;
using evict::SidecarServer;

constexpr const char* kSimSidecarExamples = R"(
Caches whose policy is coldrl ask it what shall go, and go on by age where it is late, wrong or gone. It takes a new
model as soon as FILE holds one that is whole. Whoever may write to the socket may ask.

Examples:
  pith sim sidecar --socket /run/pith/evict.sock --model cold.pithnet
  pith sim --trace day.csv --policy coldrl:sidecar=/run/pith/evict.sock --capacity 25MB
  pith_evict zone=web policy=coldrl sidecar=/run/pith/evict.sock;      # in nginx.conf
)";

struct SidecarFlags {
  std::string socket;
  std::string model;
};

constexpr double kLookSeconds = 0.5;

// When the file was last written; nothing: it is not there.
std::optional<std::filesystem::file_time_type> WrittenAt(const std::string& path) {
  std::error_code error;
  const auto time = std::filesystem::last_write_time(path, error);
  return error ? std::nullopt : std::optional(time);
}

Result<int> RunSidecar(const SidecarFlags& flags) {
  auto written_at = WrittenAt(flags.model);
  PITH_ASSIGN_OR_RETURN(Model model, LoadModel(flags.model, ModelKind::kColdRl));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<SidecarServer> server,
                        SidecarServer::Listen(flags.socket, std::move(model)));
  Note("answering on {}\n", Escaped(flags.socket));
  Stopwatch since_looked;
  const auto go_on = [&] {
    if (!flags.model.empty() && since_looked.seconds() > kLookSeconds) {
      since_looked = Stopwatch();
      if (const auto now = WrittenAt(flags.model); now && now != written_at) {
        written_at = now;
        Result<Model> next = LoadModel(flags.model, ModelKind::kColdRl);
        if (next) server->Use(std::move(*next));
        Note("{}\n", next ? "a new model answers" : "the old model goes on: " + next.error().message);
      }
    }
    return !Interrupted();
  };
  PITH_RETURN_IF_ERROR(server->Run(go_on));
  Note("{} questions answered\n", FormatCount(static_cast<int64_t>(server->answered())));
  return kExitOk;
}

}  // namespace

void AddSimSidecar(CLI::App& sim, Command& chosen) {
  auto flags = std::make_shared<SidecarFlags>();
  CLI::App* command =
      AddCommand(sim, "sidecar", "Decide for caches in other processes, over a Unix socket", kSimSidecarExamples);
  Require(AddOption(*command, "--socket", flags->socket, "Where it listens", "PATH"));
  AddOption(*command, "--model", flags->model, "A model of pith sim train --policy coldrl (default: the built-in one)",
            "FILE");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags]() -> Status {
      if (const auto address = evict::SidecarAddress(flags->socket); !address) {
        return InvalidArgument(fmt::format("--socket: {}", address.error().message));
      }
      return {};
    };
    chosen.run = [flags] { return RunSidecar(*flags); };
  });
}

}  // namespace pith::cli
