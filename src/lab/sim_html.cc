#include "lab/sim_html.h"

#include "lab/embedded.h"
#include "lab/html_page.h"

namespace pith {

std::string SimHtml(const nlohmann::ordered_json& results) { return FillPage(SimPage(), results); }

}  // namespace pith
