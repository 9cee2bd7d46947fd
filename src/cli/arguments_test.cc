#include "cli/arguments.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/command.h"

namespace pith::cli {
namespace {

using Words = std::vector<std::string>;

Words Read(std::vector<const char*> arguments) {
  CLI::App app("", "pith");
  Command chosen;
  AddRun(app, chosen);
  AddInfo(app, chosen);
  AddBench(app, chosen);
  AddChat(app, chosen);
  AddServe(app, chosen);
  app.get_subcommand("run")->add_flag("-e,--escape");
  arguments.insert(arguments.begin(), "pith");
  const auto read = ReadArguments(app, static_cast<int>(arguments.size()), arguments.data());
  return read ? *read : Words{"refused: " + read.error().message};
}

TEST(Arguments, LlamaCppsNames) {
  EXPECT_EQ(Read({"run", "-ub", "64", "-ngl=3", "-ctk", "q8_0", "-c", "100"}),
            (Words{"run", "--ubatch-size", "64", "--gpu-layers", "3", "--cache-type-k", "q8_0", "-c", "100"}));
  EXPECT_EQ(Read({"run", "-fa", "on", "-tb", "4", "-np", "2", "-sys", "Be brief.", "-no-cnv"}),
            (Words{"run", "--flash-attn", "on", "--threads-batch", "4", "--parallel", "2", "--system", "Be brief.",
                   "--raw"}));
  EXPECT_EQ(Read({"run", "-fa", "-p", "x"}), (Words{"run", "--flash-attn", "-p", "x"}));
  EXPECT_EQ(Read({"run", "-hf", "x/y"}), (Words{"run", "--hf-repo", "x/y"}));
  EXPECT_EQ(Read({"serve", "-to", "5"}), (Words{"serve", "--timeout", "5"}));
  EXPECT_EQ(Read({"chat", "-st", "-p", ""}), (Words{"chat", "--single-turn", "-p", ""}));
  EXPECT_EQ(Read({"bench", "-dev", "0"}).front(),
            "refused: pith bench has no option -dev; \"pith bench --help\" lists them");
}

TEST(Arguments, WhatLlamaCppAsksForAndIsSoIsPassedOver) {
  EXPECT_EQ(Read({"run", "--jinja", "-C", "ff", "-st", "--numa=distribute", "-dev", "none", "-p", "--jinja"}),
            (Words{"run", "-p", "--jinja"}));
  EXPECT_EQ(Read({"serve", "--metrics", "-cb", "-cram", "100", "--port", "1"}), (Words{"serve", "--port", "1"}));
  EXPECT_EQ(Read({"run", "--jinja=1"}), (Words{"refused: --jinja takes no value"}));
  EXPECT_EQ(Read({"run", "--numa"}), (Words{"refused: --numa needs a value"}));
  EXPECT_EQ(Read({"run", "--no-mmap", "--mlock"}), (Words{"run", "--no-mmap", "--mlock"}))
      << "what pith has is its own";
  EXPECT_EQ(Read({"info", "--jinja"}).front(),
            "refused: pith info has no option --jinja; \"pith info --help\" lists them");
  EXPECT_TRUE(Read({"run", "--draft", "4"}).front().starts_with("refused: pith run has no option --draft"));
}

TEST(Arguments, WhatMayHaveBeenMeantIsSaid) {
  EXPECT_EQ(Read({"run", "--kv-buget", "1"}),
            (Words{"refused: pith run has no option --kv-buget; --kv-budget may be what is meant"}));
  EXPECT_EQ(Read({"run", "--recipes=x"}),
            (Words{"refused: pith run has no option --recipes=x; --recipe may be what is meant"}));
  EXPECT_EQ(Read({"run", "--frobnicate"}),
            (Words{"refused: pith run has no option --frobnicate; \"pith run --help\" lists them"}));
  EXPECT_EQ(Read({"run", "-x"}), (Words{"refused: pith run has no option -x; \"pith run --help\" lists them"}));
  EXPECT_NE(Read({"rnu"}).front().find("there is no command \"rnu\"; run may be what is meant, or choose one of "),
            std::string::npos);
  EXPECT_NE(Read({"frobnicate"}).front().find("there is no command \"frobnicate\"; choose one of "), std::string::npos);
}

TEST(Arguments, ValuesAreNotNames) {
  EXPECT_EQ(Read({"run", "-p", "-ub"}), (Words{"run", "-p", "-ub"}));
  EXPECT_EQ(Read({"run", "--prompt=-ngl", "-n", "-1"}), (Words{"run", "--prompt", "-ngl", "-n", "-1"}));
  EXPECT_EQ(Read({"run", "--lora-scaled", "-fa", "2", "-p", ""}),
            (Words{"run", "--lora-scaled", "-fa", "2", "-p", ""}));
  EXPECT_EQ(Read({"run", "-f", "-", "-n5"}), (Words{"run", "-f", "-", "-n", "5"}));
  EXPECT_EQ(Read({"info", "--", "-ub"}), (Words{"info", "--", "-ub"}));
  EXPECT_EQ(Read({"bench", "--compare", "-ub", "-fa"}), (Words{"bench", "--compare", "-ub", "-fa"}));
}

TEST(Arguments, NumbersAreDecimal) {
  EXPECT_EQ(Read({"run", "-n", "010", "-s", "0123", "-t", "+08", "--temp", "00.50", "--top-p", ".5", "-c", "000"}),
            (Words{"run", "-n", "10", "-s", "123", "-t", "8", "--temp", "0.50", "--top-p", "0.5", "-c", "0"}));
  EXPECT_EQ(Read({"run", "-n010", "-p", "010", "-m", "007"}), (Words{"run", "-n", "10", "-p", "010", "-m", "007"}));
  for (const char* text : {"0x10", "1_000", "ten", "1e", "--5", "nan", "inf", " 5", "5 ", "."}) {
    EXPECT_TRUE(Read({"run", "-n", text}).front().starts_with("refused: -n takes a decimal number")) << text;
  }
}

TEST(Arguments, EscapesWhereAskedFor) {
  EXPECT_EQ(Read({"run", "-p", "a\\nb"}), (Words{"run", "-p", "a\\nb"}));
  EXPECT_EQ(Read({"run", "-p", "a\\nb\\x41", "-e", "-m", "c\\n"}), (Words{"run", "-p", "a\nbA", "-e", "-m", "c\\n"}));
  EXPECT_EQ(Unescape("\\\\n \\q \\x4 \\"), "\\n \\q \\x4 \\");
  EXPECT_EQ(Unescape("\\0"), std::string(1, '\0'));
}

TEST(Arguments, HelpAndCommandsThatAreMissing) {
  EXPECT_EQ(Read({}), (Words{"--help"}));
  EXPECT_EQ(Read({"help"}), (Words{"--help"}));
  EXPECT_EQ(Read({"help", "run"}), (Words{"run", "--help"}));
  EXPECT_NE(Read({"-p", "hi"}).front().find("\"pith run -p hi\""), std::string::npos);
  EXPECT_NE(Read({"some/model.gguf"}).front().find("pith run -m some/model.gguf -p TEXT"), std::string::npos);
  EXPECT_NE(Read({"help", "fly"}).front().find("no command \"fly\""), std::string::npos);
}

}  // namespace
}  // namespace pith::cli
