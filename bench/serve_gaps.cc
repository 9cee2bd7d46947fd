// What running texts feel of a long prompt: gaps between tokens of N sequences that decode, while one more is read.
//
//   pith_serve_gaps [-m model.gguf] [--running 8] [--context 500] [--prompt 4000] [--shares 0.3,0.5,0.65,1] [-t 2]
//   [--compress RECIPE [--keep 0.2]] [--json]
//
// For each share of prompts three things are measured through the scheduler, `--repeat` times in turns: gaps while
// nothing is read, a prompt alone, and both together. Ratios are of medians over all turns. With --compress RECIPE the
// prompt is compressed once it is whole, to --keep of its bytes, and gaps are told apart: until its first token, and
// from there to its second, before which it is compressed.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/json_text.h"
#include "base/paths.h"
#include "engine/engine.h"
#include "host/model.h"
#include "server/scheduler.h"
#include "session/text_model.h"

namespace pith {
namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

struct Flags {
  std::string model = DefaultModelPath();
  std::string recipe = "full", compress;
  double keep = 0.2;
  std::vector<double> shares = {0.3, 0.5, 0.65, 0.8, 1};
  int running = 8, context = 500, prompt = 4000, tokens = 64, repeat = 3, threads = 0, block = 0;
  size_t budget_mib = 0;
  bool json = false;
};

// Notes when tokens come.
class Watcher final : public server::RequestSink {
 public:
  void Started(const server::RequestUsage&, int) override { Note(&started_); }
  void Progress(int, int) override {}
  void Text(int, std::string, std::vector<int32_t> tokens, std::vector<TokenLogprobs>) override {
    const std::lock_guard lock(mutex_);
    if (!tokens.empty()) times_.push_back(Clock::now());
    changed_.notify_all();
  }
  void Ended(int, GenerationResult) override {}
  void Finished(const server::RequestUsage&, const server::RequestTimes&, const server::CacheReport&) override {
    Note(&over_);
  }
  void Failed(const Error& error) override {
    fmt::print(stderr, "pith_serve_gaps: {}\n", error.message);
    Note(&over_);
  }

  // Until it has so many tokens, or is over.
  void WaitFor(size_t num_tokens) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return times_.size() >= num_tokens || over_; });
  }
  Time started() { return Read(started_); }
  Time token(size_t index) {
    const std::lock_guard lock(mutex_);
    return times_.size() <= index ? Time() : times_[index];
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return times_.size();
  }
  // Seconds between tokens that both came within [from, to].
  void Gaps(Time from, Time to, std::vector<double>& gaps) { Gaps(from, to, from, to, gaps); }
  // Of all that reach into it.
  void GapsAcross(Time from, Time to, std::vector<double>& gaps) { Gaps(Time(), to, from, Time::max(), gaps); }
  void Gaps(Time begins_from, Time begins_to, Time ends_from, Time ends_to, std::vector<double>& gaps) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 1; i < times_.size(); ++i) {
      if (times_[i - 1] < begins_from || times_[i - 1] > begins_to) continue;
      if (times_[i] < ends_from || times_[i] > ends_to) continue;
      gaps.push_back(std::chrono::duration<double>(times_[i] - times_[i - 1]).count());
    }
  }

 private:
  void Note(std::optional<Time>* what) {
    const std::lock_guard lock(mutex_);
    *what = Clock::now();
    changed_.notify_all();
  }
  Time Read(const std::optional<Time>& what) {
    const std::lock_guard lock(mutex_);
    return what.value_or(Time());
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Time> started_, over_;
  std::vector<Time> times_;
};

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

server::Request MakeRequest(const HostModel& model, int num_tokens, int max_tokens, unsigned seed) {
  server::Request request;
  for (int i = 0; i < num_tokens; ++i) {
    request.prompt.push_back(
        static_cast<int32_t>((i * 7919U + seed * 104729U + 1000) % static_cast<unsigned>(model.info().num_vocab)));
  }
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.generation.max_tokens = max_tokens;
  request.reuse_prefix = false;
  return request;
}

struct Row {
  double share = 0;
  std::vector<double> idle_gaps, busy_gaps, compress_gaps, alone_tps, beside_tps, compress_seconds;
};

struct Window {
  Time started, read, compressed;
};

// One turn: N texts start, run alone for a while, go on while a prompt is read, and the same prompt is read alone.
Status Measure(server::Scheduler& scheduler, const HostModel& model, const Flags& flags, unsigned seed, Row& row) {
  std::vector<std::shared_ptr<Watcher>> texts;
  std::vector<server::RequestId> ids;
  for (int i = 0; i < flags.running; ++i) {
    texts.push_back(std::make_shared<Watcher>());
    PITH_ASSIGN_OR_RETURN(
        const server::RequestId id,
        scheduler.Submit(MakeRequest(model, flags.context, 100000, seed * 100 + static_cast<unsigned>(i)),
                         texts.back()));
    ids.push_back(id);
  }
  for (const auto& text : texts) text->WaitFor(8);
  const Time begin = Clock::now();
  const size_t from = texts.front()->count();
  texts.front()->WaitFor(from + static_cast<size_t>(flags.tokens));
  const Time end = Clock::now();
  for (const auto& text : texts) text->Gaps(begin, end, row.idle_gaps);

  const auto read = [&](unsigned which, std::vector<double>& tps) -> Result<Window> {
    auto reader = std::make_shared<Watcher>();
    const bool compresses = !flags.compress.empty();
    server::Request request = MakeRequest(model, flags.prompt, compresses ? 2 : 1, which);
    if (compresses) {
      PITH_ASSIGN_OR_RETURN(request.recipe, ParseRecipe(flags.compress));
      request.compress = CompressMode::kAfter;
      request.keep = flags.keep;
    }
    PITH_RETURN_IF_ERROR(scheduler.Submit(std::move(request), reader));
    reader->WaitFor(compresses ? 2 : 1);
    const Window window = {reader->started(), reader->token(0), reader->token(1)};
    tps.push_back(flags.prompt / std::chrono::duration<double>(window.read - window.started).count());
    return window;
  };
  PITH_ASSIGN_OR_RETURN(const Window window, read(seed * 2 + 1, row.beside_tps));
  for (const auto& text : texts) {
    text->Gaps(window.started, window.read, row.busy_gaps);
    if (!flags.compress.empty()) text->GapsAcross(window.read, window.compressed, row.compress_gaps);
  }
  if (!flags.compress.empty())
    row.compress_seconds.push_back(std::chrono::duration<double>(window.compressed - window.read).count());
  for (const server::RequestId id : ids) scheduler.Cancel(id);
  PITH_RETURN_IF_ERROR(read(seed * 2 + 2, row.alone_tps));
  return {};
}

Status Run(const Flags& flags) {
  HostModelOptions model_options;
  if (flags.threads > 0) model_options.num_threads = flags.threads;
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, HostModel::Load(flags.model, model_options));
  std::vector<Row> rows;
  for (const double share : flags.shares)
    rows.push_back({.share = share,
                    .idle_gaps = {},
                    .busy_gaps = {},
                    .compress_gaps = {},
                    .alone_tps = {},
                    .beside_tps = {},
                    .compress_seconds = {}});
  for (int turn = 0; turn < flags.repeat; ++turn) {
    for (Row& row : rows) {
      server::SchedulerOptions options;
      options.max_running = flags.running + 1;
      options.prompt_share = row.share;
      options.max_retained = 0;
      EngineOptions engine_options;
      engine_options.num_ctx = std::max(flags.context + 20000, flags.prompt + 16);
      if (model->info().trained_ctx > 0)
        engine_options.num_ctx = std::min(engine_options.num_ctx, model->info().trained_ctx);
      engine_options.num_threads = flags.threads;
      engine_options.block_tokens = flags.block;
      engine_options.budget_bytes = flags.budget_mib << 20;
      PITH_ASSIGN_OR_RETURN(engine_options.recipe, ParseRecipe(flags.recipe));
      server::ReserveSequences(options, &engine_options);
      PITH_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(model, engine_options));
      PITH_ASSIGN_OR_RETURN(const auto scheduler,
                            server::Scheduler::Create(std::move(engine), std::make_shared<HostText>(model), options));
      PITH_RETURN_IF_ERROR(Measure(*scheduler, *model, flags, static_cast<unsigned>(turn) + 1, row));
    }
  }
  nlohmann::json report = nlohmann::json::array();
  if (!flags.json)
    fmt::print(
        "| share | gap alone, ms | gap beside a prompt: median, p99, ms | times | prompt alone, tokens/s | beside | "
        "share of alone |\n|---|---|---|---|---|---|---|\n");
  for (const Row& row : rows) {
    const double idle = Quantile(row.idle_gaps, 0.5), busy = Quantile(row.busy_gaps, 0.5),
                 worst = Quantile(row.busy_gaps, 0.99);
    const double alone = Quantile(row.alone_tps, 0.5), beside = Quantile(row.beside_tps, 0.5);
    report.push_back({{"share", row.share},
                      {"gap_alone_ms", 1e3 * idle},
                      {"gap_beside_ms", 1e3 * busy},
                      {"gap_beside_p99_ms", 1e3 * worst},
                      {"gap_ratio", busy / idle},
                      {"prompt_alone_tps", alone},
                      {"prompt_beside_tps", beside},
                      {"prompt_ratio", beside / alone}});
    const double compressing = Quantile(row.compress_gaps, 0.5), worst_compressing = Quantile(row.compress_gaps, 0.99);
    if (!flags.compress.empty()) {
      report.back()["compress_seconds"] = Quantile(row.compress_seconds, 0.5);
      report.back()["gap_compressing_ms"] = 1e3 * compressing;
      report.back()["gap_compressing_p99_ms"] = 1e3 * worst_compressing;
      report.back()["gap_compressing_most_ms"] = 1e3 * Quantile(row.compress_gaps, 1);
      report.back()["gap_beside_most_ms"] = 1e3 * Quantile(row.busy_gaps, 1);
    }
    if (flags.json) continue;
    fmt::print("| {} | {:.1f} | {:.1f}, {:.1f} | {:.2f} | {:.0f} | {:.0f} | {:.0f}% |\n", row.share, 1e3 * idle,
               1e3 * busy, 1e3 * worst, busy / idle, alone, beside, 100 * beside / alone);
    if (!flags.compress.empty())
      fmt::print("Beside its compression, {:.2f} s: {:.1f} ms, p99 {:.1f}, most {:.1f} (beside its reading {:.1f})\n",
                 Quantile(row.compress_seconds, 0.5), 1e3 * compressing, 1e3 * worst_compressing,
                 1e3 * Quantile(row.compress_gaps, 1), 1e3 * Quantile(row.busy_gaps, 1));
  }
  if (flags.json) fmt::print("{}\n", JsonText(report, 1));
  return {};
}

}  // namespace
}  // namespace pith

int main(int argc, char** argv) {
  pith::Flags flags;
  CLI::App app("Gaps between tokens of running texts while a prompt is read beside them", "pith_serve_gaps");
  app.add_option("-m,--model", flags.model, "GGUF file; the default model otherwise");
  app.add_option("--recipe", flags.recipe, "of all sequences");
  app.add_option("--compress", flags.compress, "recipe that compresses the prompt once it is whole");
  app.add_option("--keep", flags.keep, "share of its bytes that it keeps then")->check(CLI::Range(0.001, 1.0));
  app.add_option("--shares", flags.shares, "of the engine's time that prompts may have")->delimiter(',');
  app.add_option("--running", flags.running, "sequences that decode")->check(CLI::Range(1, 200));
  app.add_option("--context", flags.context, "tokens that each has read")->check(CLI::Range(1, 1000000));
  app.add_option("--prompt", flags.prompt, "tokens of the prompt")->check(CLI::Range(1, 1000000));
  app.add_option("-n,--tokens", flags.tokens, "of each sequence while nothing is read")->check(CLI::Range(1, 100000));
  app.add_option("-r,--repeat", flags.repeat, "turns")->check(CLI::Range(1, 100));
  app.add_option("-t,--threads", flags.threads, "0: physical cores");
  app.add_option("-b,--batch-size", flags.block, "rows of a step; 0: by the budget");
  app.add_option("--kv-budget-mib", flags.budget_mib, "0: enough for all");
  app.add_flag("--json", flags.json, "one JSON array");
  CLI11_PARSE(app, argc, argv);
  const pith::Status status = pith::Run(flags);
  if (!status) fmt::print(stderr, "pith_serve_gaps: {}\n", status.error().message);
  return status ? 0 : 1;
}
