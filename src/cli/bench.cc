// pith bench: prefill and decoding in tokens per second, beside libllama.
//
// All engines of a context live at once and take turns: a block of prefill each,
// then a few decoded tokens each. Whatever slows the machine down for a while
// slows all of them down alike.
#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/measure.h"
#include "cli/terminal.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
Engines take turns, block by block, so that a busy machine slows all of them alike; it should be quiet all the same.
The tail of prefill is the second half of the context, where attention weighs most. KV bytes are the peak: of pith with
its block buffer and tables, of libllama the f16 cache of the context. Peak memory of one engine is the process's
memory before it plus what it added.

Examples:
  pith bench --ctx 512,4000 -t 2
  pith bench -m model.gguf --ctx 8000 --recipes keydiff,snapkv --keep 1.0,0.1 --repeat 3 --json
)";

constexpr size_t kTurnTokens = 4;  // decoded before the next engine has its turn

struct BenchFlags {
  ModelFlags model;
  OutputFlags output;
  std::string ctx = "512,4000";
  std::string recipes = std::string(kDefaultRecipe);
  std::string keep = "1.0,0.1";
  std::string format;
  std::string flash_attention = "on";
  std::string file;
  int block = 0;
  int num_decoded = 32;
  int repeat = 1;
};

struct Config {
  std::string engine;  // "pith" or "libllama"
  std::string recipe;
  double keep = 1;
  bool flash_attention = true;
  KvFormat format = KvFormat::kF16;
};

// One engine on its way through the tokens.
class Runner {
 public:
  static Result<std::unique_ptr<Runner>> Create(const Config& config, const BenchFlags& flags,
                                                std::shared_ptr<HostModel> model, int ctx, int block) {
    std::unique_ptr<Runner> runner(new Runner);
    const size_t before = CurrentRssBytes();
    const int num_ctx = ctx + flags.num_decoded + 1;
    const int threads = flags.model.num_threads();
    if (config.engine == "libllama") {
      runner->kv_bytes_ = FullCacheBytes(model->info(), num_ctx);
      PITH_ASSIGN_OR_RETURN(runner->plain_,
                            PlainContext::Create(*model, num_ctx, block, config.flash_attention, threads));
    } else {
      EngineOptions options;
      options.num_ctx = num_ctx;
      options.block_tokens = block;
      options.num_threads = threads;
      options.format = config.format;
      PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe(config.recipe));
      if (config.keep < 1) options.keep_entries = std::max(1, static_cast<int>(config.keep * ctx));
      PITH_ASSIGN_OR_RETURN(runner->engine_, Engine::Create(std::move(model), options));
      PITH_ASSIGN_OR_RETURN(runner->sequence_, runner->engine_->NewSequence());
    }
    runner->NoteMemory(before);
    return runner;
  }

  Status Prefill(std::span<const int32_t> tokens, bool tail) {
    const size_t before = CurrentRssBytes();
    const Stopwatch watch;
    PITH_RETURN_IF_ERROR(plain_ ? plain_->Decode(0, tokens) : engine_->Prefill(sequence_, tokens));
    const double seconds = watch.seconds();
    prefill_seconds_ += seconds;
    prefill_tokens_ += tokens.size();
    if (tail) {
      tail_seconds_ += seconds;
      tail_tokens_ += tokens.size();
    }
    NoteMemory(before);
    return {};
  }

  Status Decode(std::span<const int32_t> tokens) {
    const size_t before = CurrentRssBytes();
    const Stopwatch watch;
    for (const int32_t token : tokens) {
      PITH_RETURN_IF_ERROR(plain_ ? plain_->Decode(0, std::span(&token, 1)) : engine_->Decode(sequence_, token));
    }
    decode_seconds_ += watch.seconds();
    decode_tokens_ += tokens.size();
    NoteMemory(before);
    return {};
  }

  double prefill_tps() const { return Rate(prefill_tokens_, prefill_seconds_); }
  double prefill_tail_tps() const { return Rate(tail_tokens_, tail_seconds_); }
  double decode_tps() const { return Rate(decode_tokens_, decode_seconds_); }
  size_t kv_bytes() const { return engine_ ? engine_->stats().peak_bytes : kv_bytes_; }
  size_t added_bytes() const { return static_cast<size_t>(std::max<int64_t>(peak_added_, 0)); }
  double policy_share() const {
    if (!engine_) return 0;
    const EngineTimes times = engine_->times();
    return times.total > 0 ? times.policy / times.total : 0;
  }
  double attention_share() const {
    if (!engine_) return 0;
    const EngineTimes times = engine_->times();
    return times.total > 0 ? times.attention / times.total : 0;
  }

 private:
  Runner() = default;
  static double Rate(size_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  }
  void NoteMemory(size_t before) {
    added_ += static_cast<int64_t>(CurrentRssBytes()) - static_cast<int64_t>(before);
    peak_added_ = std::max(peak_added_, added_);
  }

  std::unique_ptr<PlainContext> plain_;  // one of the two
  std::unique_ptr<Engine> engine_;
  SequenceId sequence_ = 0;
  size_t kv_bytes_ = 0;
  int64_t added_ = 0;
  int64_t peak_added_ = 0;
  double prefill_seconds_ = 0;
  double tail_seconds_ = 0;
  double decode_seconds_ = 0;
  size_t prefill_tokens_ = 0;
  size_t tail_tokens_ = 0;
  size_t decode_tokens_ = 0;
};

struct Row {
  Config config;
  int ctx = 0;
  std::vector<double> prefill, tail, decode;  // one value per repetition
  size_t kv_bytes = 0;
  size_t rss_peak_bytes = 0;
  double policy_share = 0;
  double attention_share = 0;
};

Result<std::vector<Config>> MakeConfigs(const BenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::vector<double> keeps, ParseNumbers(flags.keep, "--keep", 0.001, 1));
  PITH_ASSIGN_OR_RETURN(const KvFormat format, ParseFormat(flags.format));
  std::vector<Config> configs;
  if (flags.flash_attention != "off") configs.push_back({"libllama", "full", 1, true, KvFormat::kF16});
  if (flags.flash_attention != "on") configs.push_back({"libllama", "full", 1, false, KvFormat::kF16});
  bool has_full = false;
  for (const double keep : keeps) {
    if (keep >= 1) {  // nothing to drop: one row for all recipes
      if (!has_full) configs.push_back({"pith", "full", 1, true, format});
      has_full = true;
      continue;
    }
    for (const std::string& name : SplitRecipes(flags.recipes)) {
      PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(name));
      if (recipe.policy->keeps_everything()) continue;
      configs.push_back({"pith", name, keep, true, format});
    }
  }
  return configs;
}

// One repetition for one context. `first` turns the order of the engines.
Status Repetition(const BenchFlags& flags, const std::shared_ptr<HostModel>& model, std::span<const int32_t> tokens,
                  int ctx, size_t first, std::vector<Row>& rows, ProgressLine& progress, double done, double total) {
  const auto block = static_cast<size_t>(flags.block > 0 ? flags.block : std::min(512, ctx));
  const size_t base_rss = CurrentRssBytes();
  std::vector<std::unique_ptr<Runner>> runners;
  for (const Row& row : rows) {
    PITH_ASSIGN_OR_RETURN(auto runner, Runner::Create(row.config, flags, model, ctx, static_cast<int>(block)));
    runners.push_back(std::move(runner));
  }
  const auto each = [&](const auto& step) -> Status {
    for (size_t i = 0; i < runners.size(); ++i) {
      if (Interrupted()) return Cancelled("stopped");
      PITH_RETURN_IF_ERROR(step(*runners[(i + first) % runners.size()]));
    }
    ++first;
    return {};
  };
  const auto half = static_cast<size_t>(ctx) / 2;
  for (size_t at = 0; at < static_cast<size_t>(ctx);) {
    // A block ends at the half, so that the tail is exactly the second one.
    size_t size = std::min(block, static_cast<size_t>(ctx) - at);
    if (at < half) size = std::min(size, half - at);
    PITH_RETURN_IF_ERROR(each([&](Runner& runner) { return runner.Prefill(tokens.subspan(at, size), at >= half); }));
    at += size;
    progress.Update(done + static_cast<double>(at), total, fmt::format("context {}", ctx));
  }
  const auto answer = tokens.subspan(static_cast<size_t>(ctx), static_cast<size_t>(flags.num_decoded));
  for (size_t at = 0; at < answer.size(); at += kTurnTokens) {
    const auto turn = answer.subspan(at, std::min(kTurnTokens, answer.size() - at));
    PITH_RETURN_IF_ERROR(each([&](Runner& runner) { return runner.Decode(turn); }));
  }
  for (size_t i = 0; i < runners.size(); ++i) {
    rows[i].prefill.push_back(runners[i]->prefill_tps());
    rows[i].tail.push_back(runners[i]->prefill_tail_tps());
    rows[i].decode.push_back(runners[i]->decode_tps());
    rows[i].kv_bytes = runners[i]->kv_bytes();
    rows[i].rss_peak_bytes = std::max(rows[i].rss_peak_bytes, base_rss + runners[i]->added_bytes());
    rows[i].policy_share = runners[i]->policy_share();
    rows[i].attention_share = runners[i]->attention_share();
  }
  return {};
}

nlohmann::ordered_json ToJson(const BenchFlags& flags, const ModelInfo& info, const std::vector<Row>& rows) {
  auto list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    list.push_back({{"engine", row.config.engine},
                    {"recipe", row.config.recipe},
                    {"keep", row.config.keep},
                    {"ctx", row.ctx},
                    {"prefill_tps", Median(row.prefill)},
                    {"prefill_tail_tps", Median(row.tail)},
                    {"decode_tps", Median(row.decode)},
                    {"kv_bytes", row.kv_bytes},
                    {"rss_peak_bytes", row.rss_peak_bytes},
                    {"format", KvFormatName(row.config.format)},
                    {"flash_attention", row.config.flash_attention},
                    {"attention_share", row.attention_share},
                    {"policy_share", row.policy_share},
                    {"repeats", row.prefill.size()},
                    {"decode_tps_all", row.decode},
                    {"prefill_tps_all", row.prefill}});
  }
  return {{"model", info.description},
          {"architecture", info.architecture},
          {"threads", flags.model.num_threads()},
          {"decoded", flags.num_decoded},
          {"rss_peak_bytes", PeakRssBytes()},
          {"rows", list}};
}

void PrintText(const std::vector<Row>& rows) {
  size_t width = 6;
  for (const Row& row : rows) width = std::max(width, row.config.recipe.size());
  fmt::print("{:>6} {:<15} {:<{}} {:>5} {:>10} {:>10} {:>10} {:>12} {:>12}\n", "ctx", "engine", "recipe", width, "keep",
             "prefill/s", "tail/s", "decode/s", "KV", "peak memory");
  for (const Row& row : rows) {
    std::string engine = row.config.engine;
    if (engine == "libllama") engine += row.config.flash_attention ? ", FA on" : ", FA off";
    fmt::print("{:>6} {:<15} {:<{}} {:>5.3g} {:>10.1f} {:>10.1f} {:>10.1f} {:>12} {:>12}\n", row.ctx, engine,
               row.config.recipe, width, row.config.keep, Median(row.prefill), Median(row.tail), Median(row.decode),
               FormatBytes(row.kv_bytes), FormatBytes(row.rss_peak_bytes));
  }
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
Status WarmUp(const BenchFlags& flags, const HostModel& model, std::span<const int32_t> tokens) {
  const auto few = tokens.first(std::min<size_t>(tokens.size(), 64));
  PITH_ASSIGN_OR_RETURN(const auto plain, PlainContext::Create(model, 128, 64, true, flags.model.num_threads()));
  return plain->Decode(0, few);
}

Result<int> RunBench(BenchFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::vector<int> contexts, ParseIntegers(flags.ctx, "--ctx", 2, 100'000'000));
  PITH_ASSIGN_OR_RETURN(const std::vector<Config> configs, MakeConfigs(flags));
  if (!flags.file.empty()) PITH_RETURN_IF_ERROR(ReadFile(flags.file));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  const int longest = *std::max_element(contexts.begin(), contexts.end());
  const size_t count = static_cast<size_t>(longest) + static_cast<size_t>(flags.num_decoded);
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, BenchTokens(flags, *model, count));
  PITH_RETURN_IF_ERROR(WarmUp(flags, *model, tokens));
  std::vector<Row> rows;
  double total = 0;
  for (const int ctx : contexts) total += static_cast<double>(ctx) * flags.repeat;
  double done = 0;
  {
    ProgressLine progress("measuring", flags.output.progress);
    for (const int ctx : contexts) {
      std::vector<Row> group;
      for (const Config& config : configs) {
        group.emplace_back();
        group.back().config = config;
        group.back().ctx = ctx;
      }
      for (int i = 0; i < flags.repeat && !Interrupted(); ++i) {
        const Status status =
            Repetition(flags, model, tokens, ctx, static_cast<size_t>(i), group, progress, done, total);
        if (!status && !Interrupted()) return tl::unexpected<Error>(status.error());
        done += ctx;
      }
      std::erase_if(group, [](const Row& row) { return row.prefill.empty(); });
      rows.insert(rows.end(), group.begin(), group.end());
    }
  }
  if (flags.output.json) {
    PrintJson(ToJson(flags, model->info(), rows).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    PrintText(rows);
  }
  return Interrupted() ? kExitInterrupted : kExitOk;
}

Status Check(const BenchFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(ParseIntegers(flags.ctx, "--ctx", 2, 100'000'000));
  PITH_ASSIGN_OR_RETURN(const std::vector<Config> configs, MakeConfigs(flags));
  if (configs.empty()) return InvalidArgument("nothing is left to measure with these --recipes and --keep");
  return {};
}

}  // namespace

void AddBench(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure speed and memory beside libllama");
  command->footer(kExamples);
  command->add_option("--ctx,-c", flags->ctx, "Contexts in tokens (default 512,4000)")->type_name("N,...");
  command->add_option("--recipes", flags->recipes, fmt::format("Recipes (default {})", kDefaultRecipe))
      ->type_name("R,...");
  command->add_option("--keep", flags->keep,
                      "Kept fractions of the context (default 1.0,0.1); 1.0 is the full cache, one row for all recipes")
      ->type_name("F,...");
  command->add_option("-n,--predict", flags->num_decoded, "Tokens to decode (default 32)")
      ->check(CLI::Range(1, 1'000'000))
      ->type_name("N");
  command->add_option("--repeat,-r", flags->repeat, "Repetitions, of which the median is shown (default 1)")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  command->add_option("--flash-attn", flags->flash_attention,
                      "libllama with flash attention on (default), off, or both")
      ->check(CLI::IsMember({"on", "off", "both"}))
      ->type_name("WHICH");
  command->add_option("-f,--file", flags->file, "Text to read (default: made-up sentences)")->type_name("FILE");
  command->add_option("-b,--batch-size,--ubatch-size", flags->block, "Tokens read at once by all engines (default 512)")
      ->check(CLI::Range(1, 65536))
      ->type_name("N");
  command->add_option("--cache-type-k", flags->format, "-ctk: pith's format of keys and values, f16 (default) or q8_0")
      ->type_name("TYPE");
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  command->callback([flags, &chosen] {
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return RunBench(*flags); };
  });
}

}  // namespace pith::cli
