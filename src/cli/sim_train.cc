// pith sim train: the networks behind evictors, from traces.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/sim_flags.h"
#include "cli/terminal.h"
#include "evict/learn/one_bit_model.h"
#include "evict/learn/train_coldrl.h"
#include "evict/learn/train_survival.h"
#include "evict/read_trace.h"

namespace pith::cli {
namespace {

using evict::Checkpoint;
using evict::Model;
using evict::ModelKind;
using evict::TrainHooks;
using evict::TrainProgress;

constexpr const char* kSimTrainExamples = R"(
What is trained:
  coldrl       the Q-network of Cold-RL, for caches of the sizes given: each trace's first 70% teach, the rest decides
               which epoch was the best
  learned      what foresees the next request of an object, whatever the cache's size; of prompts it learns untrained
  fwa0, mark0  whether the optimum would evict the object before its next request, for caches of the sizes given
  mnp          whether it is asked for in the next phase, likewise
Give traces of one kind of use, several if there are: each counts the same. The same seed gives the same file. While it
runs, its state is kept beside the model as FILE.state; --resume goes on from there.

Examples:
  pith sim train --policy coldrl --trace monday.csv,tuesday.csv --capacity 25MB,100MB --out cold.pithnet
  pith sim --trace wednesday.csv --policy gdsf,coldrl:model=cold.pithnet --capacity 25MB
  pith sim train --policy learned --trace monday.csv,access.log --out reuse.pithnet
  pith sim train --policy mark0 --trace prompts.jsonl --capacity 10000 --out bits.pithnet
)";

struct TrainFlags {
  std::string policy;
  std::string traces;
  std::string format;
  std::string capacities;
  std::string out;
  int64_t seed = 1;
  int steps = 0;
  int hidden = 32;
  bool ttl = false;
  bool resume = false;
  OutputFlags output;
};

std::string StateFile(const TrainFlags& flags) { return flags.out + ".state"; }

Status CheckSimTrain(const TrainFlags& flags) {
  const bool sized = flags.policy != "learned";
  if (sized && flags.capacities.empty()) {
    return InvalidArgument(fmt::format("{} is trained for sizes of the cache: give --capacity", flags.policy));
  }
  if (!sized && !flags.capacities.empty()) return InvalidArgument("learned knows no --capacity: it fits all sizes");
  if (flags.ttl && flags.policy != "coldrl") return InvalidArgument("--ttl is for coldrl");
  if (flags.seed < 0) return InvalidArgument("--seed takes numbers from 0 on");
  if (flags.out == "-") return InvalidArgument("--out takes a file, not standard output");
  PITH_RETURN_IF_ERROR(ParseCapacities(flags.capacities));
  if (flags.format.empty()) {
    for (const std::string& trace : SplitCommas(flags.traces)) PITH_RETURN_IF_ERROR(evict::FormatOfFile(trace));
  }
  PITH_RETURN_IF_ERROR(CheckOutput(StateFile(flags)));
  return CheckOutput(flags.out);
}

Result<std::vector<evict::Trace>> ReadTraces(const TrainFlags& flags) {
  std::vector<evict::Trace> traces;
  for (const std::string& path : SplitCommas(flags.traces)) {
    PITH_ASSIGN_OR_RETURN(evict::Trace trace, ReadTraceFile(path, flags.format));
    traces.push_back(std::move(trace));
  }
  return traces;
}

Result<Model> Train(const TrainFlags& flags, const std::vector<evict::Trace>& traces, const TrainHooks& hooks) {
  PITH_ASSIGN_OR_RETURN(const std::vector<uint64_t> capacities, ParseCapacities(flags.capacities));
  if (flags.policy == "coldrl") {
    evict::ColdRlOptions options;
    options.seed = static_cast<uint64_t>(flags.seed);
    options.hidden = static_cast<uint32_t>(flags.hidden);
    options.with_ttl = flags.ttl;
    // Steps of learning, in epochs of as many as by default.
    if (flags.steps > 0) options.epochs = (static_cast<uint32_t>(flags.steps) + options.steps - 1) / options.steps;
    return evict::TrainColdRl(traces, capacities, options, hooks);
  }
  evict::FitOptions options;
  options.seed = static_cast<uint64_t>(flags.seed);
  options.hidden = static_cast<uint32_t>(flags.hidden);
  if (flags.steps > 0) options.steps = static_cast<uint64_t>(flags.steps);
  if (flags.policy == "learned") return evict::TrainSurvival(traces, options, hooks);
  const ModelKind kind = flags.policy == "mnp" ? ModelKind::kPhaseBit : ModelKind::kDiscardBit;
  return evict::TrainOneBit(kind, traces, capacities, options, hooks);
}

Result<int> RunTrain(const TrainFlags& flags) {
  const Stopwatch watch;
  Checkpoint from;
  TrainHooks hooks;
  if (flags.resume) {
    PITH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(StateFile(flags)));
    PITH_ASSIGN_OR_RETURN(from, evict::ParseCheckpoint(bytes, StateFile(flags)));
    hooks.from = &from;
  }
  PITH_ASSIGN_OR_RETURN(const std::vector<evict::Trace> traces, ReadTraces(flags));
  ProgressLine line(fmt::format("training {}", flags.policy), flags.output.progress);
  TrainProgress last;
  hooks.progress = [&](const TrainProgress& now) {
    last = now;
    line.Update(static_cast<double>(now.step), static_cast<double>(now.steps),
                now.hit_ratio > 0 ? fmt::format("loss {:.4f}, hits {:.2f}%", now.loss, 100 * now.hit_ratio)
                                  : fmt::format("loss {:.4f}", now.loss));
    return !Interrupted();
  };
  Stopwatch since_saved;
  hooks.save = [&](const Checkpoint& state) -> Status {
    // A state is a few hundred KB: not more often than it is worth, but once more where it is about to end.
    if (since_saved.seconds() < 2 && !Interrupted()) return {};
    since_saved = Stopwatch();
    return WriteFile(StateFile(flags), evict::SerializeCheckpoint(state));
  };
  PITH_ASSIGN_OR_RETURN(const Model model, Train(flags, traces, hooks));
  const std::string bytes = evict::SerializeModel(model);
  PITH_RETURN_IF_ERROR(evict::ParseModel(bytes, model.kind, flags.out));
  PITH_RETURN_IF_ERROR(WriteFile(flags.out, bytes));
  std::error_code ignored;
  std::filesystem::remove(StateFile(flags), ignored);
  if (flags.output.json) {
    PrintJson(JsonText(nlohmann::ordered_json{{"policy", flags.policy},
                                              {"out", flags.out},
                                              {"bytes", bytes.size()},
                                              {"steps", last.step},
                                              {"loss", last.loss},
                                              {"hit_ratio", last.hit_ratio},
                                              {"seconds", watch.seconds()}}));
  } else {
    fmt::print("{}: {} bytes, loss {:.4f}, {:.1f} s\n", flags.out, FormatCount(static_cast<int64_t>(bytes.size())),
               last.loss, watch.seconds());
  }
  return kExitOk;
}

}  // namespace

void AddSimTrain(CLI::App& sim, Command& chosen) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = AddCommand(sim, "train", "Train the network behind an evictor from traces", kSimTrainExamples);
  Require(AddChoice(*command, "--policy", flags->policy, {"coldrl", "learned", "fwa0", "mark0", "mnp"},
                    "The evictor", "EVICTOR"));
  Require(AddOption(*command, "--trace", flags->traces, "What it learns from", "FILE,..."));
  AddChoice(*command, "--format", flags->format, {"csv", "jsonl", "oracle", "nginx"},
            "The traces' format (default: by the files' names)", "FORMAT");
  AddOption(*command, "--capacity", flags->capacities, "Sizes of the cache, in bytes or blocks", "C,...");
  Require(AddOption(*command, "--out", flags->out, "Where the model goes", "FILE"));
  AddOption(*command, "--seed", flags->seed, "Of all that is drawn by lot (default 1)", "SEED");
  AddNumber(*command, "--steps", flags->steps, 1, 100'000'000, "Steps of learning (default 20000)", "N");
  AddNumber(*command, "--hidden", flags->hidden, 4, 256, "Width of the two inner layers (default 32)", "N");
  AddFlag(*command, "--ttl", flags->ttl, "Objects expire as the traces say (coldrl)");
  AddFlag(*command, "--resume", flags->resume, "Go on from FILE.state, where a training was stopped");
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckSimTrain(*flags); };
    chosen.run = [flags] { return RunTrain(*flags); };
  });
}

}  // namespace pith::cli
