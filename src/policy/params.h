// Declared parameters of stages: name, default, range. Parser, help text and `pith recipes` follow
// from the declaration.
#ifndef PITH_POLICY_PARAMS_H_
#define PITH_POLICY_PARAMS_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith {

struct ParamSpec {
  enum class Kind : uint8_t { kInt, kReal, kChoice, kText };

  std::string_view name;
  Kind kind = Kind::kReal;
  double initial = 0;
  double min = 0;
  double max = 0;
  std::string_view choices;  // kChoice: "mean|max"; the value is the index
  std::string_view help;
};

ParamSpec IntParam(std::string_view name, int initial, int min, int max, std::string_view help);
ParamSpec RealParam(std::string_view name, double initial, double min, double max, std::string_view help);
// The first choice is the default.
ParamSpec ChoiceParam(std::string_view name, std::string_view choices, std::string_view help);

// Any text without spaces and commas, such as a file's path; it has no default. A stage whose first
// parameter is a text takes it without the name: alloc=file:budgets.json
ParamSpec TextParam(std::string_view name, std::string_view help);

// "window=32 (1..4096), pooling=mean (mean|max)"
std::string DescribeParams(const std::vector<ParamSpec>& specs);

// Values for a stage's declared parameters.
class Params {
 public:
  Params() = default;
  explicit Params(const std::vector<ParamSpec>& specs);

  // kInvalidArgument with one sentence: not a number, out of range, no such choice. `owner` is the
  // stage or recipe as the user wrote it. The parameter must be declared.
  Status Set(std::string_view owner, std::string_view name, std::string_view text);

  double Real(std::string_view name) const;
  // Empty where the user gave none.
  const std::string& Word(std::string_view name) const;
  int Int(std::string_view name) const;
  // Index of the choice.
  int Choice(std::string_view name) const { return Int(name); }

  // As the parser would read it back: "0.25", "64", "max".
  std::string Text(std::string_view name) const;
  bool Has(std::string_view name) const;

 private:
  const ParamSpec& Spec(std::string_view name) const;

  std::vector<ParamSpec> specs_;
  std::map<std::string, double, std::less<>> values_;
  std::map<std::string, std::string, std::less<>> words_;
};

}  // namespace pith

#endif  // PITH_POLICY_PARAMS_H_
