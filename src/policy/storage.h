// In what a recipe's entries are stored: the word format=.
#ifndef PITH_POLICY_STORAGE_H_
#define PITH_POLICY_STORAGE_H_

#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

// Steps of format=comp: of at most 0.06 of the range of a page's keys, and 0.15, for they bear more, of a value's.
inline constexpr PageFormat kUsualCoded = PageFormat(CodedFormat(17), CodedFormat(7));

// What format=auto chooses among, the most precise first.
inline constexpr std::array kAutoFormats = [] {
  constexpr auto kIsTaken = [](const KvFormatInfo& info) { return !info.auto_keys.empty(); };
  std::array<PageFormat, std::ranges::count_if(kKvFormatInfos, kIsTaken)> formats = {};
  size_t at = 0;
  for (const KvFormat values : kKvFormats) {
    const KvFormatInfo& info = InfoOf(values);
    if (kIsTaken(info)) formats[at++] = PageFormat(FindKvFormat(info.auto_keys).value(), values);
  }
  std::ranges::sort(formats, std::greater(), &PageFormat::bits);
  return formats;
}();

struct Storage {
  PageFormat fixed = {};
  double least = 0;  // > 0: format=auto, of the entries

  bool operator==(const Storage&) const = default;
  std::string Name() const;
};

// "q4" for keys and values, "q8/q4" where they differ, "comp:ek=0.06,ev=0.15", "auto:0.9". kInvalidArgument.
Result<Storage> ParseStorage(std::string_view text);

}  // namespace pith

#endif  // PITH_POLICY_STORAGE_H_
