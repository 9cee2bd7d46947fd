#include "server/step_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace pith::server {
namespace {

// Of so many steps two have a piece: less than half.
constexpr int kStepsForTwo = 5;
constexpr double kStepsForOne = kStepsForTwo / 2.0;
// Of the newest measurement in the running means.
constexpr double kWeight = 0.2;
// A piece before the cost of rows is known.
constexpr int kFirstPiece = 32;
// What a row is believed to cost falls with each piece of another size: a bad moment is not remembered for ever.
constexpr double kForgetting = 0.998;
// After so many, the next measurement stands alone.
constexpr int kOldAge = 20;
// A piece is not planned to take longer than this, or than so many steps of decodes: with fewer a prompt could not have
// three fifths of its rate alone.
constexpr double kLongestSeconds = 1.0, kLongestSteps = 8;
// Nor so many times as long as pieces are where nothing is slow.
constexpr double kMostUsual = 2;

void Average(double& mean, double value) { mean = mean > 0 ? mean + kWeight * (value - mean) : value; }

}  // namespace

std::vector<int> DivideRows(std::span<const int> wanted, int rows) {
  std::vector<int> got(wanted.size(), 0);
  if (wanted.empty()) return got;
  rows = std::min(rows, std::accumulate(wanted.begin(), wanted.end(), 0));
  got[0] = std::min(wanted[0], (rows + 1) / 2);
  rows -= got[0];
  // Those who want least are served first: the fewer prompts a step reads of, the sooner one of them is read, and the
  // less it takes.
  std::vector<size_t> order(wanted.size() - 1);
  std::iota(order.begin(), order.end(), size_t{1});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return wanted[i]; });
  for (const size_t i : order) {
    got[i] = std::min(wanted[i], rows);
    rows -= got[i];
  }
  got[0] += rows;
  return got;
}

int PieceCosts::SizeOf(int rows) {
  int size = 0;
  while (size + 1 < kNumSizes && rows >= LeastOf(size + 1)) ++size;
  return size;
}

int PieceCosts::LeastOf(int size) { return size == 0 ? 1 : static_cast<int>(kLeastPiece * std::pow(1.25, size - 1)); }

void PieceCosts::Note(int rows, double seconds) {
  const auto noted = static_cast<size_t>(SizeOf(rows));
  for (size_t size = 0; size < costs_.size(); ++size) {
    Cost& cost = costs_[size];
    if (size == noted) {
      if (cost.age >= kOldAge) cost.row_seconds = 0;
      Average(cost.row_seconds, seconds / rows);
      cost.age = 0;
    } else if (cost.row_seconds > 0) {
      ++cost.age;
    }
  }
}

bool PieceCosts::empty() const {
  return std::ranges::all_of(costs_, [](const Cost& cost) { return cost.row_seconds <= 0; });
}

double PieceCosts::RowSecondsOf(int size) const {
  int nearest = size;
  while (nearest > 0 && costs_[static_cast<size_t>(nearest)].row_seconds <= 0) --nearest;
  while (nearest + 1 < kNumSizes && costs_[static_cast<size_t>(nearest)].row_seconds <= 0) ++nearest;
  const Cost& cost = costs_[static_cast<size_t>(nearest)];
  return cost.row_seconds * std::pow(kForgetting, cost.age);
}

int PieceCosts::Fastest(int most, double seconds, double between) const {
  int best = 0;
  double best_rate = 0;
  for (int size = SizeOf(kLeastPiece); size < kNumSizes && LeastOf(size) <= most; ++size) {
    const double row_seconds = RowSecondsOf(size);
    const int largest = size + 1 < kNumSizes ? std::min(most, LeastOf(size + 1) - 1) : most;
    const int rows = static_cast<int>(std::min<double>(largest, seconds / row_seconds));
    const double rate = rows / (rows * row_seconds + between);
    if (rows < LeastOf(size) || rate <= best_rate) continue;
    best = rows, best_rate = rate;
  }
  return best;
}

double PromptPacer::LongestSeconds() const {
  const double usual = kStepsForOne * share_ * decode_seconds_ / (1 - share_);
  return std::min(kMostUsual * usual, std::max(kLongestSeconds, kLongestSteps * decode_seconds_));
}

int PromptPacer::Rows(int num_decodes) const {
  const int most = std::max(block_tokens_ - num_decodes, 0);
  if (num_decodes == 0 || share_ >= 1) return most;
  if (decode_seconds_ <= 0 || turns_ < 0) return 0;
  if (costs_.empty()) return std::min(most, kFirstPiece);
  // After a piece of so many seconds, with the decodes beside it, nothing is owed.
  const double seconds = (owed_seconds_ + share_ * decode_seconds_) / (1 - share_);
  const int rows = costs_.Fastest(most, std::min(seconds, LongestSeconds()), decode_seconds_ * kStepsForOne);
  if (rows > 0) return rows;
  const int least = std::min(most, PieceCosts::kLeastPiece);
  return least * costs_.RowSeconds(least) <= seconds ? least : 0;
}

void PromptPacer::Note(int num_decodes, int prompt_rows, double seconds, int running, bool prompts_wait) {
  double for_prompts = 0;
  if (prompt_rows == 0) {
    if (num_decodes > 0) Average(decode_seconds_, seconds);
  } else {
    // What decodes would have taken alone is theirs.
    for_prompts = num_decodes > 0 ? std::max(seconds - decode_seconds_, 0.1 * seconds) : seconds;
    costs_.Note(prompt_rows, for_prompts);
  }
  if (running == 0 || !prompts_wait) {
    // Time that nobody's prompt used is not saved up.
    owed_seconds_ = 0, turns_ = 0;
    return;
  }
  turns_ = std::min(turns_ + 2 - (prompt_rows > 0 ? kStepsForTwo : 0), 1);
  Owe(share_ * seconds - for_prompts);
}

void PromptPacer::NoteBeside(double seconds, int running) {
  if (running == 0) return;
  turns_ -= kStepsForTwo;
  Owe((share_ - 1) * seconds);
}

void PromptPacer::Owe(double seconds) {
  // A step that took very long makes no piece of that length, nor a pause: no more than the longest piece is owed, or
  // what the smallest one takes.
  const int least = std::min(block_tokens_, PieceCosts::kLeastPiece);
  const double most = std::max(LongestSeconds(), least * costs_.RowSeconds(least)) * (1 - share_);
  owed_seconds_ = std::clamp(owed_seconds_ + seconds, -most, most);
}

}  // namespace pith::server
