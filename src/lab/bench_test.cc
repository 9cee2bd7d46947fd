#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "base/stopwatch.h"
#include "lab/bench_report.h"
#include "lab/measure.h"

namespace pith {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

PhaseTimes Phase(double wall, size_t tokens, double attention = 0, double host = 0) {
  return {.wall = wall, .attention = attention, .host = host, .tokens = tokens};
}

BenchRow Row(const std::string& engine, bool flash_attention, double decode_seconds) {
  BenchRow row;
  row.config = {.engine = engine, .flash_attention = flash_attention, .threads = 2};
  row.bench = {.ctx = 1000, .tail = 400, .num_decoded = 10};
  const double attention = engine == "pith" ? decode_seconds / 4 : 0;
  for (const double factor : {0.9, 1.0, 1.2}) {
    row.prefill.push_back(Phase(10 * factor, 1000));
    row.tail.push_back(Phase(5 * factor, 400));
    row.decode.push_back(Phase(decode_seconds * factor, 10, attention * factor, (decode_seconds - attention) * factor));
  }
  return row;
}

BenchReport Report(double pith_seconds) {
  BenchReport report;
  report.machine.cpu = "A processor";
  report.rooflines.emplace_back(2, Roofline{.read_bytes_per_second = 1e9, .f32_flops = 1e9});
  report.repeats = 3;
  report.rows = {Row("libllama", true, 4), Row("libllama", false, 2), Row("pith", true, pith_seconds)};
  return report;
}

TEST(BenchReport, NamesAreThoseOfLlamaBench) {
  EXPECT_EQ(PrefillName(512, 0), "pp512");
  EXPECT_EQ(PrefillName(256, 256), "pp256 @ d256");
  EXPECT_EQ(DecodeName(128, 8192), "tg128 @ d8192");
}

TEST(BenchReport, RatiosAreOfMediansAgainstTheBetterSetting) {
  const auto json = ToJson(Report(1), ModelInfo{});
  const auto& decode = json["rows"][2]["tests"][2];
  EXPECT_EQ(decode["name"], "tg10 @ d1000");
  EXPECT_DOUBLE_EQ(decode["tps"].get<double>(), 10);
  EXPECT_DOUBLE_EQ(decode["ratio"].get<double>(), 2);
  // libllama: 2 s, of which 0.75 s are the rest of the graph; ours 0.25 s.
  EXPECT_NEAR(decode["attention_ratio"].get<double>(), 1.25 / 0.25, 0.4);
  EXPECT_DOUBLE_EQ(json["rows"][0]["tests"][2]["ratio"].get<double>(), 0.5);
}

// What libllama takes beyond our graph is then more than its attention.
TEST(BenchReport, AttentionIsNotComparedWhereTheRestDiffers) {
  BenchReport report = Report(1);
  for (PhaseTimes& times : report.rows[2].tail) times.attention = times.wall / 2;
  EXPECT_TRUE(ToJson(report, ModelInfo{})["rows"][2]["tests"][1].contains("attention_ratio"));
  report.float_products = true;
  EXPECT_FALSE(ToJson(report, ModelInfo{})["rows"][2]["tests"][1].contains("attention_ratio"));
  EXPECT_TRUE(ToJson(report, ModelInfo{})["rows"][2]["tests"][2].contains("attention_ratio"));
  report.byte_products = true;
  EXPECT_FALSE(ToJson(report, ModelInfo{})["rows"][2]["tests"][2].contains("attention_ratio"));
}

TEST(BenchReport, TheTableSaysWhenTheMachineWasBusy) {
  BenchReport report = Report(1);
  EXPECT_THAT(ToMarkdown(ToJson(report, ModelInfo{})), Not(HasSubstr("busy")));
  report.free_share = 0.6;
  EXPECT_THAT(ToMarkdown(ToJson(report, ModelInfo{})), HasSubstr("was busy**: a thread got 60%"));
}

TEST(BenchReport, ComparesTestsByWhatTheyAre) {
  const auto before = ToJson(Report(1), ModelInfo{}), after = ToJson(Report(0.25), ModelInfo{});
  const auto text = CompareRuns(before, after);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_THAT(*text, HasSubstr("+300.0%"));
  EXPECT_THAT(*CompareRuns(before, before), Not(HasSubstr("+300.0%")));
  auto other = after;
  for (auto& row : other["rows"]) row["threads"] = 64;
  EXPECT_FALSE(CompareRuns(before, other));
  EXPECT_FALSE(CompareRuns(before, nlohmann::ordered_json::object()));
}

// Processes that take the processors until this goes out of scope.
class BusyProcesses {
 public:
  explicit BusyProcesses(int count) {
    for (int i = 0; i < count; ++i) {
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (const Stopwatch watch; watch.seconds() >= 0;) {
        }
        ::_exit(0);
      }
      if (pid > 0) pids_.push_back(pid);
    }
  }
  BusyProcesses(const BusyProcesses&) = delete;
  BusyProcesses& operator=(const BusyProcesses&) = delete;
  ~BusyProcesses() {
    for (const pid_t pid : pids_) ::kill(pid, SIGKILL);
    for (const pid_t pid : pids_) ::waitpid(pid, nullptr, 0);
  }
  size_t count() const { return pids_.size(); }

 private:
  std::vector<pid_t> pids_;
};

// While so many threads of this process spin for 200 ms, what was left to as many as there are cores.
double ShareWhileSpinning(int count) {
  const ProcessorWatch processors;
  const Stopwatch watch;
  std::vector<std::thread> spinners;
  for (int i = 0; i < count; ++i) {
    spinners.emplace_back([&] {
      while (watch.seconds() < 0.2) {
      }
    });
  }
  for (std::thread& spinner : spinners) spinner.join();
  return processors.FreeShare(std::max(1, DescribeMachine().cores));
}

// Of eight own threads for each core one would see an eighth. The best of several alone, as others may run beside this.
TEST(Machine, WhoTakesTheProcessorsAreOthersAlone) {
  const int own = 8 * std::max(1, DescribeMachine().cores);
  double alone = 0, beside = 0;
  for (int i = 0; i < 4 && alone < kBusyBelow; ++i) alone = std::max(alone, ShareWhileSpinning(own));
  {
    const BusyProcesses others(2 * own);
    ASSERT_EQ(others.count(), static_cast<size_t>(2 * own));
    for (int i = 0; i < 2; ++i) beside = std::max(beside, ShareWhileSpinning(own));
  }
  EXPECT_GT(alone, 0.25);
  EXPECT_GT(alone, 1.5 * beside);
  EXPECT_GT(beside, 0);
  EXPECT_LT(beside, 0.6) << "control: others have two thirds";
}

TEST(Machine, HasAName) {
  const MachineInfo machine = DescribeMachine();
  EXPECT_GT(machine.cores, 0);
  EXPECT_GT(machine.memory_bytes, 0u);
  EXPECT_THAT(machine.libllama, HasSubstr("ggml"));
}

}  // namespace
}  // namespace pith
