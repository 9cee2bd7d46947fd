#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <utility>

namespace pith::cli {
CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& help, const std::string& footer) {
  CLI::App* command = app.add_subcommand(name, help);
  command->footer(footer);
  return command;
}

void OnCommand(CLI::App& command, std::function<void()> then) {
  command.callback([&command, run = std::move(then)] {
    if (command.get_subcommands().empty()) run();
  });
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, std::string& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, float& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, double& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, int32_t& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, int64_t& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, uint64_t& value, const std::string& help,
                       const std::string& type) {
  return command.add_option(names, value, help)->type_name(type);
}

CLI::Option* AddOption(CLI::App& command, const std::string& names, std::vector<std::string>& values,
                       const std::string& help, const std::string& type) {
  return command.add_option(names, values, help)->type_name(type)->allow_extra_args(false);
}

CLI::Option* AddTuple(CLI::App& command, const std::string& names, std::vector<std::string>& values, int count,
                      const std::string& help, const std::string& type) {
  return command.add_option(names, values, help)->type_name(type)->type_size(count)->allow_extra_args(false);
}

CLI::Option* AddNumber(CLI::App& command, const std::string& names, int& value, int least, int greatest,
                       const std::string& help, const std::string& type) {
  return AddOption(command, names, value, help, type)->check(CLI::Range(least, greatest));
}

CLI::Option* AddChoice(CLI::App& command, const std::string& names, std::string& value,
                       const std::vector<std::string>& choices, const std::string& help, const std::string& type) {
  return AddOption(command, names, value, help, type)->check(CLI::IsMember(choices));
}

CLI::Option* AddFlag(CLI::App& command, const std::string& names, bool& value, const std::string& help) {
  return command.add_flag(names, value, help);
}

void LastValueCounts(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_positional() || option->get_expected_max() != 1) continue;
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  for (CLI::App* command : app.get_subcommands({})) LastValueCounts(*command);
}

void MayBeBare(CLI::Option* option, const std::string& value) { option->expected(0, 1)->default_str(value); }
void FromEnvironment(CLI::App& command, const std::string& option, const std::string& variable) {
  command.get_option(option)->envname(variable);
}
void Hide(CLI::Option* option) { option->group(""); }
void Require(CLI::Option* option) { option->required(); }
void Needs(CLI::Option* option, CLI::Option* other) { option->needs(other); }
size_t Count(const CLI::Option* option) { return option->count(); }

}  // namespace pith::cli
