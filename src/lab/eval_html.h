// The report of `pith eval --html`: one page that needs nothing else.
#ifndef PITH_LAB_EVAL_HTML_H_
#define PITH_LAB_EVAL_HTML_H_

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace pith {

// results: what --json prints. maps: EvalMaps::ToJson(). Texts cannot break out of the page, whatever they hold.
std::string ReportHtml(const nlohmann::ordered_json& results, const nlohmann::ordered_json& maps);

}  // namespace pith

#endif  // PITH_LAB_EVAL_HTML_H_
