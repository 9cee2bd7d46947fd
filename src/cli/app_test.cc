#include "cli/app.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace pith::cli {
namespace {

std::vector<std::string> Normalise(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "pith");
  return NormaliseArguments(static_cast<int>(arguments.size()), arguments.data());
}

TEST(App, LlamaCppsShortFlags) {
  EXPECT_EQ(Normalise({"run", "-ub", "64", "-ngl=3", "-ctk", "q8_0", "-c", "100"}),
            (std::vector<std::string>{"run", "--ubatch-size", "64", "--gpu-layers=3", "--cache-type-k", "q8_0", "-c",
                                      "100"}));
  EXPECT_EQ(Normalise({"-hf", "x/y"}), (std::vector<std::string>{"--hf-repo", "x/y"}));
}

struct Usage {
  std::vector<const char*> arguments;
  const char* says;
};

// Bad usage is known before any model is opened, and costs exit code 2.
TEST(App, BadUsage) {
  const std::vector<Usage> usages = {
      {{"fly"}, "pith: "},
      {{"run"}, "a prompt is missing"},
      {{"run", "-p", "x", "-f", "y"}, "not with both"},
      {{"run", "-p", "x", "--kv-budget", "64Q"}, "is no size"},
      {{"run", "-p", "x", "--kv-budget", "0%"}, "is no percentage"},
      {{"run", "-p", "x", "--recipe", "no_such_recipe"}, "no_such_recipe"},
      {{"run", "-p", "x", "--recipe", "snapkv:no_such=1"}, "no_such"},
      {{"run", "-p", "x", "-ctk", "q3"}, "is no format"},
      {{"run", "-p", "x", "-ctk", "q8_0", "-ctv", "q5_0"}, "is no format"},
      {{"run", "-p", "x", "--recipe", "knorm format=q3"}, "format=q3 is none of"},
      {{"run", "-p", "x", "-n", "-2"}, "-n takes"},
      {{"run", "-p", "x", "-n", "many"}, "pith: "},
      {{"run", "-p", "x", "-c", "0"}, "pith: "},
      {{"run", "-p", "x", "--temp", "-1"}, "--temp takes"},
      {{"run", "-p", "x", "--raw", "--system", "y"}, "--system needs"},
      {{"run", "-p", "x", "-hf", "org/name"}, "downloads no models"},
      {{"run", "-p", "x", "--no-such-flag"}, "pith: "},
      {{"parity"}, "pith: "},
      {{"eval", "--tasks", "x", "--keep", "2"}, "--keep takes"},
      {{"eval", "--tasks", "x", "--recipes", "no_such_recipe"}, "no_such_recipe"},
      {{"bench", "--ctx", "zero"}, "--ctx takes"},
  };
  for (const Usage& usage : usages) {
    std::vector<const char*> arguments = usage.arguments;
    arguments.insert(arguments.begin(), "pith");
    ::testing::internal::CaptureStderr();
    const int code = Main(static_cast<int>(arguments.size()), arguments.data());
    const std::string error = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(code, 2) << error;
    EXPECT_NE(error.find(usage.says), std::string::npos) << error;
    EXPECT_TRUE(error.starts_with("pith: ") && error.ends_with(".\n")) << error;
    EXPECT_EQ(error.find('\n'), error.size() - 1) << error;
  }
}

TEST(App, EveryCommandHasHelpWithExamples) {
  for (const char* command : {"run", "chat", "info", "recipes", "eval", "bench", "parity"}) {
    const char* arguments[] = {"pith", command, "--help"};
    ::testing::internal::CaptureStdout();
    EXPECT_EQ(Main(3, arguments), 0);
    const std::string help = ::testing::internal::GetCapturedStdout();
    EXPECT_NE(help.find("Examples:"), std::string::npos) << help;
  }
}

TEST(App, AMissingModelIsAnErrorOfItsOwn) {
  const char* arguments[] = {"pith", "run", "-m", "/nonexistent/model.gguf", "-p", "x"};
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Main(6, arguments), 1);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("/nonexistent/model.gguf"), std::string::npos);
}

}  // namespace
}  // namespace pith::cli
