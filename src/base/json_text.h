// JSON to text and back. The library's parser and writer are templates, which each file that calls them compiles anew,
// with sanitizers for four seconds: here they are compiled once.
#ifndef PITH_BASE_JSON_TEXT_H_
#define PITH_BASE_JSON_TEXT_H_

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace pith {

// is_discarded() where `text` is no JSON.
nlohmann::json JsonOf(std::string_view text);
nlohmann::ordered_json OrderedJsonOf(std::string_view text);

// indent: blanks for each level; -1: all on one line. Bytes that are no UTF-8 become U+FFFD.
std::string JsonText(const nlohmann::json& json, int indent = -1);
std::string JsonText(const nlohmann::ordered_json& json, int indent = -1);

}  // namespace pith

#endif  // PITH_BASE_JSON_TEXT_H_
