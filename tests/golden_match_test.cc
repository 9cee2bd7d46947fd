// Entries that speak for dropped ones (act=match) against the specification's numbers and the authors' code.
#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "policy/act/match.h"
#include "tests/support/golden.h"
#include "tests/support/golden_fit.h"

namespace pith::testing {
namespace {

// One kv head: its block, the queries, and what a method chose of it.
struct Head {
  std::vector<int32_t> order;  // entries as the vectors list them
  std::vector<int32_t> kept, dropped;
  ResidueInputs inputs;
  std::vector<int32_t> found;  // by a pursuit
  Matched made;
  std::vector<float> values;  // [kept, D], fitted
};

// Biases as one more channel of keys, which is 1 in every query: attention with them, exactly.
struct WithBiases {
  std::vector<float> queries, keys;
  ResidueInputs inputs;

  explicit WithBiases(const Head& head) {
    const size_t dim = head.inputs.queries.columns;
    for (size_t q = 0; q < head.inputs.queries.rows; ++q) {
      queries.insert(queries.end(), head.inputs.queries.row(q), head.inputs.queries.row(q) + dim);
      queries.push_back(1);
    }
    for (size_t j = 0; j < head.kept.size(); ++j) {
      const float* key = head.inputs.keys + static_cast<size_t>(head.kept[j]) * dim;
      keys.insert(keys.end(), key, key + dim);
      keys.push_back(static_cast<float>(head.made.biases[j]) / head.inputs.scale);
    }
    inputs = head.inputs;
    inputs.queries = ViewOf(queries.data(), head.inputs.queries.rows, dim + 1);
  }
};

class MatchCase : FitCase {
 public:
  MatchCase(const GgufFile& file, std::string method, MatchOptions options, double value_ridge)
      : FitCase(file, "out/" + method + "/selected"), method_(std::move(method)), heads_(kv_heads_) {
    for (size_t h = 0; h < kv_heads_; ++h) {
      Head& head = heads_[h];
      head.order = Selected(h);
      head.kept = head.order;
      std::ranges::sort(head.kept);
      head.dropped = Others(head.kept);
      head.inputs = Inputs(h, head.kept, head.dropped);
      if (options.pursuit > 0) head.found = PursueKeys(options, static_cast<size_t>(file.param("kept")), head.inputs);
      head.made = MatchKeys(options, head.inputs);
      for (const int32_t entry : head.kept) {
        const std::span<const float> value = Part("in/v", h * n_ + static_cast<size_t>(entry), dim_);
        head.values.insert(head.values.end(), value.begin(), value.end());
      }
      const WithBiases with(head);
      EXPECT_TRUE(RefitValues(value_ridge, with.inputs, ViewOf(with.keys.data(), head.kept.size(), dim_ + 1), 0,
                              head.made.outputs, head.values));
    }
  }

  void CheckPursuit() {
    std::vector<int64_t> found;
    for (const Head& head : heads_) {
      for (size_t i = 0; i < most_; ++i) found.push_back(i < head.found.size() ? head.found[i] : -1);
    }
    ExpectExactly(found, Own("selected").i64, method_ + " selected");
  }

  void CheckFit() {
    std::vector<float> outputs, biases, values;
    for (const Head& head : heads_) {
      outputs.insert(outputs.end(), head.made.outputs.begin(), head.made.outputs.end());
      for (size_t i = 0; i < most_; ++i) {
        const size_t j = i < head.order.size() ? Index(head, i) : 0;
        biases.push_back(i < head.order.size() ? static_cast<float>(head.made.biases[j]) : 0.0F);
        for (size_t d = 0; d < dim_; ++d) {
          values.push_back(i < head.order.size() ? head.values[j * dim_ + d] : 0.0F);
        }
      }
    }
    ExpectNumbers(outputs, file_.tensor("out/y").f32, "outputs", {1e-5, 1e-4});
    ExpectNumbers(biases, Own("bias").f32, method_ + " biases", {1e-4, 1e-3});
    float largest = 0;
    for (const float x : Own("values").f32) largest = std::max(largest, std::abs(x));
    ExpectNumbers(values, Own("values").f32, method_ + " values", {1e-5 * static_cast<double>(largest), 1e-3});
  }

  void CheckTests() {
    const auto tests = static_cast<size_t>(file_.param("tests")), newer = static_cast<size_t>(file_.param("new"));
    std::vector<float> outputs;
    for (size_t h = 0; h < kv_heads_ * group_; ++h) {
      for (size_t t = 0; t < tests; ++t) {
        const Head& head = heads_[h / group_];
        const size_t seen = std::min(t, newer - 1) + 1;
        std::vector<float> keys, values = head.values;
        std::vector<double> biases = head.made.biases;
        for (const int32_t entry : head.kept) {
          const auto key = Part("in/k", h / group_ * n_ + static_cast<size_t>(entry), dim_);
          keys.insert(keys.end(), key.begin(), key.end());
        }
        const auto new_keys = Part("in/k_new", h / group_, newer * dim_).first(seen * dim_),
                   new_values = Part("in/v_new", h / group_, newer * dim_).first(seen * dim_);
        keys.insert(keys.end(), new_keys.begin(), new_keys.end());
        values.insert(values.end(), new_values.begin(), new_values.end());
        biases.resize(biases.size() + seen, 0);
        const std::vector<float> output = Attend(Part("in/q_test", h * tests + t, dim_), keys, values, biases);
        outputs.insert(outputs.end(), output.begin(), output.end());
      }
    }
    ExpectNumbers(outputs, Own("out_test").f32, method_ + " out_test", {1e-3, 1e-3});
  }

 private:
  const GgufTensor& Own(const std::string& name) const { return file_.tensor("out/" + method_ + "/" + name); }
  static size_t Index(const Head& head, size_t i) {
    return static_cast<size_t>(std::ranges::lower_bound(head.kept, head.order[i]) - head.kept.begin());
  }

  const std::string method_;
  std::vector<Head> heads_;
};

PITH_GOLDEN_TEST(Match, match, "out/match/bias") {
  MatchOptions options;
  options.ridge = file.number("pith.param.bias_ridge");
  options.least = file.number("pith.param.bias_low");
  options.most = file.number("pith.param.bias_high");
  MatchCase test(file, "match", options, file.number("pith.param.value_ridge"));
  test.CheckFit();
  test.CheckTests();
}

MatchOptions Authors(const GgufFile& file) {
  return {.least = file.number("pith.param.bias_low"),
          .most = file.number("pith.param.bias_high"),
          .steps = file.param("nnls_steps")};
}

PITH_GOLDEN_TEST(Match, highest, "out/highest/bias") {
  MatchCase test(file, "highest", Authors(file), 0);
  test.CheckFit();
  test.CheckTests();
}

PITH_GOLDEN_TEST(Match, highest_global, "out/highest_global/bias") {
  MatchCase test(file, "highest_global", Authors(file), 0);
  test.CheckFit();
  test.CheckTests();
}

void CheckPursuit(const GgufFile& file, const std::string& method, int at_once) {
  MatchCase test(
      file, method,
      {.least = std::log(1e-12), .most = file.number("pith.param.omp_bias_high"), .steps = 0, .pursuit = at_once}, 0);
  test.CheckPursuit();
  test.CheckFit();
  test.CheckTests();
}

PITH_GOLDEN_TEST(Match, omp, "out/omp/bias") { CheckPursuit(file, "omp", 1); }
PITH_GOLDEN_TEST(Match, omp_fast, "out/omp_fast/bias") { CheckPursuit(file, "omp_fast", 4); }

}  // namespace
}  // namespace pith::testing
