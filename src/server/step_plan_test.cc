#include "server/step_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "server/scheduler.h"

namespace pith::server {
namespace {

TEST(DivideRows, TheFirstHasHalfAndShortOnesDoNotWait) {
  EXPECT_EQ(DivideRows(std::vector<int>{1000, 1000}, 64), (std::vector<int>{32, 32}));
  EXPECT_EQ(DivideRows(std::vector<int>{1000, 10, 1000}, 64), (std::vector<int>{32, 10, 22}));
  EXPECT_EQ(DivideRows(std::vector<int>{1000, 10}, 64), (std::vector<int>{54, 10}));
  EXPECT_EQ(DivideRows(std::vector<int>{1000, 900, 20, 800}, 64), (std::vector<int>{32, 0, 20, 12}));
  EXPECT_EQ(DivideRows(std::vector<int>{5, 1000}, 64), (std::vector<int>{5, 59}));
  EXPECT_EQ(DivideRows(std::vector<int>{}, 64), (std::vector<int>{}));
  EXPECT_EQ(DivideRows(std::vector<int>{7}, 0), (std::vector<int>{0}));
}

TEST(DivideRows, RandomWishesAreServedFully) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int> wanted(1 + random() % 9);
    for (int& want : wanted) want = 1 + static_cast<int>(random() % (random() % 3 == 0 ? 2000 : 30));
    const int rows = static_cast<int>(random() % 600);
    const std::vector<int> got = DivideRows(wanted, rows);
    const int sum = std::accumulate(got.begin(), got.end(), 0);
    EXPECT_EQ(sum, std::min(rows, std::accumulate(wanted.begin(), wanted.end(), 0)));
    EXPECT_GE(got[0], std::min(wanted[0], rows / 2));
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_GE(got[i], 0);
      EXPECT_LE(got[i], wanted[i]);
      // Of those behind the first nobody has any while one who wants less lacks some.
      for (size_t j = 1; j < wanted.size() && i > 0; ++j) {
        if (wanted[j] < wanted[i] && got[j] < wanted[j]) {
          EXPECT_EQ(got[i], 0);
        }
      }
    }
  }
}

// A made-up engine: a step of d decodes takes decode + d * decode_row, a row of a prompt row_seconds, and a piece of
// more than `small` rows `unpack` beside.
struct Machine {
  double decode = 0.01, decode_row = 0.001, row = 0.0015;
  int small = 512;
  double unpack = 0;
  double noise = 0;  // some steps take up to so many times as long
  double Piece(int rows) const { return rows * row + (rows > small ? unpack : 0); }
  double Step(int decodes, int rows) const {
    return (decodes > 0 ? decode + decodes * decode_row : 0.002) + Piece(rows);
  }
};

struct Outcome {
  double median_gap = 0, longest_gap = 0, prompt_share = 0, rows_per_second = 0;
};

Outcome Simulate(const Machine& machine, double share, int decodes, int steps, int block = 512) {
  PromptPacer pacer(share, block);
  std::mt19937 random(5);
  std::vector<double> gaps;
  double time = 0, of_prompts = 0, rows_read = 0;
  for (int i = 0; i < steps; ++i) {
    const int rows = pacer.Rows(decodes);
    EXPECT_LE(rows + decodes, block);
    const double slow = random() % 5 == 0 ? 1 + machine.noise * static_cast<double>(random() % 1000) / 1000 : 1;
    const double seconds = machine.Step(decodes, rows) * slow;
    pacer.Note(decodes, rows, seconds, decodes, true);
    if (i >= steps / 4) {
      gaps.push_back(seconds);
      time += seconds;
      of_prompts += machine.Piece(rows) * slow;
      rows_read += rows;
    }
  }
  std::ranges::sort(gaps);
  return {gaps[gaps.size() / 2], gaps.back(), of_prompts / time, rows_read / time};
}

TEST(PromptPacer, PromptsHaveTheirShareAndTheMedianGapStays) {
  const Machine machine;
  for (const double share : {0.3, 0.5, 0.65, 0.85}) {
    SCOPED_TRACE(share);
    const Outcome outcome = Simulate(machine, share, 8, 2000);
    EXPECT_NEAR(outcome.prompt_share, share, 0.04);
    EXPECT_LE(outcome.median_gap, 1.05 * machine.Step(8, 0));
    EXPECT_LE(outcome.longest_gap, machine.Step(8, 0) * (1.5 + 2 * share / (0.4 * (1 - share))));
  }
  const Outcome all = Simulate(machine, 1, 8, 200);
  EXPECT_GT(all.prompt_share, 0.95) << "control: without a share prompts take all";
  EXPECT_GT(all.median_gap, 10 * machine.Step(8, 0));
}

// As measured: with more than 40 rows in a step weights are unpacked first. 0.65 of the time then read fewer rows than
// 0.5 did.
TEST(PromptPacer, AGreaterShareNeverReadsLess) {
  for (const double noise : {0.0, 3.0}) {
    SCOPED_TRACE(noise);
    const Machine machine{
        .decode = 0.009, .decode_row = 0.0005, .row = 0.001, .small = 32, .unpack = 0.035, .noise = noise};
    double last = 0;
    for (const double share : {0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9}) {
      SCOPED_TRACE(share);
      const Outcome outcome = Simulate(machine, share, 8, 6000);
      EXPECT_GE(outcome.rows_per_second, (noise > 0 ? 0.9 : 0.97) * last);
      last = outcome.rows_per_second;
    }
  }
}

// What the server promises by default, beside its own rate in blocks, on machines that are quick, slow and busy.
TEST(PromptPacer, TheDefaultShareKeepsBothPromises) {
  const double share = SchedulerOptions().prompt_share;
  const Machine machines[] = {
      {},
      {.decode = 0.009, .decode_row = 0.0005, .row = 0.001, .small = 32, .unpack = 0.035},
      {.decode = 0.009, .decode_row = 0.0005, .row = 0.001, .small = 32, .unpack = 0.035, .noise = 4},
      {.decode = 0.04, .decode_row = 0.004, .row = 0.0037, .small = 32, .unpack = 0.08, .noise = 1},
      {.decode = 0.3, .decode_row = 0.01, .row = 0.02, .small = 32, .unpack = 0.3},
  };
  for (size_t i = 0; i < std::size(machines); ++i) {
    SCOPED_TRACE(i);
    const Machine& machine = machines[i];
    const Outcome outcome = Simulate(machine, share, 8, 4000);
    const double alone = 512 / machine.Piece(512) / (1 + 0.2 * machine.noise / 2);
    EXPECT_GE(outcome.rows_per_second, 0.6 * alone);
    EXPECT_LE(outcome.median_gap, 1.6 * machine.Step(8, 0));
  }
}

TEST(PromptPacer, AloneAPromptHasWholeBlocks) {
  PromptPacer pacer(0.5, 512);
  EXPECT_EQ(pacer.Rows(0), 512);
  pacer.Note(0, 512, 0.8, 0, true);
  EXPECT_EQ(pacer.Rows(0), 512);
  EXPECT_EQ(pacer.Rows(3), 0) << "decodes alone are measured first";
}

TEST(PromptPacer, ASlowMachineStillReads) {
  const Machine slow{.decode = 3, .decode_row = 0.1, .row = 0.5};
  PromptPacer pacer(0.5, 64);
  int rows = 0;
  for (int i = 0; i < 100; ++i) {
    const int next = pacer.Rows(4);
    pacer.Note(4, next, slow.Step(4, next), 4, true);
    rows += next;
  }
  EXPECT_GT(rows, 100);
}

// Time that nobody's prompt used is not taken afterwards in one go.
TEST(PromptPacer, IdleTimeIsNotSavedUp) {
  const Machine machine;
  PromptPacer pacer(0.5, 512);
  for (int i = 0; i < 1000; ++i) pacer.Note(8, 0, machine.Step(8, 0), 8, false);
  int in_a_row = 0, most = 0;
  for (int i = 0; i < 50; ++i) {
    const int rows = pacer.Rows(8);
    in_a_row = rows > 0 ? in_a_row + 1 : 0;
    most = std::max(most, in_a_row);
    pacer.Note(8, rows, machine.Step(8, rows), 8, true);
  }
  EXPECT_LE(most, 2);
}

// What is computed for a prompt without reading rows of it: others have their part of the time.
TEST(PromptPacer, TimeBesideStepsCountsToo) {
  for (const double share : {0.3, 0.5, 0.7}) {
    PromptPacer pacer(share, 512);
    pacer.Note(4, 0, 0.01, 4, true);
    pacer.Note(4, 32, 0.03, 4, true);  // what rows cost
    double of_decodes = 0, beside = 0;
    int at_once = 0, most_at_once = 0;
    for (int i = 0; i < 3000; ++i) {
      const bool goes_on = pacer.Rows(4) > 0;
      pacer.Note(4, 0, 0.01, 4, true);
      of_decodes += 0.01;
      at_once = goes_on ? at_once + 1 : 0;
      most_at_once = std::max(most_at_once, at_once);
      if (!goes_on) continue;
      pacer.NoteBeside(0.02, 4);
      beside += 0.02;
    }
    EXPECT_GT(beside, 0.1 * of_decodes) << share;
    EXPECT_LE(beside / (beside + of_decodes), share + 0.03) << share;
    EXPECT_EQ(most_at_once, 1) << "not behind two steps that follow each other";
  }
}

}  // namespace
}  // namespace pith::server
