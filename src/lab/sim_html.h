// The page of `pith sim --html`.
#ifndef PITH_LAB_SIM_HTML_H_
#define PITH_LAB_SIM_HTML_H_

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace pith {

// results: what --json prints.
std::string SimHtml(const nlohmann::ordered_json& results);

}  // namespace pith

#endif  // PITH_LAB_SIM_HTML_H_
