// CritiPrefill's chosen blocks against the authors' code, with its fusion over layers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/aligned.h"
#include "kernels/block_bounds.h"
#include "kernels/row_table.h"
#include "policy/prefill/criti.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

// [D] greatest and least of `count` rows.
struct Bounds {
  Bounds(const float* rows, int count, int dim) : greatest(static_cast<size_t>(dim)), least(greatest.size()) {
    kernels::RowBounds(rows, greatest.size(), count, dim, greatest.data(), least.data());
  }
  std::vector<float> greatest, least;
};

// Blocks of equal rank are the same, or as critical. The authors' softmax is float32: what is zero there
// stands in any order, beside blocks that the segment cannot see and that are zero too.
std::string CompareRanks(const std::vector<int32_t>& ours, const std::vector<int64_t>& theirs,
                         const std::vector<double>& criticality) {
  constexpr double kZero = 1e-37;
  const size_t most = std::min(theirs.size(), criticality.size());
  if (ours.size() != most) return fmt::format("{} blocks, not {}", ours.size(), most);
  for (size_t i = 0; i < most; ++i) {
    const double mine = criticality[static_cast<size_t>(ours[i])];
    const bool visible = theirs[i] < static_cast<int64_t>(criticality.size());
    const double other = visible ? criticality[static_cast<size_t>(theirs[i])] : 0;
    const bool same = ours[i] == theirs[i] || (mine < kZero && other < kZero) || std::abs(mine - other) < 1e-3 * mine;
    if (!same) return fmt::format("rank {} is block {} ({}), not {} ({})", i, ours[i], mine, theirs[i], other);
  }
  return "";
}

void ExpectRanks(const std::vector<int32_t>& ours, const std::vector<int64_t>& theirs,
                 const std::vector<double>& criticality, const std::string& where) {
  EXPECT_EQ(CompareRanks(ours, theirs, criticality), "") << where;
  if (ours.size() < 2 || criticality[static_cast<size_t>(ours[1])] > 0.99 * criticality[static_cast<size_t>(ours[0])])
    return;
  std::vector<int32_t> wrong = ours;  // control
  std::swap(wrong[0], wrong[1]);
  EXPECT_NE(CompareRanks(wrong, theirs, criticality), "") << where << ": the comparison sees nothing";
}

PITH_GOLDEN_TEST(Methods, critiprefill, "in/l0/k") {
  const int n = file.param("n"), dim = file.param("head_dim"), block = file.param("block"),
            segment = file.param("segment");
  const int kv_heads = file.param("kv_heads"), group = file.param("heads") / kv_heads;
  const int count = file.param("budget") / block, segments = (n + segment - 1) / segment - 1;
  const int num_blocks = segments * segment / block;
  std::vector<std::vector<double>> running(static_cast<size_t>(kv_heads * segments));
  for (int l = 0; l < file.param("layers"); ++l) {
    const float* queries = file.tensor(fmt::format("in/l{}/q", l)).f32.data();
    const float* keys = file.tensor(fmt::format("in/l{}/k", l)).f32.data();
    const std::vector<int64_t>& theirs = file.tensor(fmt::format("out/critiprefill/l{}/blocks", l)).i64;
    for (int h = 0; h < kv_heads; ++h) {
      Scratch memory;
      float* greatest = memory.Floats(2 * kernels::TableFloats(num_blocks, dim));
      float* least = greatest + kernels::TableFloats(num_blocks, dim);
      for (int j = 0; j < num_blocks; ++j) {
        const Bounds of(keys + static_cast<ptrdiff_t>((h * n + j * block) * dim), block, dim);
        kernels::StoreRow(of.greatest.data(), dim, j, greatest);
        kernels::StoreRow(of.least.data(), dim, j, least);
      }
      for (int s = 0; s < segments; ++s) {
        const int allowed = s * segment / block;
        std::vector<float> centres;
        for (int g = 0; g < group; ++g) {
          const Bounds of(queries + static_cast<ptrdiff_t>(((h * group + g) * n + s * segment) * dim), segment, dim);
          for (size_t c = 0; c < of.least.size(); ++c) centres.push_back((of.greatest[c] + of.least[c]) / 2);
        }
        std::vector<float> scores(static_cast<size_t>(group * num_blocks));
        kernels::ScoreBounds(centres.data(), group, dim, greatest, least, allowed, scores.data(),
                             static_cast<size_t>(num_blocks));
        std::vector<double> criticality(static_cast<size_t>(allowed));
        BlockCriticality(scores.data(), static_cast<size_t>(num_blocks), group, criticality);
        std::vector<double>& before = running[static_cast<size_t>(h * segments + s)];
        if (l >= 2) FuseCriticality(before, criticality);
        before = criticality;
        std::vector<int32_t> chosen;
        ChooseBlocks(criticality, count, false, chosen);
        const auto row = theirs.begin() + static_cast<ptrdiff_t>((h * segments + s) * count);
        ExpectRanks(chosen, {row, row + count}, criticality, fmt::format("layer {} head {} segment {}", l, h, s));
      }
    }
  }
}

}  // namespace
}  // namespace pith::testing
