// The page at /: one file without anything from elsewhere, which the assembler copies in; CMake says where it is.
#include <string_view>

#include "server/api.h"

__asm__(".section .rodata\n"
        ".global pith_server_page_begin\n.hidden pith_server_page_begin\n"
        ".global pith_server_page_end\n.hidden pith_server_page_end\n"
        "pith_server_page_begin:\n"
        ".incbin \"" PITH_SERVER_PAGE "\"\n"
        "pith_server_page_end:\n"
        ".byte 0\n"
        ".previous\n");
extern "C" const char pith_server_page_begin[], pith_server_page_end[];

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
