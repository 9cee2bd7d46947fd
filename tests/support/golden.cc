#include "tests/support/golden.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>

namespace pith::testing {

std::string GoldenFolder() {
  const char* folder = std::getenv("PITH_GOLDEN_DIR");
  if (folder != nullptr && *folder != '\0') return folder;
  return std::string(PITH_SOURCE_DIR) + "/tests/golden";
}

std::vector<std::string> GoldenPaths() {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenFolder(), error)) {
    if (entry.path().extension() == ".gguf") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

const std::vector<GgufFile>& GoldenFiles() {
  static const std::vector<GgufFile> files = [] {
    std::vector<GgufFile> read;
    for (const std::string& path : GoldenPaths()) {
      Result<GgufFile> file = GgufFile::Load(path);
      if (file) read.push_back(std::move(*file));
    }
    return read;
  }();
  return files;
}

std::set<std::string>& CheckedMethods() {
  static std::set<std::string> methods;
  return methods;
}

void ForEachGolden(const std::string& method, const std::string& tensor,
                   const std::function<void(const GgufFile&)>& check) {
  int count = 0;
  for (const GgufFile& file : GoldenFiles()) {
    const std::vector<std::string> methods = file.texts("pith.methods");
    if (std::find(methods.begin(), methods.end(), method) == methods.end()) continue;
    if (!file.has(tensor)) continue;
    SCOPED_TRACE(file.path());
    check(file);
    ++count;
  }
  if (count == 0) GTEST_SKIP() << "no file in " << GoldenFolder() << " has " << method;
}

bool Tolerance::Same(double a, double b) const {
  return a == b || std::abs(a - b) <= absolute + relative * std::abs(b);
}

std::string CompareNumbers(const std::vector<float>& ours, const std::vector<float>& theirs, Tolerance tolerance) {
  if (ours.size() != theirs.size()) return fmt::format("{} numbers, not {}", ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!tolerance.Same(static_cast<double>(ours[i]), static_cast<double>(theirs[i]))) {
      return fmt::format("[{}] is {}, not {}", i, ours[i], theirs[i]);
    }
  }
  return "";
}

std::string CompareExactly(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs) {
  if (ours.size() != theirs.size()) return fmt::format("{} numbers, not {}", ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] != theirs[i]) return fmt::format("[{}] is {}, not {}", i, ours[i], theirs[i]);
  }
  return "";
}

std::string CompareKept(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs,
                        const std::vector<float>& scores, Tolerance tolerance) {
  if (ours.size() != theirs.size() || scores.size() != theirs.size()) return "sizes differ";
  int64_t balance = 0;
  std::vector<size_t> differing;
  for (size_t i = 0; i < ours.size(); ++i) {
    balance += ours[i] - theirs[i];
    if (ours[i] != theirs[i]) differing.push_back(i);
  }
  if (balance != 0) return fmt::format("{} entries too many", balance);
  for (size_t i : differing) {
    const auto a = static_cast<double>(scores[i]);
    const auto b = static_cast<double>(scores[differing.front()]);
    if (!tolerance.Same(a, b)) {
      return fmt::format("entry {} is {}, not {} (score {}, against {} of entry {})", i, ours[i], theirs[i], a, b,
                         differing.front());
    }
  }
  return "";
}

void ExpectNumbers(const std::vector<float>& ours, const std::vector<float>& theirs, const std::string& what,
                   Tolerance tolerance) {
  EXPECT_EQ(CompareNumbers(ours, theirs, tolerance), "") << what;
  if (ours.empty()) return;
  std::vector<float> wrong = ours;  // control
  float& number = wrong[wrong.size() / 2];
  number = std::isfinite(number) ? number * 1.01F + std::copysign(1e-3F, number) : 0;
  EXPECT_NE(CompareNumbers(wrong, theirs, tolerance), "") << what << ": the comparison sees nothing";
}

void ExpectExactly(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs, const std::string& what) {
  EXPECT_EQ(CompareExactly(ours, theirs), "") << what;
  if (ours.empty()) return;
  std::vector<int64_t> wrong = ours;  // control
  ++wrong[wrong.size() / 2];
  EXPECT_NE(CompareExactly(wrong, theirs), "") << what << ": the comparison sees nothing";
}

void ExpectKept(const std::vector<int64_t>& ours, const std::vector<int64_t>& theirs, const std::vector<float>& scores,
                const std::string& what, Tolerance tolerance) {
  EXPECT_EQ(CompareKept(ours, theirs, scores, tolerance), "") << what;
  // Control: the best dropped entry in place of the best kept one.
  std::vector<size_t> best = {SIZE_MAX, SIZE_MAX};
  for (size_t i = 0; i < ours.size(); ++i) {
    size_t& b = best[static_cast<size_t>(ours[i] != 0)];
    if (b == SIZE_MAX || scores[i] > scores[b]) b = i;
  }
  if (best[0] == SIZE_MAX || best[1] == SIZE_MAX) return;  // all or nothing stays
  if (tolerance.Same(static_cast<double>(scores[best[0]]), static_cast<double>(scores[best[1]]))) return;
  std::vector<int64_t> wrong = ours;
  std::swap(wrong[best[0]], wrong[best[1]]);
  EXPECT_NE(CompareKept(wrong, theirs, scores, tolerance), "") << what << ": the comparison sees nothing";
}

std::vector<int64_t> MaskOf(const KeptHeads& kept, size_t n) {
  std::vector<int64_t> mask(kept.size() * n, 0);
  for (size_t h = 0; h < kept.size(); ++h) {
    for (int32_t i : kept[h]) mask[h * n + static_cast<size_t>(i)] = 1;
  }
  return mask;
}

std::vector<float> Flatten(const std::vector<std::vector<float>>& heads) {
  std::vector<float> flat;
  for (const auto& head : heads) flat.insert(flat.end(), head.begin(), head.end());
  return flat;
}

Recipe RecipeOf(const std::string& text) {
  Result<Recipe> recipe = ParseRecipe(text);
  if (!recipe) {
    ADD_FAILURE() << text << ": " << recipe.error().message;
    std::abort();
  }
  return *recipe;
}

std::vector<float> Attention(const float* q, size_t q_stride, int group, std::span<const int32_t> query_positions,
                             const float* keys, std::span<const int32_t> positions, int dim) {
  const size_t n = positions.size();
  const auto width = static_cast<size_t>(dim);
  std::vector<float> out;
  out.reserve(static_cast<size_t>(group) * query_positions.size() * n);
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  std::vector<float> row(n);
  for (int g = 0; g < group; ++g) {
    for (size_t t = 0; t < query_positions.size(); ++t) {
      const float* query = q + static_cast<size_t>(g) * q_stride + t * width;
      float most = -std::numeric_limits<float>::infinity();
      for (size_t j = 0; j < n; ++j) {
        row[j] = -std::numeric_limits<float>::infinity();
        if (positions[j] > query_positions[t]) continue;
        float dot = 0;
        for (size_t d = 0; d < width; ++d) dot += query[d] * keys[j * width + d];
        row[j] = dot * scale;
        most = std::max(most, row[j]);
      }
      double sum = 0;
      for (float& x : row) {
        x = std::exp(x - most);
        sum += static_cast<double>(x);
      }
      for (float x : row) out.push_back(static_cast<float>(static_cast<double>(x) / sum));
    }
  }
  return out;
}

}  // namespace pith::testing
