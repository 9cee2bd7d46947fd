// pith tune: what recipes take from a file, found on the user's own model and texts.
#include <memory>

#include "cli/command.h"
#include "cli/tune_sensitivity.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
sensitivity   how much the keys of each layer change when far tokens are hidden (EpiCache): a text is read whole, and
              again in blocks that see the first tokens and the end of the block before. Writes what alloc=epicache reads:
              layers whose keys change more keep more.

Examples:
  pith tune sensitivity --output layers.json
  pith tune sensitivity -m model.gguf -f book.txt --tokens 16384 --output layers.json
  pith tune sensitivity --tokens 4096 --block 1024 --previous 512 --output layers.json    # a model of a short context
  pith chat --recipe "epicache alloc=epicache:layers.json" --kv-budget 16MiB
)";

}  // namespace

void AddTune(CLI::App& app, Command& chosen) {
  auto what = std::make_shared<std::string>();
  auto flags = std::make_shared<SensitivityFlags>();
  CLI::App* command = AddCommand(app, "tune", "Find what recipes take from files, on your model and texts", kExamples);
  Require(AddChoice(*command, "what", *what, {"sensitivity"}, "sensitivity: of each layer's keys", "WHAT"));
  AddOption(*command, "--output", flags->output_file, "Write the result here", "FILE");
  AddSensitivityFlags(*command, *flags);
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [what, flags, &chosen] {
    chosen.check = [flags] { return CheckSensitivity(*flags); };
    chosen.run = [what, flags] { return RunSensitivity(*flags); };
  });
}

}  // namespace pith::cli
