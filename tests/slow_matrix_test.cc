// Every architecture that libllama knows, as a small random model: exact, exact with a stated limit,
// or refused with a reason. docs/models.md is this test's table; PITH_UPDATE_DOCS=1 rewrites it.
//
// Each model is made and read in a child process, since libllama aborts on some of them. The parent
// runs no model, so that it can fork before any thread of a thread pool exists.
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "host/model.h"
#include "tests/support/model_parity.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr size_t kChildren = 2;  // at once, of one thread each
constexpr int kSecondsPerModel = 60;
constexpr int kTokens = 130;
constexpr uint32_t kSeed = 11;
constexpr int kWantedExact = 115;
constexpr const char* kDocs = PITH_SOURCE_DIR "/docs/models.md";

// Architectures that are exact one sequence at a time only, and why.
const std::map<std::string, std::string>& OneSequenceOnly() {
  static const std::map<std::string, std::string> reasons = {
      {"chameleon", "libllama masks its image tokens in the first row of a batch only"},
  };
  return reasons;
}

struct Verdict {
  std::string status = "wrong";  // exact, exact with a limit, refused (by pith), not made (by libllama) or wrong
  std::string text;
};

std::string Traits(const ModelInfo& info) {
  int windows = 0, chunks = 0, without = 0, shared = 0;
  bool latent = false, grouped = false;
  for (const LayerShape& layer : info.layers) {
    windows += layer.kind == LayerKind::kWindow;
    chunks += layer.kind == LayerKind::kChunk;
    without += layer.kind == LayerKind::kNone;
    shared += layer.shared;
    latent |= layer.value_in_key;
    grouped |= layer.num_kv_heads > 0 && layer.num_heads > layer.num_kv_heads;
  }
  std::vector<std::string> traits;
  if (windows > 0) traits.push_back("sliding windows");
  if (chunks > 0) traits.push_back("chunks");
  if (shared > 0) traits.push_back("layers that share a cache");
  if (latent) traits.push_back("latent cache (MLA)");
  if (grouped && !latent) traits.push_back("grouped heads");
  if (info.hybrid) traits.push_back("recurrent state");
  if (without > 0 && !info.hybrid) traits.push_back("layers without a cache of their own");
  return fmt::format("{}", fmt::join(traits, ", "));
}

std::string LimitOf(const ModelInfo& info) {
  return info.max_positions < info.trained_ctx
             ? "contexts up to the original length, where libllama would change the factors of RoPE"
             : "contexts up to the trained length, where the learned positions end";
}

void ReplaceAll(const std::string& what, const std::string& with, std::string& text) {
  for (size_t at; (at = text.find(what)) != std::string::npos;) text.replace(at, what.size(), with);
}

// Without what says nothing to a reader: the temporary file's path, libllama's function names.
std::string Tidied(std::string text, const std::string& path) {
  ReplaceAll(path, "the model", text);
  ReplaceAll("llama_model_load: ", "", text);
  ReplaceAll("error loading model: ", "", text);
  ReplaceAll("error loading model hyperparameters: ", "", text);
  return text;
}

Verdict Judge(const std::string& architecture, const std::string& path) {
  if (const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path, kSeed); !made) {
    return {"not made", Tidied(made.error().message, path)};
  }
  auto loaded = HostModel::Load(path, HostModelOptions{});
  if (!loaded) return {"refused", Tidied(loaded.error().message, path)};
  const ModelInfo& info = (*loaded)->info();
  Reading uneven = UnevenBlocks(kTokens, 65);
  for (int i = 0; i < 10; ++i) uneven.push_back({.sequences = {0}, .count = 1, .decode = true});
  const auto limit = OneSequenceOnly().find(architecture);
  const bool limited = limit != OneSequenceOnly().end();
  for (const Reading& reading :
       {OneBlock(kTokens + 10), uneven, TwoSequences(kTokens / 2, 10, info.hybrid || limited)}) {
    const auto parity = CompareReaders(*loaded, reading, 1, kSeed);
    if (!parity) return {"wrong", Tidied(parity.error().message, path)};
    if (!parity->exact()) return {"wrong", "not exact: " + parity->ToString()};
    if (!parity->telling()) return {"wrong", "the control is too near: " + parity->ToString()};
  }
  if (info.max_positions > 0) return {"exact with a limit", LimitOf(info)};
  if (limited) return {"exact with a limit", "one sequence per batch: " + limit->second};
  return {"exact", Traits(info)};
}

struct Child {
  std::string architecture;
  pid_t pid = 0;
  int pipe = -1;
  std::string output;
};

Child Start(const std::string& architecture, const std::string& folder) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    alarm(kSecondsPerModel);
    setenv("GGML_NO_BACKTRACE", "1", 1);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(2);
    const Verdict verdict = Judge(architecture, folder + "/" + architecture + ".gguf");
    const std::string line = verdict.status + "\t" + verdict.text;
    const bool written = write(ends[1], line.data(), line.size()) == static_cast<ssize_t>(line.size());
    _exit(written ? 0 : 2);
  }
  close(ends[1]);
  return {.architecture = architecture, .pid = pid, .pipe = ends[0], .output = {}};
}

Verdict Finish(Child& child, const std::string& folder) {
  close(child.pipe);
  int status = 0;
  waitpid(child.pid, &status, 0);
  const std::string path = folder + "/" + child.architecture + ".gguf";
  const bool made = std::filesystem::exists(path);
  std::filesystem::remove(path);
  if (WIFSIGNALED(status)) {
    // Before there is a file only libllama has run.
    if (!made) return {"not made", "libllama cannot make it: it aborts"};
    return {"wrong", fmt::format("ends with signal {}", WTERMSIG(status))};
  }
  const size_t tab = child.output.find('\t');
  if (tab == std::string::npos) return {"wrong", "gave no verdict"};
  return {child.output.substr(0, tab), child.output.substr(tab + 1)};
}

std::map<std::string, Verdict> JudgeAll(const std::string& folder) {
  std::vector<std::string> architectures = Architectures();
  std::deque<std::string> waiting(architectures.begin(), architectures.end());
  std::vector<Child> running;
  std::map<std::string, Verdict> verdicts;
  while (!waiting.empty() || !running.empty()) {
    while (running.size() < kChildren && !waiting.empty()) {
      running.push_back(Start(waiting.front(), folder));
      waiting.pop_front();
    }
    std::vector<pollfd> pipes;
    for (const Child& child : running) pipes.push_back({.fd = child.pipe, .events = POLLIN, .revents = 0});
    if (poll(pipes.data(), pipes.size(), -1) < 0) std::abort();
    for (size_t i = running.size(); i-- > 0;) {
      if (pipes[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t size = read(running[i].pipe, buffer, sizeof buffer);
      if (size > 0) {
        running[i].output.append(buffer, static_cast<size_t>(size));
        continue;
      }
      verdicts[running[i].architecture] = Finish(running[i], folder);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  return verdicts;
}

std::string Markdown(const std::map<std::string, Verdict>& verdicts) {
  std::map<std::string, int> counts;
  for (const auto& [architecture, verdict] : verdicts) ++counts[verdict.status];
  std::string text = fmt::format(
      "# Models\n\n"
      "Each architecture that libllama knows, tried with a small random model (F32, grouped heads where it allows "
      "them,\n"
      "windows of {} tokens): read in one block, in uneven blocks and token by token, and as two sequences at once, "
      "with\n"
      "the recipe `full`. *Exact*: the logits differ from libllama's (flash attention off) by at most twice what "
      "libllama's own\n"
      "flash attention differs, and a reader that ignores the history is at least 30 times further away. *Refused*: "
      "pith\n"
      "says why when the model is loaded. *Not tried*: libllama itself cannot make such a model.\n\n"
      "{} are exact, {} exact with a limit, {} refused, {} not tried. This file is written by "
      "`tests/slow_matrix_test.cc`\n"
      "(`PITH_UPDATE_DOCS=1`).\n\n"
      "| architecture | | what it has, or why not |\n|---|---|---|\n",
      kRandomModelWindow, counts["exact"], counts["exact with a limit"], counts["refused"], counts["not made"]);
  for (const auto& [architecture, verdict] : verdicts) {
    const std::string status = verdict.status == "not made" ? "not tried" : verdict.status;
    text += fmt::format("| {} | {} | {} |\n", architecture, status, verdict.text);
  }
  return text;
}

TEST(SlowMatrix, EveryArchitectureIsExactOrRefused) {
  const std::string folder = ::testing::TempDir() + fmt::format("pith_matrix_{}", getpid());
  std::filesystem::create_directories(folder);
  const std::map<std::string, Verdict> verdicts = JudgeAll(folder);
  std::filesystem::remove_all(folder);
  int exact = 0;
  for (const auto& [architecture, verdict] : verdicts) {
    EXPECT_NE(verdict.status, "wrong") << architecture << ": " << verdict.text;
    exact += verdict.status == "exact" || verdict.status == "exact with a limit";
  }
  EXPECT_GE(exact, kWantedExact);
  const std::string markdown = Markdown(verdicts);
  if (std::getenv("PITH_UPDATE_DOCS") != nullptr) {
    std::ofstream(kDocs) << markdown;
    return;
  }
  std::ifstream file(kDocs);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), markdown) << "PITH_UPDATE_DOCS=1 rewrites docs/models.md";
}

}  // namespace
}  // namespace pith::testing
