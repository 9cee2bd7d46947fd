#include "cli/app.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <string_view>
#include <utility>

#include "cli/command.h"
#include "cli/terminal.h"
#include "host/trial.h"
#include "kernels/attention.h"

namespace pith::cli {
namespace {

constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
    {"-ub", "--ubatch-size"},   {"-ngl", "--gpu-layers"}, {"-ctk", "--cache-type-k"},
    {"-ctv", "--cache-type-v"}, {"-hf", "--hf-repo"},     {"-hfr", "--hf-repo"},
};

constexpr std::string_view kExamples = R"(Examples:
  pith run -p "Why is the sky blue?"
  pith run -m model.gguf -f book.txt -c 32768 --kv-budget 64MiB
  pith chat -m model.gguf --system "You answer in one sentence."
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

int Parse(int argc, const char* const* argv, Command& chosen) {
  CLI::App app("pith runs GGUF models inside a fixed KV-cache budget.", "pith");
  app.footer(std::string(kExamples));
  app.set_version_flag("--version", VersionText, "Print the version, the SIMD target and libllama's version");
  app.require_subcommand(1);
  AddRun(app, chosen);
  AddChat(app, chosen);
  AddInfo(app, chosen);
  AddRecipes(app, chosen);
  AddEval(app, chosen);
  AddBench(app, chosen);
  AddParity(app, chosen);
  std::vector<std::string> arguments = NormaliseArguments(argc, argv);
  if (arguments.empty()) arguments.emplace_back("--help");
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

std::vector<std::string> NormaliseArguments(int argc, const char* const* argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    for (const auto& [from, to] : kLongNames) {
      if (argument == from) {
        argument = to;
      } else if (argument.starts_with(from) && argument.size() > from.size() && argument[from.size()] == '=') {
        argument = std::string(to) + argument.substr(from.size());
      }
    }
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

int Main(int argc, const char* const* argv) {
  InstallInterruptHandler();
  ExitOnGgmlAbort();
  try {
    Command chosen;
    const int code = Parse(argc, argv, chosen);
    return code >= 0 ? code : Execute(chosen);
  } catch (const std::bad_alloc&) {
    Complain(Error{ErrorCode::kIo, "the machine has no memory left for this"});
  } catch (const std::exception& e) {
    Complain(Error{ErrorCode::kIo, e.what()});
  }
  return kExitError;
}

}  // namespace pith::cli
