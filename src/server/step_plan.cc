#include "server/step_plan.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace pith::server {
namespace {

// Of steps, those with a piece: less than half.
constexpr double kPiecedSteps = 0.4;
// Of the newest measurement in the running means.
constexpr double kWeight = 0.2;
// A piece before the cost of rows is known; less than this is not worth a pass.
constexpr int kFirstPiece = 32;
constexpr int kLeastPiece = 8;
// No piece is planned to hold running decodes up for longer.
constexpr double kLongestSeconds = 1.0;

void Average(double& mean, double value) { mean = mean > 0 ? mean + kWeight * (value - mean) : value; }

}  // namespace

std::vector<int> DivideRows(std::span<const int> wanted, int rows) {
  std::vector<int> got(wanted.size(), 0);
  if (wanted.empty()) return got;
  rows = std::min(rows, std::accumulate(wanted.begin(), wanted.end(), 0));
  got[0] = std::min(wanted[0], (rows + 1) / 2);
  rows -= got[0];
  // Those who want least are served first, and leave what they do not need to the others.
  std::vector<size_t> order(wanted.size() - 1);
  std::iota(order.begin(), order.end(), size_t{1});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return wanted[i]; });
  for (size_t i = 0; i < order.size(); ++i) {
    const int others = static_cast<int>(order.size() - i);
    got[order[i]] = std::min(wanted[order[i]], (rows + others - 1) / others);
    rows -= got[order[i]];
  }
  got[0] += rows;
  return got;
}

int PromptPacer::Rows(int num_decodes) const {
  const int most = std::max(block_tokens_ - num_decodes, 0);
  if (num_decodes == 0 || share_ >= 1) return most;
  if (decode_seconds_ <= 0 || debt_seconds_ > 0) return 0;
  if (row_seconds_ <= 0) return std::min(most, kFirstPiece);
  const double seconds = std::min(decode_seconds_ * share_ / (kPiecedSteps * (1 - share_)), kLongestSeconds);
  return std::min(most, std::max(kLeastPiece, static_cast<int>(seconds / row_seconds_)));
}

void PromptPacer::Note(int num_decodes, int prompt_rows, double seconds, int running, bool prompts_wait) {
  double for_prompts = 0;
  if (prompt_rows == 0) {
    if (num_decodes > 0) Average(decode_seconds_, seconds);
  } else {
    // What decodes would have taken alone is theirs.
    for_prompts = num_decodes > 0 ? std::max(seconds - decode_seconds_, 0.1 * seconds) : seconds;
    Average(row_seconds_, for_prompts / prompt_rows);
  }
  if (running == 0 || !prompts_wait) {
    debt_seconds_ = 0;
    return;
  }
  // Time that prompts did not use is not saved up.
  debt_seconds_ = std::max(debt_seconds_ + for_prompts - share_ * seconds, -share_ * decode_seconds_);
}

}  // namespace pith::server
