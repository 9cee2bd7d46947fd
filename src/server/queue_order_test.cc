#include "server/queue_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace pith::server {
namespace {

struct Prompt {
  double submitted = 0, seconds = 0, begun = 0;
};

// One after the other, by turns; a new one comes as soon as one is read, as of as many clients.
std::vector<Prompt> ReadAll(double most, int clients, double end) {
  std::mt19937 random(7);
  const auto next = [&](double now) {
    const double u = static_cast<double>(random()) / std::mt19937::max();
    return Prompt{.submitted = now, .seconds = 0.03 * std::pow(150, u)};
  };
  std::vector<Prompt> waiting, read;
  for (int i = 0; i < clients; ++i) waiting.push_back(next(0));
  double now = 0;
  while (!waiting.empty()) {
    const auto first = std::ranges::min_element(
        waiting, {}, [&](const Prompt& prompt) { return TurnOf(prompt.submitted, prompt.seconds, most); });
    Prompt prompt = *first;
    waiting.erase(first);
    prompt.begun = now;
    now += prompt.seconds;
    read.push_back(prompt);
    if (now < end) waiting.push_back(next(now));
  }
  return read;
}

double MedianWait(std::vector<Prompt> prompts) {
  const auto middle = prompts.begin() + static_cast<std::ptrdiff_t>(prompts.size() / 2);
  std::ranges::nth_element(prompts, middle, {}, [](const Prompt& one) { return one.begun - one.submitted; });
  return middle->begun - middle->submitted;
}

TEST(QueueOrder, NobodyIsOvertakenByWhatComesAfterItsTurn) {
  for (const double most : {0.0, 5.0, 60.0}) {
    const std::vector<Prompt> read = ReadAll(most, 64, 200);
    int overtaken = 0;
    for (size_t i = 0; i < read.size(); ++i) {
      for (size_t before = 0; before < i; ++before) {
        EXPECT_LE(read[before].submitted, read[i].submitted + most);
        if (read[before].submitted > read[i].submitted) {
          ++overtaken;
          EXPECT_LT(read[before].seconds, read[i].seconds);
        }
      }
    }
    EXPECT_EQ(overtaken > 0, most > 0);
  }
}

// Reading takes 58 s for all clients together.
TEST(QueueOrder, ShortPromptsFirstShortenTheMedianWait) {
  const double as_they_come = MedianWait(ReadAll(0, 64, 200));
  EXPECT_LT(MedianWait(ReadAll(60, 64, 200)), 0.75 * as_they_come);
  EXPECT_LT(MedianWait(ReadAll(120, 64, 200)), 0.25 * as_they_come);
}

}  // namespace
}  // namespace pith::server
