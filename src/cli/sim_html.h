// The page of `pith sim --html`.
#ifndef PITH_CLI_SIM_HTML_H_
#define PITH_CLI_SIM_HTML_H_

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace pith::cli {

// results: what --json prints.
std::string SimHtml(const nlohmann::ordered_json& results);

}  // namespace pith::cli

#endif  // PITH_CLI_SIM_HTML_H_
