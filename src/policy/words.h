// Words of a recipe: splitting, showing unknown bytes, the nearest valid choice.
#ifndef PITH_POLICY_WORDS_H_
#define PITH_POLICY_WORDS_H_

#include <string>
#include <string_view>
#include <vector>

namespace pith {

// Parts between separators, empty ones included; one empty part for empty text.
std::vector<std::string_view> SplitWords(std::string_view text, char separator);

// For error messages: control and non-ASCII bytes as '?', at most 40 characters.
std::string Printable(std::string_view text);

// The choice with the smallest edit distance (first of equals; letter case ignored); "" without
// choices. O(|word| |choice|), the word cut to 64 bytes.
std::string_view Nearest(std::string_view word, const std::vector<std::string_view>& choices);

// The same where no more than a third of the word differs, which may well have been meant; else "".
std::string_view NearMiss(std::string_view word, const std::vector<std::string_view>& choices);

}  // namespace pith

#endif  // PITH_POLICY_WORDS_H_
