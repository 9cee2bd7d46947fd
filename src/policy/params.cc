#include "policy/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "base/parse_number.h"
#include "policy/untrusted.h"
#include "policy/words.h"

namespace pith {
namespace {

std::string Number(double value) {
  // %.17g would print 0.1 as 0.10000000000000001; fmt's shortest form reads back exactly.
  return fmt::format("{}", value);
}

}  // namespace

ParamSpec IntParam(std::string_view name, int initial, int min, int max, std::string_view help) {
  return {
      name, ParamSpec::Kind::kInt, static_cast<double>(initial), static_cast<double>(min), static_cast<double>(max), {},
      help};
}

ParamSpec RealParam(std::string_view name, double initial, double min, double max, std::string_view help) {
  return {name, ParamSpec::Kind::kReal, initial, min, max, {}, help};
}

ParamSpec ChoiceParam(std::string_view name, std::string_view choices, std::string_view help) {
  const auto num = static_cast<double>(SplitWords(choices, '|').size());
  return {name, ParamSpec::Kind::kChoice, 0, 0, num - 1, choices, help};
}

ParamSpec TextParam(std::string_view name, std::string_view help) {
  return {name, ParamSpec::Kind::kText, 0, 0, 0, {}, help};
}

std::string DescribeParams(const std::vector<ParamSpec>& specs) {
  std::string text;
  for (const ParamSpec& spec : specs) {
    if (!text.empty()) text += ", ";
    if (spec.kind == ParamSpec::Kind::kChoice) {
      text += fmt::format("{}={} ({})", spec.name, SplitWords(spec.choices, '|')[static_cast<size_t>(spec.initial)],
                          spec.choices);
    } else if (spec.kind == ParamSpec::Kind::kText) {
      text += fmt::format("{}=TEXT", spec.name);
    } else {
      text += fmt::format("{}={} ({}..{})", spec.name, Number(spec.initial), Number(spec.min), Number(spec.max));
    }
  }
  return text;
}

Params::Params(const std::vector<ParamSpec>& specs) : specs_(specs) {
  for (const ParamSpec& spec : specs) values_.emplace(spec.name, spec.initial);
}

const ParamSpec& Params::Spec(std::string_view name) const {
  const auto it = std::find_if(specs_.begin(), specs_.end(), [&](const ParamSpec& spec) { return spec.name == name; });
  PITH_CHECK(it != specs_.end());
  return *it;
}

bool Params::Has(std::string_view name) const { return values_.find(name) != values_.end(); }

Status Params::Set(std::string_view owner, std::string_view name, std::string_view text) {
  const ParamSpec& spec = Spec(name);
  double value = 0;
  if (spec.kind == ParamSpec::Kind::kText) {
    if (text.empty()) return InvalidArgument(fmt::format("{} of '{}' is empty", name, owner));
    if (RefusesFiles())
      return InvalidArgument(fmt::format("{} of '{}' names a file, which is not for you", name, owner));
    words_[std::string(name)] = std::string(text);
    return {};
  }
  if (spec.kind == ParamSpec::Kind::kChoice) {
    const std::vector<std::string_view> choices = SplitWords(spec.choices, '|');
    const auto it = std::find(choices.begin(), choices.end(), text);
    if (it == choices.end()) {
      return InvalidArgument(fmt::format("'{}' is no value for {} of '{}'; did you mean '{}'?", Printable(text), name,
                                         owner, Nearest(text, choices)));
    }
    value = static_cast<double>(it - choices.begin());
  } else {
    const std::optional<double> number = ParseNumber<double>(text);
    const bool whole = number && *number == std::floor(*number);
    if (!number || (spec.kind == ParamSpec::Kind::kInt && !whole)) {
      return InvalidArgument(fmt::format("{} of '{}' must be a {}number between {} and {}, not '{}'", name, owner,
                                         spec.kind == ParamSpec::Kind::kInt ? "whole " : "", Number(spec.min),
                                         Number(spec.max), Printable(text)));
    }
    if (*number < spec.min || *number > spec.max) {
      return InvalidArgument(fmt::format("{}={} of '{}' is out of range; the nearest valid value is {}", name,
                                         Printable(text), owner, Number(std::clamp(*number, spec.min, spec.max))));
    }
    value = *number;
  }
  values_.find(name)->second = value;
  return {};
}

double Params::Real(std::string_view name) const {
  const auto it = values_.find(name);
  PITH_CHECK(it != values_.end());
  return it->second;
}

const std::string& Params::Word(std::string_view name) const {
  static const std::string none;
  const auto it = words_.find(name);
  return it == words_.end() ? none : it->second;
}

int Params::Int(std::string_view name) const { return static_cast<int>(Real(name)); }

std::string Params::Text(std::string_view name) const {
  const ParamSpec& spec = Spec(name);
  if (spec.kind == ParamSpec::Kind::kChoice) {
    return std::string(SplitWords(spec.choices, '|')[static_cast<size_t>(Int(name))]);
  }
  if (spec.kind == ParamSpec::Kind::kText) return Word(name);
  return Number(Real(name));
}

}  // namespace pith
