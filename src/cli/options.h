// The command-line parser behind plain functions. CLI11 is all templates, which take seconds in every file that
// includes it: of these files only options.cc and app.cc do.
#ifndef PITH_CLI_OPTIONS_H_
#define PITH_CLI_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace pith::cli {

// A subcommand, owned by `app`; `footer` ends its --help.
CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& help, const std::string& footer);
// What happens when the command was given, and none of its own commands, once its options have their values.
void OnCommand(CLI::App& command, std::function<void()> then);

// One option each, owned by `command`. Where it is given, its value goes to `value`, which must outlive the parsing.
// names: "-x,--long", or a bare word for a positional. type: what stands for the value in --help.
CLI::Option* AddOption(CLI::App& command, const std::string& names, std::string& value, const std::string& help,
                       const std::string& type);
CLI::Option* AddOption(CLI::App& command, const std::string& names, float& value, const std::string& help,
                       const std::string& type);
CLI::Option* AddOption(CLI::App& command, const std::string& names, double& value, const std::string& help,
                       const std::string& type);
CLI::Option* AddOption(CLI::App& command, const std::string& names, int32_t& value, const std::string& help,
                       const std::string& type);
CLI::Option* AddOption(CLI::App& command, const std::string& names, int64_t& value, const std::string& help,
                       const std::string& type);
CLI::Option* AddOption(CLI::App& command, const std::string& names, uint64_t& value, const std::string& help,
                       const std::string& type);
// May be given more than once, with one value each time.
CLI::Option* AddOption(CLI::App& command, const std::string& names, std::vector<std::string>& values,
                       const std::string& help, const std::string& type);
// The same with `count` values each time, one behind the other in `values`.
CLI::Option* AddTuple(CLI::App& command, const std::string& names, std::vector<std::string>& values, int count,
                      const std::string& help, const std::string& type);
// A whole number from least to greatest; others are bad usage.
CLI::Option* AddNumber(CLI::App& command, const std::string& names, int& value, int least, int greatest,
                       const std::string& help, const std::string& type);
// One of `choices`; others are bad usage.
CLI::Option* AddChoice(CLI::App& command, const std::string& names, std::string& value,
                       const std::vector<std::string>& choices, const std::string& help, const std::string& type);
CLI::Option* AddFlag(CLI::App& command, const std::string& names, bool& value, const std::string& help);

// Of all commands, when they have their options: where one of a single value is given again, as by scripts that append
// to a line of flags, the last value counts.
void LastValueCounts(CLI::App& app);

// Given without a value it means `value`.
void MayBeBare(CLI::Option* option, const std::string& value);
// Not in --help.
void Hide(CLI::Option* option);
void Require(CLI::Option* option);
// Where the option is not given, this variable of the environment gives its value.
void FromEnvironment(CLI::App& command, const std::string& option, const std::string& variable);
// Bad usage without `other`.
void Needs(CLI::Option* option, CLI::Option* other);
// Times that it was given; for OnCommand.
size_t Count(const CLI::Option* option);

}  // namespace pith::cli

#endif  // PITH_CLI_OPTIONS_H_
