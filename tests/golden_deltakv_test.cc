// DeltaKV (arXiv:2602.08005): blocks, references, latents, what is read back and attention over it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/delta_codec.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

DeltaMap MapOf(const GgufFile& file, const std::string& name) {
  const auto kind = static_cast<DeltaMap::Kind>(file.param(name));
  const auto part = [&](const std::string& tensor) -> std::span<const float> {
    const std::string path = fmt::format("in/{}/{}", name, tensor);
    return file.has(path) ? std::span<const float>(file.tensor(path).f32) : std::span<const float>();
  };
  if (kind == DeltaMap::Kind::kLinear) return {kind, part("w"), part("b"), {}, {}};
  if (kind == DeltaMap::Kind::kGelu) return {kind, part("w1"), part("b1"), part("w2"), part("b2")};
  return {kind, part("w12"), part("b12"), part("w3"), part("b3")};
}

class DeltaCase {
 public:
  explicit DeltaCase(const GgufFile& file)
      : file_(file),
        kv_heads_(static_cast<size_t>(file.param("kv_heads"))),
        dim_(static_cast<size_t>(file.param("head_dim"))),
        n_(static_cast<size_t>(file.param("n"))),
        width_(2 * kv_heads_ * dim_),
        sink_(file.param("sink")),
        codec_({.sink = sink_,
                .recent = file.param("recent"),
                .stride = file.param("stride"),
                .neighbours = file.param("neighbours"),
                .metric = static_cast<DeltaMetric>(file.param("metric"))},
               MapOf(file, "down"), MapOf(file, "up"), width_) {
    size_t at = 0;
    for (const int64_t chunk : file.tensor("in/chunks").i64) {
      std::vector<float> vectors;
      for (int64_t i = 0; i < chunk; ++i, ++at) {
        const std::vector<double> x = Raw(at);
        vectors.insert(vectors.end(), x.begin(), x.end());
      }
      codec_.Append(vectors);
    }
  }

  void Check() const {
    std::vector<int64_t> blocks, role(n_, 3), ids, count;
    std::vector<float> base, latent, vectors;
    for (const auto& [first, end] : codec_.blocks()) blocks.insert(blocks.end(), {first, end});
    for (size_t t = 0; t < n_; ++t) {
      const int token = static_cast<int>(t);
      if (token < sink_) role[t] = 0;
      else if (codec_.IsReference(token)) role[t] = 1;
      else if (t < static_cast<size_t>(sink_) + codec_.entries().size()) role[t] = 2;
    }
    const auto k = static_cast<size_t>(file_.param("neighbours"));
    for (const DeltaEntry& entry : codec_.entries()) {
      for (size_t i = 0; i < k; ++i) ids.push_back(entry.references[i < entry.references.size() ? i : 0]);
      count.push_back(static_cast<int64_t>(entry.references.size()));
      base.insert(base.end(), entry.base.begin(), entry.base.end());
      latent.insert(latent.end(), entry.latent.begin(), entry.latent.end());
      const std::vector<double> back = codec_.Reconstruct(entry);
      vectors.insert(vectors.end(), back.begin(), back.end());
    }
    const std::string out = "out/deltakv/";
    ExpectExactly(blocks, file_.tensor(out + "blocks").i64, "blocks");
    ExpectExactly(role, file_.tensor(out + "role").i64, "role");
    ExpectExactly(ids, file_.tensor(out + "ids").i64, "ids");
    ExpectExactly(count, file_.tensor(out + "count").i64, "count");
    ExpectNumbers(base, file_.tensor(out + "base").f32, "base", {1e-5, 1e-4});
    ExpectNumbers(latent, file_.tensor(out + "latent").f32, "latent", {1e-5, 1e-4});
    ExpectNumbers(vectors, file_.tensor(out + "kv").f32, "kv", {1e-5, 1e-4});
  }

  // raw_centers: references that are read stand for themselves.
  void CheckAttention(const std::string& method, bool raw_centers) const {
    std::vector<std::pair<size_t, std::vector<double>>> read;
    for (size_t t = 0; t < static_cast<size_t>(sink_); ++t) read.emplace_back(t, Raw(t));
    for (const int64_t token : file_.tensor("in/selected").i64) {
      const auto t = static_cast<size_t>(token);
      const bool raw = raw_centers && codec_.IsReference(static_cast<int>(token));
      read.emplace_back(t, raw ? Raw(t) : codec_.Reconstruct(codec_.entries()[t - static_cast<size_t>(sink_)]));
    }
    for (size_t t = static_cast<size_t>(sink_) + codec_.entries().size(); t < n_; ++t) read.emplace_back(t, Raw(t));
    const size_t heads = static_cast<size_t>(file_.param("heads")), group = heads / kv_heads_;
    std::vector<float> outputs;
    for (size_t g = 0; g < heads; ++g) {
      const size_t h = g / group;
      std::vector<double> out(dim_, 0);
      double total = 0;
      for (const auto& [t, x] : read) {
        const std::vector<double> key = Turned(x.data() + h * dim_, t);
        double dot = 0;
        for (size_t d = 0; d < dim_; ++d) dot += static_cast<double>(file_.tensor("in/q").f32[g * dim_ + d]) * key[d];
        const double weight = std::exp(dot / std::sqrt(static_cast<double>(dim_)));
        total += weight;
        for (size_t d = 0; d < dim_; ++d) out[d] += weight * x[(kv_heads_ + h) * dim_ + d];
      }
      for (const double x : out) outputs.push_back(static_cast<float>(x / total));
    }
    ExpectNumbers(outputs, file_.tensor("out/" + method + "/attn_out").f32, method, {1e-4, 1e-3});
  }

 private:
  // Keys of all heads, then values.
  std::vector<double> Raw(size_t token) const {
    std::vector<double> x;
    for (const char* part : {"in/k", "in/v"}) {
      for (size_t h = 0; h < kv_heads_; ++h) {
        const float* row = file_.tensor(part).f32.data() + (h * n_ + token) * dim_;
        x.insert(x.end(), row, row + dim_);
      }
    }
    return x;
  }

  std::vector<double> Turned(const double* key, size_t position) const {
    std::vector<double> turned(dim_);
    const size_t half = dim_ / 2;
    for (size_t c = 0; c < half; ++c) {
      const double angle =
          static_cast<double>(position) *
          std::pow(file_.number("pith.param.rope_theta"), -2.0 * static_cast<double>(c) / static_cast<double>(dim_));
      turned[c] = key[c] * std::cos(angle) - key[c + half] * std::sin(angle);
      turned[c + half] = key[c + half] * std::cos(angle) + key[c] * std::sin(angle);
    }
    return turned;
  }

  const GgufFile& file_;
  const size_t kv_heads_, dim_, n_, width_;
  const int sink_;
  DeltaCodec codec_;
};

PITH_GOLDEN_TEST(Methods, deltakv, "in/selected") {
  const DeltaCase test(file);
  test.Check();
  test.CheckAttention("deltakv", false);
}
PITH_GOLDEN_TEST(Methods, deltakv_raw_centers, "in/selected") {
  DeltaCase(file).CheckAttention("deltakv_raw_centers", true);
}

}  // namespace
}  // namespace pith::testing
