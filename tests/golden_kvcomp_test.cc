// KVComp (arXiv:2509.00579): cuts, error-bounded codes, Huffman codes and what attention makes of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/error_bound.h"
#include "kernels/huffman.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

using kernels::BoundedCodes;
using kernels::ErrorBound;
using kernels::ErrorUnit;
using kernels::HuffmanCode;

// Keys or values on their way, cut by cut.
class Stream {
 public:
  Stream(const GgufFile& file, const std::string& name)
      : file_(file),
        name_(name),
        bound_{.unit = static_cast<ErrorUnit>(file.param("mode_" + name)),
               .share = file.number("pith.param.e_" + name),
               .block = file.param("block_" + name),
               .recent = file.param("recent_" + name)},
        heads_(static_cast<size_t>(file.param("kv_heads"))),
        n_(static_cast<size_t>(file.param("n"))),
        dim_(static_cast<size_t>(file.param("head_dim"))),
        codes_(heads_),
        values_(heads_) {
    EXPECT_EQ(bound_.alphabet(), file.param("alphabet_" + name));
    int waiting = 0;
    for (const int64_t chunk : file.tensor("in/chunks").i64) {
      waiting += static_cast<int>(chunk);
      const int cut = bound_.CutOf(waiting);
      if (cut > 0) Compress(static_cast<size_t>(cut));
      cuts_.push_back(static_cast<int64_t>(this->cut()));
      waiting -= cut;
    }
  }

  void Check() const {
    const std::string out = "out/kvcomp/" + name_;
    ExpectExactly(cuts_, file_.tensor(out + "_cut").i64, out + "_cut");
    ExpectNumbers(steps_, file_.tensor(out + "_step").f32, out + "_step", {0, 0});
    const GgufTensor& minima = file_.tensor(out + "_min");
    if (!minima.i64.empty()) ExpectExactly(minima_, minima.i64, out + "_min");
    if (minima.i64.empty()) ExpectNumbers({minima_.begin(), minima_.end()}, minima.f32, out + "_min");
    std::vector<int64_t> codes;
    for (const auto& head : codes_) codes.insert(codes.end(), head.begin(), head.end());
    ExpectExactly(codes, file_.tensor(out + "_code").i64, out + "_code");
    ExpectNumbers(Flatten(values_), file_.tensor(out).f32, out, {0, 0});
    const std::vector<int32_t>&lengths = code_->lengths(), &words = code_->codewords();
    ExpectExactly({lengths.begin(), lengths.end()}, file_.tensor(out + "_length").i64, out + "_length");
    ExpectExactly({words.begin(), words.end()}, file_.tensor(out + "_codeword").i64, out + "_codeword");
    std::vector<int64_t> bits;
    for (size_t h = 0; h < heads_; ++h) {
      for (size_t t = 0; t < cut(); ++t) bits.push_back(code_->BitsOf(Vector(h, t)));
    }
    ExpectExactly(bits, file_.tensor(out + "_bits").i64, out + "_bits");
  }

  // Every vector alone, from the byte at which it begins.
  int64_t CheckBytes() const {
    int64_t total = 0;
    for (size_t h = 0; h < heads_; ++h) {
      for (size_t t = 0; t < cut(); ++t) {
        std::vector<uint8_t> bytes;
        code_->Write(Vector(h, t), bytes);
        EXPECT_EQ(static_cast<int64_t>(bytes.size()), (code_->BitsOf(Vector(h, t)) + 7) / 8);
        std::vector<int32_t> read(dim_);
        EXPECT_TRUE(code_->Read(bytes, read));
        EXPECT_TRUE(std::ranges::equal(read, Vector(h, t)));
        total += static_cast<int64_t>(bytes.size());
        bytes.pop_back();
        EXPECT_FALSE(code_->Read(bytes, read));
      }
    }
    return total;
  }

  std::vector<int64_t> FirstBlock() const {
    std::vector<uint8_t> bytes;
    for (size_t t = 0; t < static_cast<size_t>(bound_.block); ++t) {
      std::vector<uint8_t> one;
      code_->Write(Vector(0, t), one);
      bytes.insert(bytes.end(), one.begin(), one.end());
    }
    return {bytes.begin(), bytes.end()};
  }

  // The authors' vectors of values: a channel over the tokens of a block.
  std::vector<int64_t> ChannelBits() const {
    std::vector<int64_t> bits;
    for (size_t block = 0; block < cut(); block += static_cast<size_t>(bound_.block)) {
      for (size_t h = 0; h < heads_; ++h) {
        for (size_t c = 0; c < dim_; ++c) {
          std::vector<int32_t> column;
          for (size_t t = block; t < block + static_cast<size_t>(bound_.block); ++t) column.push_back(Vector(h, t)[c]);
          bits.push_back(code_->BitsOf(column));
        }
      }
    }
    return bits;
  }

  // Dequantised up to the cut, exact beyond.
  std::vector<float> HeadRows(size_t h) const {
    std::vector<float> rows = values_[h];
    const std::vector<float>& exact = file_.tensor("in/" + name_).f32;
    rows.insert(rows.end(), exact.begin() + static_cast<ptrdiff_t>((h * n_ + cut()) * dim_),
                exact.begin() + static_cast<ptrdiff_t>((h + 1) * n_ * dim_));
    return rows;
  }
  size_t cut() const { return codes_[0].size() / dim_; }

 private:
  std::span<const int32_t> Vector(size_t h, size_t t) const { return std::span(codes_[h]).subspan(t * dim_, dim_); }

  void Compress(size_t count) {
    const BoundedCodes made =
        kernels::BoundErrors(bound_, file_.tensor("in/" + name_).f32, heads_, n_, dim_, cut(), count);
    if (!code_) {
      std::vector<int64_t> counts(static_cast<size_t>(bound_.alphabet()), 1);
      for (const int32_t code : made.codes) ++counts[static_cast<size_t>(code)];
      code_.emplace(counts);
    }
    steps_.insert(steps_.end(), made.steps.begin(), made.steps.end());
    minima_.insert(minima_.end(), made.minima.begin(), made.minima.end());
    for (size_t h = 0; h < heads_; ++h) {
      const auto from = static_cast<ptrdiff_t>(h * count * dim_), to = from + static_cast<ptrdiff_t>(count * dim_);
      codes_[h].insert(codes_[h].end(), made.codes.begin() + from, made.codes.begin() + to);
      values_[h].insert(values_[h].end(), made.values.begin() + from, made.values.begin() + to);
    }
  }

  const GgufFile& file_;
  const std::string name_;
  const ErrorBound bound_;
  const size_t heads_, n_, dim_;
  std::vector<int64_t> cuts_, minima_;
  std::vector<float> steps_;
  std::vector<std::vector<int32_t>> codes_;
  std::vector<std::vector<float>> values_;
  std::optional<HuffmanCode> code_;
};

PITH_GOLDEN_TEST(Methods, kvcomp, "in/chunks") {
  const Stream keys(file, "k"), values(file, "v");
  keys.Check();
  values.Check();
  ExpectExactly({keys.CheckBytes(), values.CheckBytes()}, file.tensor("out/kvcomp/payload").i64, "payload");
  ExpectExactly(keys.FirstBlock(), file.tensor("out/kvcomp/k_stream").i64, "k_stream");
  ExpectExactly(values.ChannelBits(), file.tensor("out/kvcomp/v_channel_bits").i64, "v_channel_bits");
  const auto heads = static_cast<size_t>(file.param("heads")),
             group = heads / static_cast<size_t>(file.param("kv_heads"));
  const auto n = static_cast<size_t>(file.param("n")), dim = static_cast<size_t>(file.param("head_dim"));
  std::vector<float> logits, outputs;
  for (size_t g = 0; g < heads; ++g) {
    const std::vector<float> k = keys.HeadRows(g / group), v = values.HeadRows(g / group);
    const float* q = file.tensor("in/q").f32.data() + g * dim;
    std::vector<double> weights(n), out(dim, 0);
    double total = 0;
    for (size_t j = 0; j < n; ++j) {
      double dot = 0;
      for (size_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(k[j * dim + d]);
      logits.push_back(static_cast<float>(dot / std::sqrt(static_cast<double>(dim))));
      weights[j] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
      total += weights[j];
    }
    for (size_t j = 0; j < n; ++j) {
      for (size_t d = 0; d < dim; ++d) out[d] += weights[j] / total * static_cast<double>(v[j * dim + d]);
    }
    outputs.insert(outputs.end(), out.begin(), out.end());
  }
  ExpectNumbers(logits, file.tensor("out/kvcomp/logits").f32, "logits", {1e-5, 1e-4});
  ExpectNumbers(outputs, file.tensor("out/kvcomp/attn_out").f32, "attn_out", {1e-5, 1e-4});
}

}  // namespace
}  // namespace pith::testing
