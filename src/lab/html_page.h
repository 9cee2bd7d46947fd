// Pages that carry their data and need nothing else.
#ifndef PITH_LAB_HTML_PAGE_H_
#define PITH_LAB_HTML_PAGE_H_

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace pith {

// `page` with the data in its place, /*DATA*/ inside a <script>. Texts cannot break out of it, whatever they hold.
std::string FillPage(std::string_view page, const nlohmann::ordered_json& data);

}  // namespace pith

#endif  // PITH_LAB_HTML_PAGE_H_
