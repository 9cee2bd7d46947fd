#include "lab/eval_html.h"

#include <nlohmann/json.hpp>

#include "lab/embedded.h"
#include "lab/html_page.h"

namespace pith {

std::string ReportHtml(const nlohmann::ordered_json& results, const nlohmann::ordered_json& maps) {
  nlohmann::ordered_json data = results;
  data.erase("items");  // the page draws means; rows are in the JSON
  data["maps"] = maps;
  return FillPage(ReportPage(), data);
}

}  // namespace pith
