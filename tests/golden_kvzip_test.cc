// KVzip (arXiv:2505.23416) against its authors' code: scores of a repeat pass, and the four ways to cut.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "policy/policy.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

std::vector<int32_t> Iota(size_t n) {
  std::vector<int32_t> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// The softmax of the repeat pass runs over prefix, chunk and repeat input alone. Returns the scores of
// each layer's context.
std::vector<LayerScores> RepeatPass(const GgufFile& file, const Policy& policy,
                                    std::vector<std::vector<std::vector<float>>>& columns) {
  const auto n = static_cast<size_t>(file.param("n"));
  const auto prefix = static_cast<size_t>(file.param("sys"));
  const auto dim = static_cast<size_t>(file.param("head_dim"));
  const auto kv_heads = static_cast<size_t>(file.param("kv_heads"));
  const size_t group = static_cast<size_t>(file.param("heads")) / kv_heads;
  const std::vector<int64_t>& chunks = file.tensor("in/chunks").i64;
  const std::vector<int32_t> positions = Iota(n);
  std::vector<LayerScores> all;
  for (int l = 0; l < file.param("layers"); ++l) {
    columns.emplace_back(kv_heads, std::vector<float>(n, policy.columns().front().initial));
    std::vector<HeadInputs> heads(kv_heads);
    std::vector<std::vector<float*>> pointers(kv_heads);
    for (size_t h = 0; h < kv_heads; ++h) {
      pointers[h] = {columns.back()[h].data()};
      heads[h].num_entries = static_cast<int>(n);
      heads[h].positions = positions;
      heads[h].columns = pointers[h];
      const float* cached = file.tensor(fmt::format("in/l{}/k", l)).f32.data() + h * (prefix + n) * dim;
      for (size_t c = 0; c * 3 < chunks.size(); ++c) {
        const auto first = static_cast<size_t>(chunks[c * 3]);
        const auto length = static_cast<size_t>(chunks[c * 3 + 1]);
        const auto repeat = static_cast<size_t>(chunks[c * 3 + 2]);
        const std::string in = fmt::format("in/l{}/c{}/", l, c);
        std::vector<float> keys(cached, cached + prefix * dim);
        keys.insert(keys.end(), cached + (prefix + first) * dim, cached + (prefix + first + length) * dim);
        const float* own = file.tensor(in + "k").f32.data() + h * repeat * dim;
        keys.insert(keys.end(), own, own + repeat * dim);
        const size_t width = prefix + length + repeat;
        const std::vector<int32_t> places = Iota(width);
        const std::vector<int32_t> queries(places.end() - static_cast<ptrdiff_t>(repeat), places.end());
        const std::vector<float> wide =
            Attention(file.tensor(in + "q").f32.data() + h * group * repeat * dim, repeat * dim,
                      static_cast<int>(group), queries, keys.data(), places, static_cast<int>(dim));
        std::vector<float> slice;
        for (size_t row = 0; row < group * repeat; ++row) {
          const auto from = wide.begin() + static_cast<ptrdiff_t>(row * width + prefix);
          slice.insert(slice.end(), from, from + static_cast<ptrdiff_t>(length));
        }
        const std::vector<int32_t> after(repeat, static_cast<int32_t>(n));  // see the whole chunk
        Observation seen;
        seen.layer = l;
        seen.kv_head = static_cast<int>(h);
        seen.group = static_cast<int>(group);
        seen.num_queries = static_cast<int>(repeat);
        seen.num_entries = static_cast<int>(length);
        seen.probabilities = slice.data();
        seen.query_positions = after;
        seen.positions = std::span(positions).subspan(first, length);
        float* column[] = {columns.back()[h].data() + first};
        policy.Observe(seen, column);
      }
    }
    LayerInputs inputs;
    inputs.layer = l;
    inputs.num_layers = file.param("layers");
    inputs.group = static_cast<int>(group);
    inputs.heads = heads;
    policy.Score(inputs, all.emplace_back());
  }
  return all;
}

// All heads of all layers, total entries in all. budget.keep_exact carries a total that is no multiple.
std::vector<KeptHeads> Cut(const GgufFile& file, const std::string& recipe, double total,
                           std::vector<LayerScores>* scores = nullptr) {
  const std::shared_ptr<const Policy> policy = RecipeOf(recipe).policy;
  std::vector<std::vector<std::vector<float>>> columns;
  std::vector<LayerScores> all = RepeatPass(file, *policy, columns);
  Budget budget;
  const auto num_heads = static_cast<double>(file.param("layers") * file.param("kv_heads"));
  budget.keep = static_cast<int>(total / num_heads);
  budget.keep_exact = (total + 0.5) / num_heads;
  std::vector<KeptHeads> kept = policy->SelectAll(all, budget).value();
  if (scores != nullptr) *scores = std::move(all);
  return kept;
}

void ExpectKeptPairs(const GgufFile& file, const std::vector<KeptHeads>& kept, const std::string& method) {
  for (size_t l = 0; l < kept.size(); ++l) {
    const std::string out = fmt::format("out/{}/l{}/kept", method, l);
    ExpectExactly(MaskOf(kept[l], static_cast<size_t>(file.param("n"))), file.tensor(out).i64, out);
  }
}

PITH_GOLDEN_TEST(KvZip, kvzip, "in/chunks") {
  for (const char* recipe : {"kvzip", "score=peak alloc=global"}) {
    std::vector<LayerScores> scores;
    const std::vector<KeptHeads> kept = Cut(file, recipe, file.param("n_kept"), &scores);
    for (size_t l = 0; l < scores.size(); ++l) {
      const std::string out = fmt::format("out/kvzip/l{}/score", l);
      ExpectNumbers(Flatten(scores[l].heads), file.tensor(out).f32, out);
    }
    ExpectKeptPairs(file, kept, "kvzip");
  }
}

PITH_GOLDEN_TEST(KvZip, kvzip_strict, "in/chunks") {
  ExpectKeptPairs(file, Cut(file, "score=peak alloc=global:strict=1", file.param("n_kept")), "kvzip_strict");
}

PITH_GOLDEN_TEST(KvZip, kvzip_uniform, "in/chunks") {
  const int total = file.param("n_kept_uniform") * file.param("layers") * file.param("kv_heads");
  std::vector<LayerScores> scores;
  (void)Cut(file, "score=peak alloc=global", total, &scores);
  const std::shared_ptr<const Policy> policy = RecipeOf("score=peak").policy;
  Budget budget;
  budget.keep = file.param("n_kept_uniform");
  const std::vector<int32_t> positions = Iota(static_cast<size_t>(file.param("n")));
  std::vector<KeptHeads> kept;
  for (const LayerScores& layer : scores) {
    std::vector<HeadInputs> heads(layer.heads.size());
    for (HeadInputs& head : heads) head.positions = positions;
    LayerInputs inputs;
    inputs.heads = heads;
    kept.push_back(policy->Select(inputs, layer, budget).value());
  }
  ExpectKeptPairs(file, kept, "kvzip_uniform");
}

// [layers, kv heads], 1 = all of the head's context stays. A head in part would be neither.
std::vector<int64_t> WholeHeads(const std::vector<KeptHeads>& kept, size_t n) {
  std::vector<int64_t> whole;
  for (const KeptHeads& layer : kept) {
    for (const auto& head : layer) whole.push_back(head.empty() ? 0 : head.size() == n ? 1 : -1);
  }
  return whole;
}

PITH_GOLDEN_TEST(KvZip, kvzip_head, "in/chunks") {
  const auto n = static_cast<size_t>(file.param("n"));
  std::vector<LayerScores> scores;
  const std::vector<KeptHeads> kept = Cut(
      file, "score=peak alloc=heads", static_cast<double>(file.param("heads_kept")) * static_cast<double>(n), &scores);
  ExpectExactly(WholeHeads(kept, n), file.tensor("out/kvzip_head/kept").i64, "out/kvzip_head/kept");
  std::vector<float> best;
  for (const LayerScores& layer : scores) {
    for (const auto& head : layer.heads) best.push_back(*std::max_element(head.begin(), head.end()));
  }
  ExpectNumbers(best, file.tensor("out/kvzip_head/score").f32, "out/kvzip_head/score");
}

PITH_GOLDEN_TEST(KvZip, kvzip_head_strict, "in/chunks") {
  // The ratio is stored as float32, its product with a whole number of entries is meant exactly.
  const double ratio = std::round(file.number("pith.param.head_ratio") * 1e6) / 1e6;
  const auto n = static_cast<size_t>(file.param("n"));
  const double entries = static_cast<double>(n) * file.param("layers") * file.param("kv_heads");
  const std::vector<KeptHeads> kept = Cut(file, "score=peak alloc=heads:strict=1", std::floor(entries * ratio + 1e-6));
  ExpectExactly(WholeHeads(kept, n), file.tensor("out/kvzip_head_strict/kept").i64, "out/kvzip_head_strict/kept");
}

}  // namespace
}  // namespace pith::testing
