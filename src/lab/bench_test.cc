#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

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

TEST(Machine, ABusyMachineShows) {
  const double free_share = MeasureFreeShare(1, 20);
  EXPECT_GT(free_share, 0);
  EXPECT_LE(free_share, 1);
  // The control: many more spinning threads than processors.
  EXPECT_LT(MeasureFreeShare(16 * std::max(1, DescribeMachine().cores), 40), kBusyBelow);
}

// Threads of our own, four for each core, that spin for so long once all of them do: the share that a thread gets
// beside them.
double ShareBesideOwnSpinners(int milliseconds) {
  using Clock = std::chrono::steady_clock;
  const int count = 4 * std::max(1, DescribeMachine().cores);
  std::atomic<int> started{0};
  std::atomic<Clock::time_point> end{Clock::time_point::max()};
  std::vector<std::thread> spinners;
  for (int i = 0; i < count; ++i) {
    spinners.emplace_back([&] {
      ++started;
      while (Clock::now() < end.load()) {
      }
    });
  }
  while (started < count) std::this_thread::yield();
  end = Clock::now() + std::chrono::milliseconds(milliseconds);
  const double share = MeasureFreeShare(1, 20);
  for (std::thread& spinner : spinners) spinner.join();
  return share;
}

// As OpenMP's threads do behind every loop. The best of several, since others may run beside this test.
TEST(Machine, WhatSpinsForAWhileIsNobodyElse) {
  std::vector<double> ended, lasting;
  for (int i = 0; i < 5; ++i) {
    ended.push_back(ShareBesideOwnSpinners(kOwnSpinMilliseconds - 5));
    lasting.push_back(ShareBesideOwnSpinners(kOwnSpinMilliseconds + 40));
  }
  EXPECT_GT(*std::ranges::max_element(ended), 1.5 * Median(lasting));
  EXPECT_LT(Median(lasting), kBusyBelow) << "control";
}

TEST(Machine, HasAName) {
  const MachineInfo machine = DescribeMachine();
  EXPECT_GT(machine.cores, 0);
  EXPECT_GT(machine.memory_bytes, 0u);
  EXPECT_THAT(machine.libllama, HasSubstr("ggml"));
}

}  // namespace
}  // namespace pith
