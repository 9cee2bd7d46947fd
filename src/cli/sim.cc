// pith sim: what caches would have kept.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/cores.h"
#include "base/escaped.h"
#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/sim_flags.h"
#include "cli/terminal.h"
#include "evict/read_trace.h"
#include "evict/registry.h"
#include "evict/simulate.h"
#include "lab/sim_html.h"

namespace pith::cli {
namespace {

using evict::SimulatedRow;
using nlohmann::ordered_json;

constexpr const char* kSimExamples = R"(
A capacity is in bytes (25000000, 25MB, 64MiB), or in blocks where the trace is of prompts. Formats of traces:
  csv     a header with the column id and any of time (s), size (bytes), ttl (s), rtt (us)
  jsonl   prompts as Mooncake writes them: timestamp (ms), input_length, output_length, hash_ids; a hit is a block
          whose whole prefix is stored
  oracle  oracleGeneral of libCacheSim
  nginx   access logs: the combined format, or
          '"$time_iso8601" $upstream_cache_status $cache_key $bytes $ttl $upstream_response_time'

Examples:
  pith sim --trace trace.csv --policy lru,gdsf,belady-size --capacity 25MB,100MB
  pith sim --trace access.log --policy lru,sieve --capacity 1GiB --ttl --json
  pith sim --trace prompts.jsonl --policy lru,arc,belady --curve 20 --html curves.html
  pith sim --list
  pith sim train --help
  pith sim sidecar --help
)";

struct SimFlags {
  std::string trace;
  std::string format;
  std::string policies = "lru";
  std::string capacities;
  int curve = 0;
  int threads = 0;
  bool ttl = false;
  bool list = false;
  bool json = false;
  std::string html;
};

// Whether there is such an evictor with such parameters. Whether it can do with a trace, and what is in the files that
// it names, is seen when it is made.
Status CheckPolicy(const std::string& policy, evict::TraceFormat format) {
  const std::string name = policy.substr(0, policy.find(':'));
  const auto known = evict::ListPolicies();
  if (std::ranges::none_of(known, [&](const evict::PolicyInfo& info) { return info.name == name; })) {
    return InvalidArgument(fmt::format("there is no policy \"{}\"; \"pith sim --list\" lists them", Escaped(name)));
  }
  PITH_ASSIGN_OR_RETURN(const evict::Trace one,
                        format == evict::TraceFormat::kPrompts
                            ? evict::ReadTrace(format, "{\"timestamp\": 0, \"hash_ids\": [0]}", "a prompt")
                            : evict::ReadTrace(evict::TraceFormat::kCsv, "id\n0\n", "a request"));
  const auto made = evict::MakeEvictor(policy, {1, one.num_objects(), &one});
  if (made || made.error().code != ErrorCode::kInvalidArgument) return {};
  return InvalidArgument(fmt::format("--policy: {}", made.error().message));
}

Status CheckSim(const SimFlags& flags) {
  if (flags.list) return {};
  if (flags.trace.empty()) return InvalidArgument("--trace is missing (see \"pith sim --help\")");
  if (flags.capacities.empty() == (flags.curve == 0)) {
    return InvalidArgument("give sizes with --capacity, or their number with --curve");
  }
  PITH_RETURN_IF_ERROR(ParseCapacities(flags.capacities));
  PITH_ASSIGN_OR_RETURN(const evict::TraceFormat format,
                        flags.format.empty() ? evict::FormatOfFile(flags.trace) : evict::ParseFormatName(flags.format));
  const std::vector<std::string> policies = SplitRecipes(flags.policies);
  if (policies.empty()) return InvalidArgument("--policy names no evictor; \"pith sim --list\" lists them");
  for (const std::string& policy : policies) PITH_RETURN_IF_ERROR(CheckPolicy(policy, format));
  return CheckOutput(flags.html);
}

ordered_json ToJson(const SimFlags& flags, const evict::Trace& trace, double load_seconds,
                    const std::vector<SimulatedRow>& rows) {
  ordered_json json = {{"trace", flags.trace},
                       {"unit", trace.has_prompts() ? "blocks" : "bytes"},
                       {"requests", trace.num_requests()},
                       {"accesses", trace.num_accesses()},
                       {"objects", trace.num_objects()},
                       {"bytes", trace.total_bytes()},
                       {"footprint", trace.footprint_bytes()},
                       {"ttl", flags.ttl},
                       {"load_seconds", load_seconds},
                       {"rows", ordered_json::array()}};
  for (const SimulatedRow& row : rows) {
    json["rows"].push_back({{"policy", row.policy},
                            {"capacity", row.capacity},
                            {"requests", row.tally.requests},
                            {"hits", row.tally.hits},
                            {"hit_bytes", row.tally.hit_bytes},
                            {"hit_ratio", row.hit_ratio},
                            {"byte_hit_ratio", row.byte_hit_ratio},
                            {"evictions", row.tally.evictions},
                            {"ns_per_request", row.ns_per_request}});
  }
  return json;
}

void PrintTable(const evict::Trace& trace, const std::vector<SimulatedRow>& rows) {
  size_t width = 6;
  for (const SimulatedRow& row : rows) width = std::max(width, row.policy.size());
  fmt::print("{} {}, {} objects, {} {}\n", FormatCount(static_cast<int64_t>(trace.num_requests())),
             trace.has_prompts() ? "prompts" : "requests", FormatCount(static_cast<int64_t>(trace.num_objects())),
             FormatCount(static_cast<int64_t>(trace.footprint_bytes())),
             trace.has_prompts() ? "blocks together" : "bytes together");
  fmt::print("{:<{}}  {:>16}  {:>9}  {:>9}  {:>12}  {:>8}\n", "policy", width, "capacity", "hits", "of bytes",
             "evictions", "ns");
  for (const SimulatedRow& row : rows) {
    fmt::print("{:<{}}  {:>16}  {:>8.2f}%  {:>8.2f}%  {:>12}  {:>8.1f}\n", row.policy, width,
               FormatCount(static_cast<int64_t>(row.capacity)), 100 * row.hit_ratio, 100 * row.byte_hit_ratio,
               FormatCount(static_cast<int64_t>(row.tally.evictions)), row.ns_per_request);
  }
}

void PrintPolicies() {
  size_t width = 0;
  for (const evict::PolicyInfo& info : evict::ListPolicies()) width = std::max(width, info.name.size());
  for (const evict::PolicyInfo& info : evict::ListPolicies()) {
    fmt::print("{:<{}}  {}{}\n", info.name, width, info.summary,
               info.source.empty() ? "" : fmt::format(" ({})", info.source));
  }
}

Result<int> RunSim(const SimFlags& flags) {
  if (flags.list) {
    PrintPolicies();
    return kExitOk;
  }
  const Stopwatch watch;
  PITH_ASSIGN_OR_RETURN(const evict::Trace trace, ReadTraceFile(flags.trace, flags.format));
  const double load_seconds = watch.seconds();
  evict::SimulateOptions options;
  options.policies = SplitRecipes(flags.policies);
  options.with_ttl = flags.ttl;
  options.num_threads = flags.threads > 0 ? flags.threads : PhysicalCores();
  options.stop = Interrupted;
  if (flags.curve > 0) {
    options.capacities = evict::CurveCapacities(trace, flags.curve);
  } else {
    PITH_ASSIGN_OR_RETURN(options.capacities, ParseCapacities(flags.capacities));
  }
  PITH_ASSIGN_OR_RETURN(const std::vector<SimulatedRow> rows, evict::Simulate(trace, options));
  for (const SimulatedRow& row : rows) {
    if (row.unanswered == 0) continue;
    Note("{}, {}: {} of {} questions had no answer, and the least recently used went\n", Escaped(row.policy),
         FormatCount(static_cast<int64_t>(row.capacity)), FormatCount(static_cast<int64_t>(row.unanswered)),
         FormatCount(static_cast<int64_t>(row.asked)));
  }
  const ordered_json json = ToJson(flags, trace, load_seconds, rows);
  if (!flags.html.empty()) PITH_RETURN_IF_ERROR(WriteFile(flags.html, SimHtml(json)));
  if (flags.html == "-") return kExitOk;
  if (flags.json) {
    PrintJson(JsonText(json, 2));
  } else {
    PrintTable(trace, rows);
  }
  return kExitOk;
}

}  // namespace

void AddSim(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<SimFlags>();
  CLI::App* command = AddCommand(app, "sim", "Replay a trace of requests against caches of many kinds and sizes",
                                 kSimExamples);
  AddOption(*command, "--trace", flags->trace, "The trace, or - for standard input", "FILE");
  AddChoice(*command, "--format", flags->format, {"csv", "jsonl", "oracle", "nginx"},
            "Its format (default: by the file's name: .csv, .jsonl, .oracleGeneral.bin, .log)", "FORMAT");
  AddOption(*command, "--policy", flags->policies,
            "Evictors, with parameters behind a colon (default lru; --list names all)", "P,...");
  AddOption(*command, "--capacity", flags->capacities, "Sizes of the cache, in bytes or blocks", "C,...");
  AddNumber(*command, "--curve", flags->curve, 1, 1000,
            "In place of --capacity: so many sizes from a thousandth of all objects to all of them", "N");
  AddFlag(*command, "--ttl", flags->ttl, "Objects expire as the trace says");
  AddNumber(*command, "-t,--threads", flags->threads, 1, 1024, "Replays at once (default: physical cores)", "N");
  AddFlag(*command, "--list", flags->list, "List all policies");
  AddFlag(*command, "--json", flags->json, "Print one JSON object");
  AddOption(*command, "--html", flags->html, "Write miss-ratio curves, one page that needs no network", "FILE");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckSim(*flags); };
    chosen.run = [flags] { return RunSim(*flags); };
  });
  AddSimTrain(*command, chosen);
  AddSimSidecar(*command, chosen);
}

}  // namespace pith::cli
