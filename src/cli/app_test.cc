#include "cli/app.h"

#include <cstdio>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace pith::cli {
namespace {

struct Usage {
  std::vector<const char*> arguments;
  const char* says;
};

// Bad usage is known before any model is opened, and costs exit code 2.
TEST(App, BadUsage) {
  const std::vector<Usage> usages = {
      {{"fly"}, "pith: "},
      {{"run"}, "a prompt is missing"},
      {{"run", "-p", "x", "-f", "y"}, "not with several"},
      {{"run", "-p", "x", "--kv-budget", "64Q"}, "is no size"},
      {{"run", "-p", "x", "--kv-budget", "0%"}, "is no percentage"},
      {{"run", "-p", "x", "--recipe", "no_such_recipe"}, "no_such_recipe"},
      {{"run", "-p", "x", "--recipe", "snapkv:no_such=1"}, "no_such"},
      {{"run", "-p", "x", "-ctk", "q5"}, "is no format"},
      {{"run", "-p", "x", "-ctk", "q8_0", "-ctv", "q5_0"}, "is no format"},
      {{"run", "-p", "x", "-ctk", "comp"}, "give both -ctk comp and -ctv comp"},
      {{"run", "-p", "x", "-ctk", "q4_0", "-ctv", "comp:0.1"}, "give both -ctk comp and -ctv comp"},
      {{"run", "-p", "x", "-ctk", "comp:0.1,ev=0.5", "-ctv", "comp"}, "comp:F takes a share of a range"},
      {{"run", "-p", "x", "-ctk", "comp:", "-ctv", "comp"}, "comp:F takes a share of a range"},
      {{"run", "-p", "x", "-ctk", "comp", "-ctv", "comp:0.9"}, "takes shares of a range from 1/62 to 1/2"},
      {{"eval", "--tasks", "x", "-ctk", "comp:0"}, "takes shares of a range from 1/62 to 1/2"},
      {{"bench", "-ctk", "f16,comp:9"}, "takes shares of a range from 1/62 to 1/2"},
      {{"run", "-p", "x", "--recipe", "knorm format=q5"}, "format=q5 is none of"},
      {{"run", "-p", "x", "-n", "-2"}, "-n takes"},
      {{"run", "-p", "x", "-n", "many"}, "pith: "},
      {{"run", "-p", "x", "-c", "-1"}, "pith: "},
      {{"run", "-p", "x", "-n", ""}, "-n has an empty value"},
      {{"run", "-p", "x", "-m", ""}, "-m has an empty value"},
      {{"run", "-p", "x", "--temp", ""}, "--temp has an empty value"},
      {{"run", "-p", "x", "--temp="}, "--temp has an empty value"},
      {{"run", "-p", "x", "--kv-budget="}, "--kv-budget has an empty value"},
      {{"run", "-p", "x", "--lora-scaled", "a", ""}, "--lora-scaled has an empty value"},
      {{"bench", "--ctx", ""}, "--ctx has an empty value"},
      {{"info", ""}, "an empty argument"},
      {{"serve", "--port", "70000"}, "--port"},
      {{"serve", "--prompt-share", "1.5"}, "--prompt-share takes"},
      {{"serve", "--slot-save-path", "/nowhere/at/all"}, "is no folder"},
      {{"run", "-p", "x", "-n", "0x10"}, "-n takes a decimal number"},
      {{"run", "-p", "x", "--temp", "nan"}, "--temp takes a decimal number"},
      {{"run", "-p", "x", "-xyz", "2"}, "no option -xyz"},
      {{"run", "-p", "x", "-mmodel.gguf"}, "no option -mmodel.gguf"},
      {{"-p", "hi there"}, "pith run -p 'hi there'"},
      {{"model.gguf"}, "pith chat -m model.gguf"},
      {{"fly"}, "choose one of run, chat"},
      {{"run", "-p", "x", "--temp", "-1"}, "--temp takes"},
      {{"run", "-p", "x", "--raw", "--system", "y"}, "--system needs"},
      {{"run", "-p", "x", "-hf", "org/name"}, "downloads no models"},
      {{"run", "-p", "x", "--no-such-flag"}, "pith: "},
      {{"parity"}, "pith: "},
      {{"eval", "--tasks", "x", "--keep", "2"}, "--keep takes"},
      {{"eval", "--tasks", "x", "--recipes", "no_such_recipe"}, "no_such_recipe"},
      {{"bench", "--ctx", "zero"}, "--ctx takes"},
      // Given again, the last value counts, as with llama.cpp.
      {{"run", "-p", "x", "-n", "5", "-n", "-2"}, "-n takes"},
      {{"run", "-p", "x", "-n", "-2", "-n", "5", "--recipe", "knorm", "--recipe", "no_such_recipe"}, "no_such_recipe"},
      {{"run", "-p", "", "-p", "x", "--temp", "0", "--temp", "-1"}, "--temp takes"},
      {{"info", "a.gguf", "b.gguf"}, "pith: "},
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
  for (const char* command : {"run", "chat", "info", "recipes", "eval", "bench", "parity", "sim"}) {
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
