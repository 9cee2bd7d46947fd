#include "policy/words.h"

#include <algorithm>
#include <cctype>
#include <numeric>
#include <utility>

namespace pith {
namespace {

char Lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

constexpr size_t kLongestWord = 64;

// Neighbours that changed places count once.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, last);
    std::swap(last, row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const auto same = [&](size_t of_a, size_t of_b) { return Lower(a[of_a]) == Lower(b[of_b]); };
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same(i - 1, j - 1) ? 0 : 1)});
      if (i > 1 && j > 1 && same(i - 1, j - 2) && same(i - 2, j - 1)) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace

std::vector<std::string_view> SplitWords(std::string_view text, char separator) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t end = text.find(separator);
    words.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return words;
    text.remove_prefix(end + 1);
  }
}

std::string Printable(std::string_view text) {
  constexpr size_t kLongest = 40;
  std::string shown(text.substr(0, kLongest));
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  if (text.size() > kLongest) shown += "...";
  return shown;
}

std::string_view Nearest(std::string_view word, const std::vector<std::string_view>& choices) {
  word = word.substr(0, kLongestWord);
  std::string_view best;
  size_t best_distance = SIZE_MAX;
  for (std::string_view choice : choices) {
    const size_t distance = EditDistance(word, choice);
    if (distance < best_distance) {
      best_distance = distance;
      best = choice;
    }
  }
  return best;
}

std::string_view NearMiss(std::string_view word, const std::vector<std::string_view>& choices) {
  const std::string_view nearest = Nearest(word, choices);
  return EditDistance(word.substr(0, kLongestWord), nearest) <= (word.size() + 2) / 3 ? nearest : std::string_view();
}

}  // namespace pith
