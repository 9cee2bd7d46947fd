// Golden vectors: what methods' reference implementations compute on given tensors, and how to
// compare with it. The folder is $PITH_GOLDEN_DIR, or tests/golden.
#ifndef PITH_TESTS_SUPPORT_GOLDEN_H_
#define PITH_TESTS_SUPPORT_GOLDEN_H_

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "policy/policy.h"
#include "tests/support/gguf_reader.h"

namespace pith::testing {

std::string GoldenFolder();

// Paths of all .gguf files there, sorted.
std::vector<std::string> GoldenPaths();

// All of them, read once. Files that cannot be read are left out; a test of its own fails for those.
const std::vector<GgufFile>& GoldenFiles();

// Methods that some test checks.
std::set<std::string>& CheckedMethods();

// Runs `check` on every file whose pith.methods names the method and that has the tensor; skips if
// there is none.
void ForEachGolden(const std::string& method, const std::string& tensor,
                   const std::function<void(const GgufFile&)>& check);

// TEST(Golden<kind>, method) over those files: void body(const GgufFile& file).
#define PITH_GOLDEN_TEST(kind, method, tensor)                                                        \
  static void GoldenCheck_##method(const ::pith::testing::GgufFile& file);                            \
  static const bool golden_known_##method = ::pith::testing::CheckedMethods().insert(#method).second; \
  TEST(Golden##kind, method) {                                                                        \
    (void)golden_known_##method;                                                                      \
    ::pith::testing::ForEachGolden(#method, tensor, GoldenCheck_##method);                            \
  }                                                                                                   \
  static void GoldenCheck_##method(const ::pith::testing::GgufFile& file)

// |a - b| <= absolute + relative |b|
struct Tolerance {
  double absolute = 1e-6;
  double relative = 1e-4;
  bool Same(double a, double b) const;
};

// "" or the first difference. Sizes must agree.
std::string CompareNumbers(const std::vector<float>& ours, const std::vector<float>& theirs, Tolerance tolerance = {});
std::string CompareExactly(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs);

// Masks of kept entries over one pool of competitors. Entries may stand in for one another where
// their scores are equal to the tolerance. scores: the same size, larger stays.
std::string CompareKept(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs,
                        const std::vector<float>& scores, Tolerance tolerance = {});

// Expect equality, and that the same comparison fails once one number, or one decision, is changed.
void ExpectNumbers(const std::vector<float>& ours, const std::vector<float>& theirs, const std::string& what,
                   Tolerance tolerance = {});
void ExpectExactly(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs, const std::string& what);
void ExpectKept(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs, const std::vector<float>& scores,
                const std::string& what, Tolerance tolerance = {});

// [heads * n], 1 = kept.
std::vector<int64_t> MaskOf(const KeptHeads& kept, size_t n);
std::vector<float> Flatten(const std::vector<std::vector<float>>& heads);

// A recipe that must parse.
Recipe RecipeOf(const std::string& text);

// Causal softmax attention in float32, scale 1 / sqrt(dim). q: [group, queries, dim] with strides
// of `q_stride` floats between heads; keys: [n, dim]. out: [group, queries, n].
std::vector<float> Attention(const float* q, size_t q_stride, int group, std::span<const int32_t> query_positions,
                             const float* keys, std::span<const int32_t> positions, int dim);

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_GOLDEN_H_
