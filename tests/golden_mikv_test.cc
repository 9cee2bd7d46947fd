// MiKV: balancer, quantiser, tiers and decode steps against the specification's numbers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/group_codec.h"
#include "tests/support/golden.h"
#include "tests/support/mikv_rule.h"

namespace pith::testing {
namespace {

class MikvCase {
 public:
  explicit MikvCase(const GgufFile& file)
      : file_(file), n_(static_cast<size_t>(file.param("n"))), dim_(static_cast<size_t>(file.param("head_dim"))),
        steps_(static_cast<size_t>(file.param("steps"))), heads_(static_cast<size_t>(file.param("kv_heads"))),
        group_(static_cast<size_t>(file.param("heads")) / heads_.size()), bits_high_(file.param("bits_hi")),
        ratio_(std::round(file.number("pith.param.ratio") * 1e6) / 1e6) {
    std::vector<int32_t> positions(n_);
    std::iota(positions.begin(), positions.end(), 0);
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      const std::span<const float> queries = Part("in/q", h, group_ * n_ * dim_), keys = Part("in/k", h, n_ * dim_);
      head.balancer.resize(dim_);
      Balance(queries, keys, head.balancer);
      head.sums.assign(n_, 0);
      const std::vector<float> attention = Attention(queries.data(), n_ * dim_, static_cast<int>(group_), positions,
                                                     keys.data(), positions, static_cast<int>(dim_));
      for (size_t i = 0; i < attention.size(); ++i) head.sums[i % n_] += attention[i];
    }
  }

  void CheckPrefill() {
    std::vector<float> balancer, sums;
    std::vector<int64_t> high;
    const TierSizes sizes = TierSizesFor(ratio_, static_cast<int>(n_));
    EXPECT_EQ(sizes.high, file_.param("n_hi"));
    EXPECT_EQ(sizes.recent, file_.param("n_recent"));
    for (Head& head : heads_) {
      head.high = FormTiers(head.sums, sizes);
      balancer.insert(balancer.end(), head.balancer.begin(), head.balancer.end());
      sums.insert(sums.end(), head.sums.begin(), head.sums.end());
      high.insert(high.end(), head.high.begin(), head.high.end());
    }
    ExpectNumbers(balancer, file_.tensor("out/mikv/balancer").f32, "balancer");
    ExpectNumbers(sums, file_.tensor("out/mikv/sum").f32, "sum");
    ExpectExactly(high, file_.tensor("out/mikv/high").i64, "high");
  }

  void CheckQuantiser(int bits) {
    const std::string out = fmt::format("out/mikv/b{}/", bits);
    Codes keys, values;
    std::vector<float> key_worth, value_worth;
    for (size_t h = 0; h < heads_.size(); ++h) {
      for (size_t j = 0; j < n_; ++j) {
        const GroupCodes key = QuantizeKey(Part("in/k", h * n_ + j, dim_), heads_[h].balancer, group_size(), bits);
        const GroupCodes value = QuantizeRow(Part("in/v", h * n_ + j, dim_), group_size(), bits);
        keys.Add(key), values.Add(value);
        std::vector<float> row(dim_);
        DequantizeKey(key, heads_[h].balancer, row);
        key_worth.insert(key_worth.end(), row.begin(), row.end());
        DequantizeRow(value, row);
        value_worth.insert(value_worth.end(), row.begin(), row.end());
      }
    }
    ExpectNumbers(key_worth, file_.tensor(out + "k").f32, out + "k");
    ExpectNumbers(value_worth, file_.tensor(out + "v").f32, out + "v");
    if (!file_.has(out + "k_code")) return;
    keys.Expect(file_, out + "k");
    values.Expect(file_, out + "v");
  }

  // Rows as they stand in the cache after prefill: the high tier at bits_hi, the rest at bits_lo, each from its
  // exact value.
  void Store() {
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      for (size_t j = 0; j < n_; ++j) {
        const int bits = head.high[j] != 0 ? bits_high_ : file_.param("bits_lo");
        StoreRow(head, Part("in/k", h * n_ + j, dim_), Part("in/v", h * n_ + j, dim_), bits, j);
      }
    }
  }

  void CheckStep(size_t t) {
    SCOPED_TRACE(fmt::format("step {}", t));
    std::vector<float> attention, outputs;
    std::vector<int64_t> tiers, demoted;
    for (size_t h = 0; h < heads_.size(); ++h) {
      Decode(t, h, attention, outputs);
      demoted.push_back(Demote(t, heads_[h]));
      for (size_t j = 0; j < n_ + steps_; ++j) tiers.push_back(j < heads_[h].high.size() ? heads_[h].high[j] : -1);
    }
    ExpectNumbers(attention, Copy("out/mikv/attn_dec", t, attention.size()), "attn_dec");
    ExpectNumbers(outputs, Copy("out/mikv/out_dec", t, outputs.size()), "out_dec", {1e-5, 1e-4});
    ExpectExactly(tiers, Numbers("out/mikv/tier_dec", t, tiers.size()), "tier_dec");
    ExpectExactly(demoted, Numbers("out/mikv/demoted_dec", t, demoted.size()), "demoted_dec");
  }

  void CheckEnd() {
    std::vector<float> keys, values, sums;
    for (const Head& head : heads_) {
      keys.insert(keys.end(), head.keys.begin(), head.keys.end());
      values.insert(values.end(), head.values.begin(), head.values.end());
      for (size_t j = 0; j < head.sums.size(); ++j) sums.push_back(head.high[j] != 0 ? head.sums[j] : -1);
    }
    ExpectNumbers(sums, file_.tensor("out/mikv/sum_dec").f32, "sum_dec");
    ExpectNumbers(keys, file_.tensor("out/mikv/k_final").f32, "k_final");
    ExpectNumbers(values, file_.tensor("out/mikv/v_final").f32, "v_final");
  }

 private:
  struct Head {
    std::vector<float> balancer, sums, keys, values;
    std::vector<uint8_t> high;
  };
  struct Codes {
    std::vector<int64_t> codes;
    std::vector<float> alpha, beta;
    void Add(const GroupCodes& row) {
      codes.insert(codes.end(), row.codes.begin(), row.codes.end());
      alpha.insert(alpha.end(), row.alpha.begin(), row.alpha.end());
      beta.insert(beta.end(), row.beta.begin(), row.beta.end());
    }
    void Expect(const GgufFile& file, const std::string& name) const {
      ExpectExactly(codes, file.tensor(name + "_code").i64, name + "_code");
      EXPECT_EQ(alpha, file.tensor(name + "_alpha").f32) << name << "_alpha";
      EXPECT_EQ(beta, file.tensor(name + "_beta").f32) << name << "_beta";
    }
  };

  int group_size() const { return file_.param("group"); }
  std::span<const float> Part(const std::string& name, size_t part, size_t size) const {
    return std::span(file_.tensor(name).f32).subspan(part * size, size);
  }
  std::vector<float> Copy(const std::string& name, size_t part, size_t size) const {
    const std::span<const float> from = Part(name, part, size);
    return {from.begin(), from.end()};
  }
  std::vector<int64_t> Numbers(const std::string& name, size_t part, size_t size) const {
    const auto first = file_.tensor(name).i64.begin() + static_cast<ptrdiff_t>(part * size);
    return {first, first + static_cast<ptrdiff_t>(size)};
  }

  // Row j of the head becomes what `bits` hold of it; 16: as given.
  void StoreRow(Head& head, std::span<const float> key, std::span<const float> value, int bits, size_t j) const {
    std::vector<float> k(key.begin(), key.end()), v(value.begin(), value.end());
    if (bits < 16) {
      DequantizeKey(QuantizeKey(key, head.balancer, group_size(), bits), head.balancer, k);
      DequantizeRow(QuantizeRow(value, group_size(), bits), v);
    }
    head.keys.resize(std::max(head.keys.size(), (j + 1) * dim_));
    head.values.resize(std::max(head.values.size(), (j + 1) * dim_));
    std::copy(k.begin(), k.end(), head.keys.begin() + static_cast<ptrdiff_t>(j * dim_));
    std::copy(v.begin(), v.end(), head.values.begin() + static_cast<ptrdiff_t>(j * dim_));
  }

  // Attention of the new token, exact in its own step; then it joins the high tier.
  void Decode(size_t t, size_t h, std::vector<float>& attention, std::vector<float>& outputs) {
    Head& head = heads_[h];
    const std::span<const float> key = Part("in/k_dec", t * heads_.size() + h, dim_);
    const std::span<const float> value = Part("in/v_dec", t * heads_.size() + h, dim_);
    StoreRow(head, key, value, 16, n_ + t);
    head.sums.push_back(0);
    head.high.push_back(1);
    std::vector<int32_t> positions(head.sums.size());
    std::iota(positions.begin(), positions.end(), 0);
    const std::vector<int32_t> now = {positions.back()};
    const std::span<const float> queries = Part("in/q_dec", t * heads_.size() + h, group_ * dim_);
    const std::vector<float> weights = Attention(queries.data(), dim_, static_cast<int>(group_), now, head.keys.data(),
                                                 positions, static_cast<int>(dim_));
    for (size_t g = 0; g < group_; ++g) {
      std::vector<double> output(dim_, 0);
      for (size_t j = 0; j < positions.size(); ++j) {
        const float weight = weights[g * positions.size() + j];
        attention.push_back(weight);
        head.sums[j] += weight;
        for (size_t c = 0; c < dim_; ++c) output[c] += static_cast<double>(weight) * head.values[j * dim_ + c];
      }
      attention.resize(attention.size() + steps_ - 1 - t, 0.0F);
      outputs.insert(outputs.end(), output.begin(), output.end());
    }
    StoreRow(head, key, value, bits_high_, n_ + t);
  }

  int64_t Demote(size_t t, Head& head) const {
    const TierSizes sizes = TierSizesFor(ratio_, static_cast<int>(n_ + t + 1));
    const int j = ChooseDemoted(head.sums, head.high, sizes);
    if (j < 0) return -1;
    const auto at = static_cast<size_t>(j);
    const std::vector<float> key(head.keys.begin() + static_cast<ptrdiff_t>(at * dim_),
                                 head.keys.begin() + static_cast<ptrdiff_t>((at + 1) * dim_));
    const std::vector<float> value(head.values.begin() + static_cast<ptrdiff_t>(at * dim_),
                                   head.values.begin() + static_cast<ptrdiff_t>((at + 1) * dim_));
    StoreRow(head, key, value, file_.param("bits_lo"), at);
    head.high[at] = 0;
    EXPECT_LT(ChooseDemoted(head.sums, head.high, sizes), 0) << "one a step";
    return j;
  }

  const GgufFile& file_;
  const size_t n_, dim_, steps_;
  std::vector<Head> heads_;
  const size_t group_;
  const int bits_high_;
  const double ratio_;
};

PITH_GOLDEN_TEST(Methods, mikv, "out/mikv/balancer") {
  MikvCase test(file);
  test.CheckPrefill();
  for (const int bits : {2, 3, 4, 8}) {
    if (file.has(fmt::format("out/mikv/b{}/k", bits))) test.CheckQuantiser(bits);
  }
  test.Store();
  for (int t = 0; t < file.param("steps"); ++t) test.CheckStep(static_cast<size_t>(t));
  test.CheckEnd();
}

// Keys as a page in q2 holds them.
std::vector<float> StoredInPages(std::span<const float> keys, size_t dim) {
  const PageLayout wide = PageLayout::Make(PageFormat(), static_cast<int>(dim), static_cast<int>(dim), 0);
  const PageLayout low = PageLayout::Make(KvFormat::kQ2, static_cast<int>(dim), static_cast<int>(dim), 0);
  std::vector<std::byte> page(wide.page_bytes), converted(low.page_bytes);
  std::vector<float> stored(keys.size());
  for (size_t first = 0; first < keys.size() / dim; first += kPageEntries) {
    for (size_t i = 0; i < kPageEntries; ++i) {
      const float* key = keys.data() + (first + i) * dim;
      kernels::WriteEntryF32(wide, page.data(), static_cast<int>(i), key, key, static_cast<int32_t>(i));
    }
    kernels::ConvertPage(wide, page.data(), low, converted.data());
    kernels::ReadKeys(low, converted.data(), kPageEntries, stored.data() + first * dim);
  }
  return stored;
}

// A balancer takes most of the error of keys whose groups are channels of one entry, and none where they are entries of
// one channel, as in the cache's pages.
TEST(GoldenMethods, ABalancerIsOfNoUseWhereGroupsAreChannels) {
  double plain = 0, balanced = 0, plain_pages = 0, balanced_pages = 0;
  ForEachGolden("mikv", "out/mikv/balancer", [&](const GgufFile& file) {
    const auto n = static_cast<size_t>(file.param("n")), dim = static_cast<size_t>(file.param("head_dim"));
    const auto kv_heads = static_cast<size_t>(file.param("kv_heads"));
    const size_t rows = static_cast<size_t>(file.param("heads")) / kv_heads * n,
                 whole = n / kPageEntries * kPageEntries;
    for (size_t h = 0; h < kv_heads; ++h) {
      const std::span<const float> queries = std::span(file.tensor("in/q").f32).subspan(h * rows * dim, rows * dim);
      const std::span<const float> keys = std::span(file.tensor("in/k").f32).subspan(h * n * dim, whole * dim);
      std::vector<float> balancer(dim), none(dim, 1), turned(keys.begin(), keys.end());
      Balance(queries, std::span(file.tensor("in/k").f32).subspan(h * n * dim, n * dim), balancer);
      for (size_t i = 0; i < turned.size(); ++i) turned[i] *= balancer[i % dim];
      std::vector<float> in_pages = StoredInPages(keys, dim), turned_in_pages = StoredInPages(turned, dim);
      for (size_t i = 0; i < turned.size(); ++i) turned_in_pages[i] /= balancer[i % dim];
      const auto error = [&](std::span<const float> stored) {
        double squares = 0;
        for (size_t row = 0; row < rows; row += 7) {
          for (size_t key = 0; key < keys.size(); key += dim) {
            double change = 0;
            for (size_t c = 0; c < dim; ++c) {
              change +=
                  static_cast<double>(queries[row * dim + c]) * static_cast<double>(stored[key + c] - keys[key + c]);
            }
            squares += change * change;
          }
        }
        return squares;
      };
      const auto rounded = [&](std::span<const float> by) {
        std::vector<float> stored(keys.size());
        for (size_t key = 0; key < keys.size(); key += dim) {
          const GroupCodes codes = QuantizeKey(keys.subspan(key, dim), by, file.param("group"), 2);
          DequantizeKey(codes, by, std::span(stored).subspan(key, dim));
        }
        return stored;
      };
      plain += error(rounded(none)), balanced += error(rounded(balancer));
      plain_pages += error(in_pages), balanced_pages += error(turned_in_pages);
    }
  });
  std::printf("squared error of logits with a balancer, over that without: %.3f in groups of an entry's channels, "
              "%.3f in pages\n",
              balanced / plain, balanced_pages / plain_pages);
  EXPECT_LT(balanced, 0.7 * plain);
  EXPECT_LT(std::abs(balanced_pages - plain_pages), 0.15 * plain_pages);
}

}  // namespace
}  // namespace pith::testing
