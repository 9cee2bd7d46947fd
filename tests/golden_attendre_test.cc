// Attendre's memories (arXiv:2401.04881): a chunk is read, its queries touch what they retrieve, the memory shrinks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "policy/policy.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

class Memory {
 public:
  Memory(const GgufFile& file, const std::string& recipe)
      : file_(file),
        policy_(RecipeOf(recipe).policy),
        n_(static_cast<size_t>(file.param("n"))),
        chunk_(static_cast<size_t>(file.param("chunk"))),
        dim_(static_cast<size_t>(file.param("head_dim"))),
        heads_(static_cast<size_t>(file.param("kv_heads"))),
        group_(static_cast<size_t>(file.param("heads")) / heads_.size()),
        output_(heads_.size() * group_ * n_ * dim_) {
    for (Head& head : heads_) head.columns.resize(policy_->columns().size());
  }

  // In parts of `rows` queries, as the engine observes a block.
  void Read(size_t rows) {
    for (size_t start = 0; start < n_; start += chunk_) {
      for (size_t h = 0; h < heads_.size(); ++h) {
        Append(heads_[h], h, start);
        for (size_t from = start; from < start + chunk_; from += rows) {
          Observe(heads_[h], h, start, from, std::min(rows, start + chunk_ - from));
        }
      }
      Evict();
      for (const Head& head : heads_) {
        for (size_t p = 0; p < n_; ++p)
          kept_.push_back(std::ranges::binary_search(head.positions, static_cast<int32_t>(p)));
      }
    }
  }

  const std::vector<int64_t>& kept() const { return kept_; }
  const std::vector<float>& output() const { return output_; }
  // [kv heads, n] of a column at the end, -1 where an entry is gone.
  std::vector<int64_t> Column(size_t column, int64_t unit) const {
    std::vector<int64_t> all(heads_.size() * n_, -1);
    for (size_t h = 0; h < heads_.size(); ++h) {
      for (size_t i = 0; i < heads_[h].positions.size(); ++i) {
        all[h * n_ + static_cast<size_t>(heads_[h].positions[i])] =
            static_cast<int64_t>(heads_[h].columns[column][i]) / unit;
      }
    }
    return all;
  }

 private:
  struct Head {
    std::vector<int32_t> positions;
    std::vector<std::vector<float>> columns;
    std::vector<float> keys, values;
    std::vector<float*> pointers;
  };

  void Append(Head& head, size_t h, size_t start) {
    for (size_t p = start; p < start + chunk_; ++p) {
      const auto row = static_cast<ptrdiff_t>((h * n_ + p) * dim_), width = static_cast<ptrdiff_t>(dim_);
      const std::vector<float>&keys = file_.tensor("in/k").f32, &values = file_.tensor("in/v").f32;
      head.positions.push_back(static_cast<int32_t>(p));
      head.keys.insert(head.keys.end(), keys.begin() + row, keys.begin() + row + width);
      head.values.insert(head.values.end(), values.begin() + row, values.begin() + row + width);
      for (size_t c = 0; c < head.columns.size(); ++c) head.columns[c].push_back(policy_->columns()[c].initial);
    }
  }

  void Observe(Head& head, size_t h, size_t start, size_t from, size_t rows) {
    std::vector<int32_t> queries(rows);
    std::iota(queries.begin(), queries.end(), static_cast<int32_t>(from));
    const size_t entries = head.positions.size();
    const std::vector<float> weights =
        Attention(file_.tensor("in/q").f32.data() + (h * group_ * n_ + from) * dim_, n_ * dim_,
                  static_cast<int>(group_), queries, head.keys.data(), head.positions, static_cast<int>(dim_));
    for (size_t row = 0; row < group_ * rows; ++row) {
      float* to = output_.data() + ((h * group_ + row / rows) * n_ + from + row % rows) * dim_;
      for (size_t j = 0; j < entries; ++j) {
        for (size_t d = 0; d < dim_; ++d) to[d] += weights[row * entries + j] * head.values[j * dim_ + d];
      }
    }
    if ((policy_->needs() & kNeedEveryQuery) == 0) return;
    head.pointers.clear();
    for (std::vector<float>& column : head.columns) head.pointers.push_back(column.data());
    policy_->Observe({.kv_head = static_cast<int>(h),
                      .group = static_cast<int>(group_),
                      .num_queries = static_cast<int>(rows),
                      .num_entries = static_cast<int>(entries),
                      .probabilities = weights.data(),
                      .query_positions = queries,
                      .positions = head.positions,
                      .first_of_chunk = static_cast<int32_t>(start)},
                     head.pointers);
  }

  void Evict() {
    const auto capacity = static_cast<size_t>(file_.param("capacity"));
    if (heads_.front().positions.size() <= capacity) return;
    std::vector<HeadInputs> inputs(heads_.size());
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      head.pointers.clear();
      for (std::vector<float>& column : head.columns) head.pointers.push_back(column.data());
      inputs[h].num_entries = static_cast<int>(head.positions.size());
      inputs[h].positions = head.positions;
      inputs[h].columns = head.pointers;
    }
    LayerInputs layer;
    layer.num_layers = 1;
    layer.group = static_cast<int>(group_);
    layer.heads = inputs;
    LayerScores scores;
    policy_->Score(layer, scores);
    const KeptHeads kept = policy_->Select(layer, scores, Budget{.keep = static_cast<int>(capacity)}).value();
    for (size_t h = 0; h < heads_.size(); ++h) Compact(heads_[h], kept[h]);
  }

  void Compact(Head& head, const std::vector<int32_t>& kept) const {
    Head left;
    left.columns.resize(head.columns.size());
    for (const int32_t i : kept) {
      const auto at = static_cast<size_t>(i);
      const auto row = static_cast<ptrdiff_t>(at * dim_), width = static_cast<ptrdiff_t>(dim_);
      left.positions.push_back(head.positions[at]);
      left.keys.insert(left.keys.end(), head.keys.begin() + row, head.keys.begin() + row + width);
      left.values.insert(left.values.end(), head.values.begin() + row, head.values.begin() + row + width);
      for (size_t c = 0; c < head.columns.size(); ++c) left.columns[c].push_back(head.columns[c][at]);
    }
    head = std::move(left);
  }

  const GgufFile& file_;
  const std::shared_ptr<const Policy> policy_;
  const size_t n_, chunk_, dim_;
  std::vector<Head> heads_;
  const size_t group_;
  std::vector<float> output_;  // [heads, n, dim]
  std::vector<int64_t> kept_;  // [chunks, kv heads, n]
};

// part: of a chunk that is observed at once.
template <typename Check>
void ForEachPart(const GgufFile& file, const std::string& recipe, const Check& check) {
  const auto chunk = static_cast<size_t>(file.param("chunk"));
  for (const size_t part : {chunk, std::max<size_t>(chunk / 2, 1)}) {
    SCOPED_TRACE(part);
    Memory memory(file, recipe);
    memory.Read(part);
    check(memory);
  }
}

void CheckMemory(const GgufFile& file, const std::string& method, const Memory& memory) {
  ExpectExactly(memory.kept(), file.tensor("out/" + method + "/kept").i64, method + "/kept");
  ExpectNumbers(memory.output(), file.tensor("out/" + method + "/out").f32, method + "/out", {1e-5, 1e-4});
}

PITH_GOLDEN_TEST(Methods, attendre_fifo, "in/q") {
  ForEachPart(file, "fifo", [&](const Memory& memory) { CheckMemory(file, "attendre_fifo", memory); });
}

PITH_GOLDEN_TEST(Methods, attendre_lra, "in/q") {
  const std::string recipe = fmt::format("lra:retrieved={}", file.param("retrieved"));
  ForEachPart(file, recipe, [&](const Memory& memory) {
    CheckMemory(file, "attendre_lra", memory);
    ExpectExactly(memory.Column(0, file.param("chunk")), file.tensor("out/attendre_lra/last").i64, "last");
  });
}

PITH_GOLDEN_TEST(Methods, attendre_lfa, "in/q") {
  const std::string recipe = fmt::format("lfa:retrieved={},grace={}", file.param("retrieved"), file.param("grace"));
  ForEachPart(file, recipe, [&](const Memory& memory) {
    CheckMemory(file, "attendre_lfa", memory);
    ExpectExactly(memory.Column(0, 1), file.tensor("out/attendre_lfa/count").i64, "count");
  });
}

}  // namespace
}  // namespace pith::testing
