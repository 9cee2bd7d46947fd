// Kernels over float32 pages against plain loops, and that they touch what page_kernels.h says and no more: with ASan
// they are not compiled with it but ask (page_kernels_f32.cc).
#include "kernels/page_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

namespace pith::kernels {
namespace {

constexpr size_t kDim = 64;

std::vector<float> Wave(size_t count, float step) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = std::sin(step * static_cast<float>(i));
  values.shrink_to_fit();
  return values;
}

// What a call of so many rows needs, each vector exactly as long as it must be.
struct Score {
  explicit Score(size_t rows)
      : queries(Wave(kDim * rows, 0.7f)),
        keys(Wave(kDim * kPageEntries, 0.3f)),
        scores((rows - 1) * kStepEntries + kPageEntries) {}
  void Call(size_t rows) {
    const ScoreArgs args = {queries.data(), nullptr, 1, kDim, keys.data(), nullptr, scores.data(), {}};
    GetPageKernels().of(Source::kF32).score[rows](args);
  }
  std::vector<float> queries, keys, scores;
};

struct Accumulate {
  Accumulate(size_t rows, size_t num_entries)
      : weights(Wave((rows - 1) * kStepEntries + num_entries, 0.9f)),
        values(Wave(num_entries * kDim, 0.4f)),
        acc(Wave(rows * kDim, 0.1f)) {}
  void Call(size_t rows, size_t num_entries) {
    const AccumulateArgs args = {
        weights.data(), static_cast<int>(num_entries), values.data(), kDim, nullptr, kDim, acc.data(), kDim, {}};
    GetPageKernels().of(Source::kF32).accumulate[rows](args);
  }
  std::vector<float> weights, values, acc;
};

TEST(PageKernelsF32, AreWhatPlainLoopsFind) {
  for (size_t rows = 1; rows <= static_cast<size_t>(GetPageKernels().block_rows); ++rows) {
    SCOPED_TRACE(rows);
    Score score(rows);
    score.Call(rows);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t j = 0; j < kPageEntries; ++j) {
        float sum = 0;
        for (size_t d = 0; d < kDim; ++d) sum += score.queries[d * rows + r] * score.keys[d * kPageEntries + j];
        ASSERT_NEAR(score.scores[r * kStepEntries + j], sum, 1e-4);
      }
    }
    for (const size_t num_entries : {size_t{1}, size_t{kPageEntries}}) {
      Accumulate accumulate(rows, num_entries);
      const std::vector<float> before = accumulate.acc;
      accumulate.Call(rows, num_entries);
      for (size_t r = 0; r < rows; ++r) {
        for (size_t c = 0; c < kDim; ++c) {
          float sum = before[r * kDim + c];
          for (size_t j = 0; j < num_entries; ++j) {
            sum += accumulate.weights[r * kStepEntries + j] * accumulate.values[j * kDim + c];
          }
          ASSERT_NEAR(accumulate.acc[r * kDim + c], sum, 1e-4);
        }
      }
    }
  }
}

#ifdef __SANITIZE_ADDRESS__
void DropLast(std::vector<float>& values) { values = std::vector<float>(values.begin(), values.end() - 1); }

TEST(PageKernelsF32DeathTest, AsanSeesWhatIsTooShort) {
  constexpr const char* kOverflow = "AddressSanitizer: heap-buffer-overflow";
  for (const auto part : {&Score::queries, &Score::keys, &Score::scores}) {
    Score score(2);
    DropLast(score.*part);
    EXPECT_DEATH(score.Call(2), kOverflow);
  }
  for (const auto part : {&Accumulate::weights, &Accumulate::values, &Accumulate::acc}) {
    Accumulate accumulate(2, 5);
    DropLast(accumulate.*part);
    EXPECT_DEATH(accumulate.Call(2, 5), kOverflow);
  }
}
#endif

}  // namespace
}  // namespace pith::kernels
