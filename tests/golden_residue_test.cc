// Entries that stand in for dropped ones (act=residue) against the specification's numbers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "policy/act/residue.h"
#include "tests/support/golden.h"
#include "tests/support/golden_fit.h"

namespace pith::testing {
namespace {

// Solved in float32 there and in float64 here and there: relative to the largest number of a tensor.
constexpr double kSolved = 1e-4;

void ExpectSolved(const std::vector<float>& ours, const std::vector<float>& theirs, const std::string& what) {
  float largest = 0;
  for (const float x : theirs) largest = std::max(largest, std::abs(x));
  ExpectNumbers(ours, theirs, what, {kSolved * static_cast<double>(largest), 0});
}

class ResidueCase : FitCase {
 public:
  explicit ResidueCase(const GgufFile& file) : FitCase(file, "out/highest_global/selected"), heads_(kv_heads_) {
    options_.entries = file.param("residue");
    options_.rounds = file.param("residue_rounds");
    options_.value_ridge = file.number("pith.param.value_ridge");
    for (size_t h = 0; h < kv_heads_; ++h) {
      Head& head = heads_[h];
      head.kept = Selected(h);
      std::ranges::sort(head.kept);
      head.dropped = Others(head.kept);
      head.inputs = Inputs(h, head.kept, head.dropped);
      head.made = MakeResidues(options_, options_.entries, head.inputs);
      for (const int32_t entry : head.kept) {
        const std::span<const float> key = Part("in/k", h * n_ + static_cast<size_t>(entry), dim_),
                                     value = Part("in/v", h * n_ + static_cast<size_t>(entry), dim_);
        head.keys.insert(head.keys.end(), key.begin(), key.end());
        head.values.insert(head.values.end(), value.begin(), value.end());
      }
      head.keys.insert(head.keys.end(), head.made.keys.begin(), head.made.keys.end());
      head.values.insert(head.values.end(), head.made.values.begin(), head.made.values.end());
    }
  }

  void CheckEntries() {
    std::vector<int64_t> labels;
    std::vector<float> keys, values, outputs;
    for (const Head& head : heads_) {
      std::vector<int64_t> own(n_, -1);
      ASSERT_EQ(head.made.labels.size(), head.dropped.size());
      for (size_t j = 0; j < head.dropped.size(); ++j) own[static_cast<size_t>(head.dropped[j])] = head.made.labels[j];
      labels.insert(labels.end(), own.begin(), own.end());
      keys.insert(keys.end(), head.made.keys.begin(), head.made.keys.end());
      values.insert(values.end(), head.made.values.begin(), head.made.values.end());
      outputs.insert(outputs.end(), head.made.outputs.begin(), head.made.outputs.end());
      for (const int32_t member : head.made.members) EXPECT_TRUE(std::ranges::binary_search(head.dropped, member));
    }
    ExpectNumbers(outputs, file_.tensor("out/y").f32, "outputs", {1e-5, 1e-4});
    ExpectExactly(labels, file_.tensor("out/residue/labels").i64, "labels");
    ExpectSolved(keys, file_.tensor("out/residue/keys").f32, "keys");
    ExpectSolved(values, file_.tensor("out/residue/values").f32, "values");
  }

  void Refit() {
    for (Head& head : heads_) {
      EXPECT_TRUE(RefitValues(options_.value_ridge, head.inputs,
                              ViewOf(head.keys.data(), head.keys.size() / dim_, dim_), 0, head.made.outputs,
                              head.values));
    }
  }

  void CheckRefitted() {
    std::vector<float> all;
    for (const Head& head : heads_) {
      std::vector<float> own = head.values;
      own.resize((most_ + static_cast<size_t>(options_.entries)) * dim_, 0.0F);
      all.insert(all.end(), own.begin(), own.end());
    }
    ExpectSolved(all, file_.tensor("out/residue_fit/values").f32, "refitted values");
  }

  // 16 levels between the smallest and the largest of each 32 channels.
  void Round() {
    for (Head& head : heads_) {
      for (size_t from = 0; from < head.values.size(); from += dim_) {
        for (size_t c = 0; c < dim_; c += 32)
          RoundGroup(std::span(head.values).subspan(from + c, std::min<size_t>(32, dim_ - c)));
      }
    }
  }

  void CheckTests(const std::string& method) {
    const auto tests = static_cast<size_t>(file_.param("tests")), newer = static_cast<size_t>(file_.param("new"));
    std::vector<float> outputs;
    for (size_t h = 0; h < kv_heads_ * group_; ++h) {
      for (size_t t = 0; t < tests; ++t) {
        Head sees = heads_[h / group_];
        const size_t seen = std::min(t, newer - 1) + 1;
        const std::span<const float> keys = Part("in/k_new", h / group_, newer * dim_).first(seen * dim_);
        const std::span<const float> values = Part("in/v_new", h / group_, newer * dim_).first(seen * dim_);
        sees.keys.insert(sees.keys.end(), keys.begin(), keys.end());
        sees.values.insert(sees.values.end(), values.begin(), values.end());
        const std::vector<float> output = Attend(Part("in/q_test", h * tests + t, dim_), sees.keys, sees.values);
        outputs.insert(outputs.end(), output.begin(), output.end());
      }
    }
    ExpectNumbers(outputs, file_.tensor("out/" + method + "/out_test").f32, method + " out_test", {1e-4, 1e-4});
  }

 private:
  struct Head {
    std::vector<int32_t> kept, dropped;
    ResidueInputs inputs;
    Residues made;
    std::vector<float> keys, values;  // of what stays, and of the new entries
  };

  static void RoundGroup(std::span<float> group) {
    const float least = *std::ranges::min_element(group), most = *std::ranges::max_element(group);
    const float scale = (most - least) / 15;
    for (float& x : group) x = scale > 0 ? least + std::round((x - least) / scale) * scale : least;
  }

  ResidueOptions options_;
  std::vector<Head> heads_;
};

PITH_GOLDEN_TEST(Residue, residue, "out/residue/keys") {
  ResidueCase test(file);
  test.CheckEntries();
  test.CheckTests("residue");
}

PITH_GOLDEN_TEST(Residue, residue_fit, "out/residue_fit/values") {
  ResidueCase test(file);
  test.Refit();
  test.CheckRefitted();
  test.CheckTests("residue_fit");
}

PITH_GOLDEN_TEST(Residue, residue_q4, "out/residue_q4/values") {
  ResidueCase test(file);
  test.Refit();
  test.Round();
  test.CheckTests("residue_q4");
}

// The worked example of the specification in plain numbers.
TEST(GoldenResidue, ExampleByHand) {
  const std::vector<float> queries = {2, 0, 2, 1, 2, -1}, keys = {1, 0, 0.5F, 1, 0.5F, -1}, values = {1, 1, 1, 0, 0, 1};
  const std::vector<int32_t> kept = {0}, dropped = {1, 2};
  const ResidueInputs inputs{.key_dim = 2,
                             .value_dim = 2,
                             .keys = keys.data(),
                             .values = values.data(),
                             .fixed = {},
                             .kept = kept,
                             .dropped = dropped,
                             .queries = ViewOf(queries.data(), 3, 2)};
  const Residues made = MakeResidues({}, 1, inputs);
  ExpectNumbers(made.keys, {1.001058F, 0}, "key", {1e-5, 1e-4});
  ExpectNumbers(made.values, {0.5F, 0.5F}, "value", {1e-5, 1e-4});
  EXPECT_EQ(made.members, (std::vector<int32_t>{1}));
  ExpectNumbers(made.outputs, {0.788058F, 0.788058F, 0.936621F, 0.531689F, 0.531689F, 0.936621F}, "outputs",
                {1e-5, 1e-4});
  const std::vector<float> stored = {1, 0, made.keys[0], made.keys[1]};
  std::vector<float> refitted = {1, 1, made.values[0], made.values[1]};
  EXPECT_TRUE(
      RefitValues(ResidueOptions().value_ridge, inputs, ViewOf(stored.data(), 2, 2), 0, made.outputs, refitted));
  ExpectNumbers(refitted, {1.002384F, 1.002384F, 0.502389F, 0.502389F}, "refitted values", {1e-5, 1e-4});
}

// Each dropped entry its own cluster: the new ones are the old ones.
TEST(GoldenResidue, ClustersOfOneEntryChangeNothing) {
  const std::vector<float> queries = {2, 0.3F, 1.5F, 1, 2.2F, -1, 1, -0.5F}, keys = {1, 0, 0.5F, 1, 0.5F, -1};
  const std::vector<float> values = {1, 1, 1, 0, 0, 1};
  const std::vector<int32_t> kept = {0}, dropped = {1, 2};
  const ResidueInputs inputs{.key_dim = 2,
                             .value_dim = 2,
                             .keys = keys.data(),
                             .values = values.data(),
                             .fixed = {},
                             .kept = kept,
                             .dropped = dropped,
                             .queries = ViewOf(queries.data(), 4, 2)};
  const Residues made = MakeResidues({.key_ridge = 1e-7}, 4, inputs);
  ASSERT_EQ(made.members.size(), 2U) << "there are no more entries";
  for (size_t i = 0; i < 2; ++i) {
    const auto own = static_cast<size_t>(made.members[i]);
    ExpectNumbers(
        {made.keys.begin() + static_cast<ptrdiff_t>(i * 2), made.keys.begin() + static_cast<ptrdiff_t>(i * 2 + 2)},
        {keys[own * 2], keys[own * 2 + 1]}, "key", {1e-3, 1e-3});
    ExpectNumbers(
        {made.values.begin() + static_cast<ptrdiff_t>(i * 2), made.values.begin() + static_cast<ptrdiff_t>(i * 2 + 2)},
        {values[own * 2], values[own * 2 + 1]}, "value", {1e-4, 1e-4});
  }
}

}  // namespace
}  // namespace pith::testing
