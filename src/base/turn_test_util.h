// Long lists of cases of which each commit goes through a quarter, so that commits take turns.
#ifndef PITH_BASE_TURN_TEST_UTIL_H_
#define PITH_BASE_TURN_TEST_UTIL_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace pith {

// Whether the case of that index is among those that run: of any four that follow each other one where PITH_TEST_TURN
// (0 to 7) is set, as ./pith test sets it after the commit; all without it, as with ./pith test --all.
inline bool IsMyTurn(size_t index) {
  static const char* const turn = std::getenv("PITH_TEST_TURN");
  return turn == nullptr || *turn == '\0' || index % 4 == static_cast<size_t>(*turn - '0') % 4;
}

// Of the cases 0 to count - 1 those.
inline std::vector<uint32_t> MyTurnOf(uint32_t count) {
  std::vector<uint32_t> cases;
  for (uint32_t i = 0; i < count; ++i) {
    if (IsMyTurn(i)) cases.push_back(i);
  }
  return cases;
}

}  // namespace pith

#endif  // PITH_BASE_TURN_TEST_UTIL_H_
