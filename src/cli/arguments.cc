#include "cli/arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>

#include <CLI/CLI.hpp>

#include "base/escaped.h"
#include "cli/idle_options.h"
#include "cli/terminal.h"
#include "policy/words.h"

namespace pith::cli {
namespace {

constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
    {"-ub", "--ubatch-size"},
    {"-ngl", "--gpu-layers"},
    {"-ctk", "--cache-type-k"},
    {"-ctv", "--cache-type-v"},
    {"-hf", "--hf-repo"},
    {"-hfr", "--hf-repo"},
    {"-fa", "--flash-attn"},
    {"-tb", "--threads-batch"},
    {"-np", "--parallel"},
    {"-sys", "--system"},
    {"-sysf", "--system-prompt-file"},
    {"-l", "--logit-bias"},
    {"-jf", "--json-schema-file"},
    {"-no-cnv", "--raw"},
    {"--no-conversation", "--raw"},
    {"--temperature", "--temp"},
    {"-to", "--timeout"},
    {"-st", "--single-turn"},
};

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Without what the parser appends of the values it allows.
std::string TypeOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type.substr(0, type.find(':'));
}

bool TakesText(const CLI::Option& option) {
  return option.check_lname("prompt") || option.check_lname("system") || option.check_lname("system-prompt");
}

bool TakesNumber(const CLI::Option& option) {
  constexpr std::string_view kTypes[] = {"N", "K", "SEED", "T", "P", "F", "SHARE"};
  return std::ranges::find(kTypes, TypeOf(option)) != std::ranges::end(kTypes);
}

// "007" -> "7", for parsers that know octal. Empty: no decimal number.
std::string Decimal(std::string_view text) {
  std::string_view rest = text;
  const bool minus = rest.starts_with('-');
  if (minus || rest.starts_with('+')) rest.remove_prefix(1);
  const auto take_digits = [&rest] {
    size_t count = 0;
    while (count < rest.size() && IsDigit(rest[count])) ++count;
    const std::string_view digits = rest.substr(0, count);
    rest.remove_prefix(count);
    return digits;
  };
  std::string_view whole = take_digits();
  const bool has_whole = !whole.empty();
  while (whole.size() > 1 && whole.front() == '0') whole.remove_prefix(1);
  std::string number = (minus ? "-" : "") + std::string(has_whole ? whole : "0");
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    const std::string_view fraction = take_digits();
    if (!has_whole && fraction.empty()) return {};
    number += "." + std::string(fraction.empty() ? "0" : fraction);
  } else if (!has_whole) {
    return {};
  }
  if (rest.starts_with('e') || rest.starts_with('E')) {
    rest.remove_prefix(1);
    number += "e";
    if (rest.starts_with('-') || rest.starts_with('+')) {
      number += rest.front();
      rest.remove_prefix(1);
    }
    const std::string_view exponent = take_digits();
    if (exponent.empty()) return {};
    number += exponent;
  }
  return rest.empty() ? number : std::string();
}

const CLI::App* FindCommand(const CLI::App& app, const std::string& name) {
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == name) return command;
  }
  return nullptr;
}

std::string Joined(int argc, const char* const* argv) {
  std::string text;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool plain = !argument.empty() && argument.find_first_not_of(
                                                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                "0123456789-_./=,:%+") == std::string::npos;
    text += plain ? " " + argument : " '" + Escaped(argument, 200) + "'";
  }
  return text;
}

// Of arguments that name no command.
tl::unexpected<Error> NoCommand(const CLI::App& app, int argc, const char* const* argv) {
  const std::string first = argv[1];
  if (first.starts_with('-')) {
    return InvalidArgument(fmt::format("say first what to do, such as \"pith run{}\"; \"pith help\" lists the commands",
                                       Joined(argc, argv)));
  }
  if (first.ends_with(".gguf")) {
    return InvalidArgument(
        fmt::format("say what to do with {}, such as \"pith chat -m {}\" or \"pith run -m {} -p TEXT\"",
                    Escaped(first, 200), Escaped(first, 200), Escaped(first, 200)));
  }
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return InvalidArgument(fmt::format("there is no command \"{}\"; {}choose one of {}", Escaped(first),
                                     MayBeMeant(first, names, ", or "), fmt::join(names, ", ")));
}

class Reader {
 public:
  Reader(const CLI::App& command, int argc, const char* const* argv)
      : command_(&command), name_(command.get_name()), arguments_{name_} {
    // "sim train": a command of a command.
    const CLI::App* inner = argc > 2 ? FindCommand(command, argv[2]) : nullptr;
    if (inner != nullptr) {
      command_ = inner;
      arguments_.push_back(inner->get_name());
      name_ += " " + inner->get_name();
    }
    for (int i = inner != nullptr ? 3 : 2; i < argc; ++i) given_.emplace_back(argv[i]);
  }

  Result<std::vector<std::string>> Read() {
    escapes_ = std::ranges::any_of(given_, [](const std::string& a) { return a == "-e" || a == "--escape"; });
    while (at_ < given_.size()) {
      const std::string argument = given_[at_++];
      if (argument.empty()) return InvalidArgument("an empty argument means nothing");
      if (argument == "--") {
        arguments_.insert(arguments_.end(), given_.begin() + static_cast<std::ptrdiff_t>(at_) - 1, given_.end());
        break;
      }
      PITH_RETURN_IF_ERROR(ReadOne(argument));
    }
    return std::move(arguments_);
  }

 private:
  Status ReadOne(const std::string& argument) {
    const bool is_name = argument.size() > 1 && argument[0] == '-' && (argument[1] == '-' || IsLetter(argument[1]));
    if (!is_name) {
      arguments_.push_back(argument);
      return {};
    }
    const size_t equals = argument.find('=');
    std::string name = argument.substr(0, equals), glued;
    bool has_glued = equals != std::string::npos;
    if (has_glued) glued = argument.substr(equals + 1);
    for (const auto& [from, to] : kLongNames) {
      if (name == from) name = to;
    }
    if (command_->get_option_no_throw(name) == nullptr) {
      if (const IdleOption* idle = TakesLlamaCppsOptions() ? FindIdleOption(name) : nullptr)
        return PassOver(*idle, has_glued);
    }
    if (name[1] != '-' && name.size() > 2) {  // -n5, but not -xyz
      if (IsLetter(name[2]) || name[2] == '-') return Unknown(argument);
      glued = argument.substr(2);
      has_glued = true;
      name.resize(2);
    }
    const CLI::Option* option = command_->get_option_no_throw(name);
    if (option == nullptr) return Unknown(argument);
    arguments_.push_back(name);
    if (option->get_items_expected_max() == 0) {  // a flag
      if (has_glued) return InvalidArgument(fmt::format("{} takes no value", name));
      return {};
    }
    const auto wanted = static_cast<size_t>(option->get_items_expected_min());
    if (has_glued) PITH_RETURN_IF_ERROR(AddValue(*option, name, std::move(glued)));
    // The parser says which are missing.
    for (size_t i = has_glued ? 1 : 0; i < wanted && at_ < given_.size(); ++i) {
      PITH_RETURN_IF_ERROR(AddValue(*option, name, given_[at_++]));
    }
    return {};
  }

  Status AddValue(const CLI::Option& option, const std::string& name, std::string value) {
    const bool text = TakesText(option);
    if (value.empty() && !text) return InvalidArgument(fmt::format("{} has an empty value", name));
    if (text && escapes_) value = Unescape(value);
    if (TakesNumber(option)) {
      std::string number = Decimal(value);
      if (number.empty())
        return InvalidArgument(fmt::format("{} takes a decimal number, not \"{}\"", name, Escaped(value)));
      value = std::move(number);
    }
    arguments_.push_back(std::move(value));
    return {};
  }

  bool TakesLlamaCppsOptions() const { return name_ == "run" || name_ == "chat" || name_ == "serve"; }

  Status PassOver(const IdleOption& option, bool has_glued) {
    if (has_glued && !option.takes_value) return InvalidArgument(fmt::format("{} takes no value", option.name));
    if (option.takes_value && !has_glued) {
      if (at_ == given_.size()) return InvalidArgument(fmt::format("{} needs a value", option.name));
      ++at_;
    }
    if (!option.why.empty()) Note("pith: {}, so that {} changes nothing.\n", option.why, option.name);
    return {};
  }

  tl::unexpected<Error> Unknown(const std::string& argument) const {
    std::vector<std::string> names;
    for (const CLI::Option* option : command_->get_options()) {
      if (option->get_group().empty()) continue;  // hidden
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
    const std::string name = argument.substr(0, argument.find('='));
    std::string hint = name.starts_with("--") ? MayBeMeant(name, names, "") : "";
    if (hint.empty()) hint = fmt::format("\"pith {} --help\" lists them", name_);
    return InvalidArgument(fmt::format("pith {} has no option {}; {}", name_, Escaped(argument), hint));
  }

  const CLI::App* command_;
  std::string name_;  // with that of the outer command
  std::vector<std::string> given_;
  size_t at_ = 0;
  bool escapes_ = false;
  std::vector<std::string> arguments_;
};

}  // namespace

Result<std::vector<std::string>> ReadArguments(const CLI::App& app, int argc, const char* const* argv) {
  if (argc < 2) return std::vector<std::string>{"--help"};
  const std::string first = argv[1];
  if (first == "help") {
    if (argc == 2) return std::vector<std::string>{"--help"};
    if (FindCommand(app, argv[2]) != nullptr) return std::vector<std::string>{argv[2], "--help"};
    return NoCommand(app, argc - 1, argv + 1);
  }
  if (first == "-h" || first == "--help" || first == "--version") return std::vector<std::string>{first};
  const CLI::App* command = FindCommand(app, first);
  if (command == nullptr) return NoCommand(app, argc, argv);
  return Reader(*command, argc, argv).Read();
}

std::string MayBeMeant(std::string_view word, const std::vector<std::string>& choices, std::string_view rest) {
  const std::string_view meant = NearMiss(word, {choices.begin(), choices.end()});
  return meant.empty() ? std::string() : fmt::format("{} may be what is meant{}", meant, rest);
}

std::string Unescape(std::string_view text) {
  constexpr std::pair<char, char> kCharacters[] = {{'n', '\n'}, {'r', '\r'},  {'t', '\t'},  {'a', '\a'},
                                                   {'b', '\b'}, {'f', '\f'},  {'v', '\v'},  {'e', '\x1b'},
                                                   {'0', '\0'}, {'\\', '\\'}, {'\'', '\''}, {'"', '"'}};
  const auto digit = [](char c) {
    const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return IsDigit(c) ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  };
  std::string out;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\' || at + 1 == text.size()) {
      out += text[at];
      continue;
    }
    const char next = text[at + 1];
    const auto* found = std::ranges::find(kCharacters, next, &std::pair<char, char>::first);
    if (found != std::ranges::end(kCharacters)) {
      out += found->second;
      ++at;
    } else if (next == 'x' && at + 3 < text.size() && digit(text[at + 2]) >= 0 && digit(text[at + 3]) >= 0) {
      out += static_cast<char>(16 * digit(text[at + 2]) + digit(text[at + 3]));
      at += 3;
    } else {
      out += text[at];
    }
  }
  return out;
}

}  // namespace pith::cli
