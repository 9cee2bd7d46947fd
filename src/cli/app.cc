#include "cli/app.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "host/trial.h"
#include "kernels/attention.h"

namespace pith::cli {
namespace {

constexpr std::string_view kAppExamples = R"(Examples:
  pith run -p "Why is the sky blue?"
  pith run -m model.gguf -f book.txt -c 32768 --kv-budget 64MiB
  pith chat -m model.gguf --system "You answer in one sentence."
  pith serve -m model.gguf --port 8080
  pith info model.gguf --kv-budget 256MiB
  pith recipes
)";

std::string VersionText() {
  return fmt::format("pith {}\nSIMD target: {}\nlibllama: {}", PITH_VERSION, kernels::UnitsInUse(), PITH_LLAMA_VERSION);
}

// CLI11 explains over several lines; the first says it.
std::string FirstLine(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

int Execute(const Command& command) {
  if (command.check) {
    if (const Status status = command.check(); !status) {
      Complain(status.error());
      return kExitUsage;
    }
  }
  const Result<int> code = command.run();
  if (code) return *code;
  Complain(code.error());
  return Interrupted() && code.error().code == ErrorCode::kCancelled ? kExitInterrupted : kExitError;
}

// False, after a sentence: what was written to standard output did not arrive.
bool FlushOutput() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  const std::string reason = errno != 0 ? fmt::format(": {}", std::strerror(errno)) : "";
  if (flushed && std::ferror(stdout) == 0) return true;
  Complain(Error{ErrorCode::kIo, fmt::format("not all of the output could be written{}", reason)});
  return false;
}

int Parse(int argc, const char* const* argv, Command& chosen) {
  CLI::App app("pith runs GGUF models inside a fixed KV-cache budget.", "pith");
  app.footer(std::string(kAppExamples));
  app.set_version_flag("--version", VersionText, "Print the version, the SIMD target and libllama's version");
  app.require_subcommand(1);
  AddRun(app, chosen);
  AddChat(app, chosen);
  AddServe(app, chosen);
  AddInfo(app, chosen);
  AddRecipes(app, chosen);
  AddEval(app, chosen);
  AddTune(app, chosen);
  AddBench(app, chosen);
  AddParity(app, chosen);
  AddSim(app, chosen);
  AddStore(app, chosen);
  for (const char* command : {"run", "chat"}) {
    const std::string help = "Backslashes in -p and --system stand for characters: \\n, \\t, \\x41 and so on";
    app.get_subcommand(command)->add_flag("-e,--escape", help);
  }
  LastValueCounts(app);
  Result<std::vector<std::string>> read = ReadArguments(app, argc, argv);
  if (!read) {
    Complain(Error{ErrorCode::kInvalidArgument, read.error().message});
    return kExitUsage;
  }
  std::vector<std::string> arguments = std::move(*read);
  std::reverse(arguments.begin(), arguments.end());  // the parser takes them from the back
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Success& e) {  // --help, --version
    app.exit(e);
    return kExitOk;
  } catch (const CLI::ParseError& e) {
    Complain(Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} (see \"pith --help\" and \"pith COMMAND --help\")", FirstLine(e.what()))});
    return kExitUsage;
  }
  return -1;
}

}  // namespace

int Main(int argc, const char* const* argv) {
  HoldStandardStreams();
  InstallInterruptHandler();
  ExitOnGgmlAbort();
  try {
    Command chosen;
    const int parsed = Parse(argc, argv, chosen);
    const int code = parsed >= 0 ? parsed : Execute(chosen);
    return FlushOutput() || code != kExitOk ? code : kExitError;
  } catch (const std::bad_alloc&) {
    Complain(Error{ErrorCode::kIo, "the machine has no memory left for this"});
  } catch (const std::exception& e) {
    if (std::ferror(stdout) == 0 || FlushOutput()) Complain(Error{ErrorCode::kIo, e.what()});
  }
  return kExitError;
}

}  // namespace pith::cli
