#include "cli/sim_html.h"

#include "cli/embedded.h"
#include "cli/html_page.h"

namespace pith::cli {

std::string SimHtml(const nlohmann::ordered_json& results) { return FillPage(SimPage(), results); }

}  // namespace pith::cli
