// The page at /: one file without anything from elsewhere, CMake says where it is.
#include <string_view>

#include "base/embed.h"
#include "server/api.h"

PITH_EMBED(pith_server_page, PITH_SERVER_PAGE);

namespace pith::server {

void Page(Call& call) {
  HttpResponse response{.status = 200,
                        .body = std::string(std::string_view(pith_server_page_begin, pith_server_page_end)),
                        .type = "text/html; charset=utf-8"};
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  call.exchange->Send(std::move(response));
}

}  // namespace pith::server
