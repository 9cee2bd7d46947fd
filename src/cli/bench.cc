// pith bench: prefill and decoding in tokens per second, beside libllama.
//
// All engines of a group (one context, thread count and batch size) live at once
// and take turns: a block of prefill each, then a few decoded tokens each.
// Whatever slows the machine down for a while slows all of them down alike.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "base/json_text.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "lab/bench_report.h"
#include "lab/bench_runner.h"
#include "lab/machine.h"
#include "lab/measure.h"

namespace pith::cli {
namespace {

constexpr const char* kBenchExamples = R"(
Engines take turns, block by block, so that a busy machine slows all of them alike; it should be quiet all the same, and
bench says so when it is not. Rows carry llama-bench's names: pp512 reads 512 tokens, pp256 @ d256 reads 256 behind 256,
tg32 @ d512 decodes 32 tokens behind 512. Shown is the median of the repetitions; "x libllama" is against the better of
its settings of flash attention, in the same cache format where it has one, else f16. "x attention" compares attention
alone: libllama's is what it takes beyond the rest of the graph, where both run that alike (prompts: only with
--libllama-products). "of roofline": attention's share of the measured memory bandwidth (decode) or of the peak
of multiply-adds (prefill, full cache).

KV bytes are the peak: of pith with its block buffer and tables, of libllama the cache of the context. Peak memory of one
engine is the process's memory before it plus what it added. With --fill synthetic the context is not read: made-up keys
and values stand for it, in libllama through its state API, and only the tail is; speed is the same, quality has no meaning.

Examples:
  pith bench --ctx 512,4000 -t 2
  pith bench -m model.gguf --ctx 8000 --recipes keydiff,snapkv --keep 1.0,0.1 -r 3 --json
  pith bench --ctx 32768 --fill synthetic --tail 0 --keep 1.0,0.032 -n 128
  pith bench --ctx 4096 --fill synthetic --tail 0 --batch 1,4,16 --keep 1.0,0.2 --kv-budget 640MiB
  pith bench --ctx 8192 -ctk f16,q8_0 -t 1,2 -o after.json && pith bench --compare before.json after.json
)";

constexpr size_t kTurnTokens = 8;  // decoded before the next engine has its turn

struct BenchFlags {
  ModelFlags model;
  OutputFlags output;
  std::string ctx = "512,4000";
  std::string recipes = std::string(kDefaultRecipe);
  std::string keep = "1.0,0.1";
  std::string key_formats = "f16";
  std::string value_formats;
  std::string threads;
  std::string batches = "1";
  std::string flash_attention = "both";
  std::string fill = "real";
  std::string budget;
  std::string file;
  std::string save;
  std::vector<std::string> compare;
  int tail = -1;
  int block = 0;
  int num_decoded = 32;
  int repeat = 5;
  bool markdown = false;
};

Result<std::vector<PageFormat>> Formats(const BenchFlags& flags) {
  std::vector<PageFormat> formats;
  const std::string& names = flags.key_formats.empty() ? flags.value_formats : flags.key_formats;
  for (const std::string& name : SplitRecipes(names)) {
    PITH_ASSIGN_OR_RETURN(const PageFormat format, ParseFormats(name));
    formats.push_back(format);
  }
  if (formats.empty()) formats.emplace_back();
  if (!flags.value_formats.empty() && flags.value_formats != names) {
    return InvalidArgument("keys and values share one format: give -ctk and -ctv the same types");
  }
  return formats;
}

// The rows of one group: libllama's first, then pith's.
Result<std::vector<BenchConfig>> MakeConfigs(const BenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::vector<double> keeps, ParseNumbers(flags.keep, "--keep", 0.0001, 1));
  PITH_ASSIGN_OR_RETURN(const std::vector<PageFormat> formats, Formats(flags));
  std::vector<BenchConfig> configs;
  for (const PageFormat format : formats) {
    if (PlainTypeOf(format.key).empty() || flags.flash_attention == "none") continue;
    BenchConfig config{.engine = "libllama", .format = format};
    if (flags.flash_attention != "off") configs.push_back(config);
    config.flash_attention = false;
    // libllama quantises values with flash attention only.
    if (flags.flash_attention != "on" && format == PageFormat()) configs.push_back(config);
  }
  for (const PageFormat format : formats) {
    bool has_full = false;
    for (const double keep : keeps) {
      if (keep >= 1 && !has_full) {  // nothing to drop: one row for all recipes that read the whole prompt
        configs.push_back({.engine = "pith", .format = format});
        has_full = true;
      }
      for (const std::string& name : SplitRecipes(flags.recipes)) {
        PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(name));
        if (NeedsWholePrompt(recipe)) {
          return InvalidArgument(
              fmt::format("bench times blocks and tokens, and {} does its work once, between them: \"pith run "
                          "--json\" gives its share of the time",
                          name));
        }
        if (keep >= 1 ? !recipe.prefill.has_value() : recipe.policy->keeps_everything()) continue;
        configs.push_back({.engine = "pith", .recipe = name, .keep = keep, .format = format});
      }
    }
  }
  return configs;
}

Result<BenchCase> MakeCase(const BenchFlags& flags, const ModelInfo& info, int ctx) {
  BenchCase bench;
  bench.ctx = ctx;
  bench.synthetic = flags.fill == "synthetic";
  bench.tail = flags.tail >= 0 ? flags.tail : bench.synthetic ? std::min(512, ctx / 2) : ctx - ctx / 2;
  bench.num_decoded = flags.num_decoded;
  bench.block = flags.block > 0 ? flags.block : std::min(512, ctx);
  if (bench.tail > ctx)
    return InvalidArgument(fmt::format("a tail of {} tokens is longer than the context of {}", bench.tail, ctx));
  if (!flags.budget.empty()) {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(flags.budget));
    const double full = static_cast<double>(FullCacheBytes(info, ctx));
    bench.kv_budget = budget.share > 0 ? static_cast<size_t>(budget.share * full) : budget.bytes;
  }
  return bench;
}

using Runners = std::vector<std::unique_ptr<BenchRunner>>;

// Gives each engine its turn; `first` turns the order.
template <typename Step>
Status EachInTurn(Runners& runners, size_t& first, const Step& step) {
  for (size_t i = 0; i < runners.size(); ++i) {
    if (Interrupted()) return Cancelled("stopped");
    PITH_RETURN_IF_ERROR(step(*runners[(i + first) % runners.size()]));
  }
  ++first;
  return {};
}

struct Advance {
  ProgressLine& line;
  double done;
  double total;
};

Status ReadContext(const BenchCase& bench, std::span<const int32_t> tokens, Runners& runners, size_t& first,
                   const Advance& progress) {
  const auto ctx = static_cast<size_t>(bench.ctx), head = static_cast<size_t>(bench.ctx - bench.tail);
  size_t at = 0;
  if (bench.synthetic) {
    PITH_RETURN_IF_ERROR(
        EachInTurn(runners, first, [&](BenchRunner& runner) { return runner.Fill(static_cast<int>(head)); }));
    at = head;
  }
  while (at < ctx) {
    size_t size = std::min(static_cast<size_t>(bench.block), ctx - at);
    if (at < head) size = std::min(size, head - at);  // a block ends where the tail begins
    const bool tail = at >= head;
    PITH_RETURN_IF_ERROR(EachInTurn(
        runners, first, [&](BenchRunner& runner) { return runner.Prefill(tokens.subspan(at, size), tail); }));
    at += size;
    progress.line.Update(progress.done + static_cast<double>(at), progress.total, fmt::format("context {}", bench.ctx));
  }
  return {};
}

// One repetition of one group.
Status Repetition(const std::shared_ptr<HostModel>& model, std::span<const int32_t> tokens, size_t first,
                  std::span<BenchRow> rows, const Advance& progress) {
  const BenchCase& bench = rows.front().bench;
  const size_t base_rss = CurrentRssBytes();
  Runners runners;
  for (const BenchRow& row : rows) {
    PITH_ASSIGN_OR_RETURN(auto runner, BenchRunner::Create(row.config, bench, model));
    runners.push_back(std::move(runner));
  }
  PITH_RETURN_IF_ERROR(ReadContext(bench, tokens, runners, first, progress));
  const auto answer = tokens.subspan(static_cast<size_t>(bench.ctx), static_cast<size_t>(bench.num_decoded));
  for (size_t at = 0; at < answer.size(); at += kTurnTokens) {
    const auto turn = answer.subspan(at, std::min(kTurnTokens, answer.size() - at));
    PITH_RETURN_IF_ERROR(EachInTurn(runners, first, [&](BenchRunner& runner) { return runner.Decode(turn); }));
  }
  for (size_t i = 0; i < runners.size(); ++i) {
    rows[i].num_sequences = runners[i]->num_sequences();
    rows[i].prefill.push_back(runners[i]->prefill());
    rows[i].tail.push_back(runners[i]->tail());
    rows[i].decode.push_back(runners[i]->decode());
    rows[i].kv_bytes = runners[i]->kv_bytes();
    rows[i].rss_peak_bytes = std::max(rows[i].rss_peak_bytes, base_rss + runners[i]->added_bytes());
  }
  return {};
}

Result<std::vector<int32_t>> BenchTokens(const BenchFlags& flags, const HostModel& model, size_t count) {
  if (flags.file.empty()) return FillerTokens(model, count);
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.file));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model.Tokenize(text, true, false));
  if (tokens.size() < count) {
    return InvalidArgument(fmt::format("{} has {} tokens, and {} are needed", flags.file, tokens.size(), count));
  }
  tokens.resize(count);
  return tokens;
}

// The first use of the weights pays for reading the file; nobody's row should.
Status WarmUp(int threads, const HostModel& model, std::span<const int32_t> tokens) {
  const auto few = tokens.first(std::min<size_t>(tokens.size(), 64));
  PITH_ASSIGN_OR_RETURN(const auto plain, PlainContext::Create(model, 128, 64, true, threads));
  return plain->Decode(0, few);
}

Result<std::vector<int>> ThreadCounts(const BenchFlags& flags) {
  if (flags.threads.empty()) return std::vector<int>{PhysicalCores()};
  return ParseIntegers(flags.threads, "-t", 1, 1024);
}

// All groups of rows, in the order of the report.
Result<std::vector<std::vector<BenchRow>>> MakeGroups(const BenchFlags& flags, const ModelInfo& info) {
  PITH_ASSIGN_OR_RETURN(const std::vector<int> contexts, ParseIntegers(flags.ctx, "--ctx", 2, 100'000'000));
  PITH_ASSIGN_OR_RETURN(const std::vector<int> threads, ThreadCounts(flags));
  PITH_ASSIGN_OR_RETURN(const std::vector<int> batches, ParseIntegers(flags.batches, "--batch", 1, 512));
  PITH_ASSIGN_OR_RETURN(const std::vector<BenchConfig> configs, MakeConfigs(flags));
  std::vector<std::vector<BenchRow>> groups;
  for (const int ctx : contexts) {
    PITH_ASSIGN_OR_RETURN(const BenchCase bench, MakeCase(flags, info, ctx));
    for (const int num_threads : threads) {
      for (const int batch : batches) {
        std::vector<BenchRow>& group = groups.emplace_back();
        for (BenchConfig config : configs) {
          config.threads = num_threads;
          config.batch = batch;
          group.emplace_back().config = config;
          group.back().bench = bench;
        }
      }
    }
  }
  return groups;
}

Status Measure(const BenchFlags& flags, const std::shared_ptr<HostModel>& model,
               std::vector<std::vector<BenchRow>>& groups, BenchReport& report) {
  int longest = 0;
  double total = 0;
  for (const auto& group : groups) {
    longest = std::max(longest, group.front().bench.ctx);
    total += static_cast<double>(group.front().bench.ctx) * flags.repeat;
  }
  PITH_ASSIGN_OR_RETURN(
      const std::vector<int32_t> tokens,
      BenchTokens(flags, *model, static_cast<size_t>(longest) + static_cast<size_t>(flags.num_decoded)));
  PITH_RETURN_IF_ERROR(WarmUp(groups.front().front().config.threads, *model, tokens));
  double done = 0;
  ProgressLine progress("measuring", flags.output.progress);
  for (auto& group : groups) {
    const ProcessorWatch processors;
    for (int i = 0; i < flags.repeat && !Interrupted(); ++i) {
      const Status status = Repetition(model, tokens, static_cast<size_t>(i), group, {progress, done, total});
      if (!status && !Interrupted()) return status;
      done += group.front().bench.ctx;
      progress.Update(done, total, fmt::format("context {}", group.front().bench.ctx));
    }
    report.free_share = std::min(report.free_share, processors.FreeShare(group.front().config.threads));
    std::erase_if(group, [](const BenchRow& row) { return row.decode.empty(); });
    report.rows.insert(report.rows.end(), group.begin(), group.end());
  }
  return {};
}

Result<nlohmann::ordered_json> ReadRun(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto json = OrderedJsonOf(text);
  if (!json.is_object()) return InvalidArgument(path + " is no result of \"pith bench --json\"");
  return json;
}

Result<int> Compare(const BenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const nlohmann::ordered_json before, ReadRun(flags.compare[0]));
  PITH_ASSIGN_OR_RETURN(const nlohmann::ordered_json after, ReadRun(flags.compare[1]));
  PITH_ASSIGN_OR_RETURN(const std::string text, CompareRuns(before, after));
  fmt::print("{}", text);
  return kExitOk;
}

Result<int> RunBench(BenchFlags& flags) {
  if (!flags.compare.empty()) return Compare(flags);
  PITH_RETURN_IF_ERROR(CheckOutput(flags.save));
  if (!flags.file.empty()) PITH_RETURN_IF_ERROR(ReadFile(flags.file));
  PITH_ASSIGN_OR_RETURN(const std::vector<int> threads, ThreadCounts(flags));
  flags.model.threads = threads.front();
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  BenchReport report;
  report.machine = DescribeMachine();
  report.repeats = flags.repeat;
  report.float_products = model->float_products();
  report.byte_products = model->byte_products();
  for (const int count : threads) report.rooflines.emplace_back(count, MeasureRoofline(count));
  PITH_ASSIGN_OR_RETURN(auto groups, MakeGroups(flags, model->info()));
  PITH_RETURN_IF_ERROR(Measure(flags, model, groups, report));
  if (report.rows.empty()) return kExitInterrupted;
  report.rss_peak_bytes = PeakRssBytes();
  const nlohmann::ordered_json json = ToJson(report, model->info());
  const std::string dumped = JsonText(json, 1);
  if (report.free_share < kBusyBelow) {
    Note("pith: the machine is too busy to measure: a thread got {:.0f}% of its time.\n", 100 * report.free_share);
  }
  if (!flags.save.empty()) PITH_RETURN_IF_ERROR(WriteFile(flags.save, dumped + "\n"));
  if (flags.output.json) {
    PrintJson(dumped);
  } else {
    fmt::print("{}", ToMarkdown(json));
  }
  return Interrupted() ? kExitInterrupted : kExitOk;
}

Status CheckBench(const BenchFlags& flags) {
  if (!flags.compare.empty()) return {};
  PITH_RETURN_IF_ERROR(flags.model.Check());
  if (flags.output.json && flags.markdown) return InvalidArgument("--json and --md are two ways to print the same");
  if (flags.fill == "synthetic" && !flags.file.empty())
    return InvalidArgument("a synthetic cache reads no file: drop -f or --fill");
  PITH_ASSIGN_OR_RETURN(const auto groups, MakeGroups(flags, ModelInfo{}));
  if (groups.front().empty()) return InvalidArgument("nothing is left to measure with these --recipes and --keep");
  return {};
}

void AddCaseOptions(CLI::App& command, BenchFlags& flags) {
  AddOption(command, "--ctx,-c", flags.ctx, "Contexts in tokens (default 512,4000)", "N,...");
  AddNumber(command, "--tail", flags.tail, 0, 100'000'000,
            "Tokens at the end of the context whose prefill is timed by itself (default: its second half; with "
            "--fill synthetic 512, since no others are read); 0: none",
            "N");
  AddChoice(command, "--fill", flags.fill, {"real", "synthetic"},
            "What the context holds: real text that is read (default), or synthetic entries", "WHAT");
  AddNumber(command, "-n,--predict", flags.num_decoded, 1, 1'000'000, "Tokens to decode (default 32)", "N");
  AddNumber(command, "--repeat,-r", flags.repeat, 1, 1000, "Repetitions, of which the median is shown (default 5)",
            "N");
  AddOption(command, "-f,--file", flags.file, "Text to read (default: made-up sentences)", "FILE");
  AddNumber(command, "-b,--batch-size,--ubatch-size", flags.block, 1, 65536,
            "Tokens read at once by all engines (default 512)", "N");
}

void AddConfigOptions(CLI::App& command, BenchFlags& flags) {
  AddOption(command, "--recipes", flags.recipes, fmt::format("Recipes (default {})", kDefaultRecipe), "R,...");
  AddOption(command, "--keep", flags.keep,
            "Kept fractions of the context (default 1.0,0.1); 1.0 is the full cache, one row for all recipes", "F,...");
  AddOption(command, "--cache-type-k", flags.key_formats,
            "-ctk: cache formats, of libllama too where it has them (default f16)", "TYPE,...");
  AddOption(command, "--cache-type-v", flags.value_formats, "-ctv: formats of values; must be those of the keys",
            "TYPE,...");
  AddOption(command, "-t,--threads", flags.threads, "Thread counts (default: this machine's physical cores)", "N,...");
  AddOption(command, "--batch", flags.batches, "Sequences decoded at once, each with the whole context (default 1)",
            "N,...");
  AddOption(command, "--kv-budget", flags.budget,
            "Cache memory of each engine: as many of the --batch sequences run as fit. A size such as 64MiB, or a "
            "percentage of one sequence's full f16 cache, such as 320%",
            "SIZE|PERCENT");
  AddChoice(command, "--flash-attn", flags.flash_attention, {"on", "off", "both", "none"},
            "libllama with flash attention on, off, both (default), or none: no libllama", "WHICH");
}

}  // namespace

void AddBench(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = AddCommand(app, "bench", "Measure speed and memory beside libllama", kBenchExamples);
  AddCaseOptions(*command, *flags);
  AddConfigOptions(*command, *flags);
  AddModelFlags(*command, flags->model, /*with_threads=*/false);
  AddOutputFlags(*command, flags->output);
  AddFlag(*command, "--md", flags->markdown, "Print a Markdown table (default)");
  AddOption(*command, "-o,--output", flags->save, "Write the JSON of the run to this file too", "FILE");
  AddTuple(*command, "--compare", flags->compare, 2,
           "Compare two such files, second against first, and measure nothing", "FILE FILE");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckBench(*flags); };
    chosen.run = [flags] { return RunBench(*flags); };
  });
}

}  // namespace pith::cli
