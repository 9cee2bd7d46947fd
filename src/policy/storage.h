// In what a recipe's entries are stored: the word format=.
#ifndef PITH_POLICY_STORAGE_H_
#define PITH_POLICY_STORAGE_H_

#include <string>
#include <string_view>

#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

// Steps of format=comp: of at most 0.06 of the range of a page's keys, and 0.15, for they bear more, of a value's.
inline constexpr PageFormat kUsualCoded = PageFormat(CodedFormat(17), CodedFormat(7));

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
