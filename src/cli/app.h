// The program `pith`: from arguments to an exit code.
#ifndef PITH_CLI_APP_H_
#define PITH_CLI_APP_H_

namespace pith::cli {

// 0: ok, 1: an error at run time, 2: bad usage, 130: stopped by Ctrl-C. An error
// is one sentence on standard error.
int Main(int argc, const char* const* argv);

}  // namespace pith::cli

#endif  // PITH_CLI_APP_H_
