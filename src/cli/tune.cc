// pith tune: what recipes and models take from a file, found on the user's own model and tasks.
#include "cli/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "cli/read_tasks.h"
#include "engine/full_cache.h"

namespace pith::cli {
namespace {

constexpr const char* kTuneExamples = R"(
budgets   how many entries each layer keeps, by evolution on tasks (EvolKV): groups of neighbouring layers are searched
          one after the other, from the first on. Writes what alloc=file reads. The first --samples tasks are searched
          on; on the others, which the search does not see, the result is compared with equal, random and pyramid-shaped
          budgets of the same sum.
recipe    which recipe loses least at each share of the bytes: candidates are judged on more and more of the first
          --samples tasks, the worse half of them goes after each step. What is left is judged on tasks that the search
          has not seen. Writes what --recipe auto:FILE chooses from.
share     which layers may read another layer's cache in place of one of their own (KVSharer): pairs of layers whose
          caches differ most are tried first, and stay where the model says nearly what it said. Writes what
          --share-layers reads.
sensitivity   how much the keys of each layer change when far tokens are hidden (EpiCache): a text is read whole, and
          again in blocks that see the first tokens and the end of the block before. Writes what alloc=epicache reads:
          layers whose keys change more keep more.
less   maps with which act=less makes attention add what recipes have dropped (LESS): a closed-form fit to queries and
          keys of a text, for as many --features as a state shall have. Trained maps are files of the same form.
delta  maps with which act=delta makes latents of entries (DeltaKV): the principal axes of what keys and values of a text
          differ by from the references nearest to them. Trained linear maps are files of the same form.

Tasks are those of "pith eval". The same seed, tasks and options give the same result; --resume keeps every answer of a
search for budgets in a file, so that a stopped one goes on where it was.

Examples:
  pith tune recipe --tasks mine.jsonl --output recipes.json --progress
  pith run --recipe auto:recipes.json --kv-budget 64MiB -f book.txt -p "Who did it?"
  pith tune recipe --compress after --candidates "pith;kvzip format=q4;snapkv format=q4" --keep 0.1 --output r.json
  pith tune budgets --recipe snapkv --entries 64 --output budgets.json --progress
  pith tune budgets --tasks tasks.jsonl --samples 12 --iterations 15 --output budgets.json --resume search.jsonl
  pith run --recipe "snapkv alloc=file:budgets.json" --compress after -f book.txt -p "Who did it?"
  pith tune share --layers 4 --output share.json
  pith run --share-layers share.json -p "Why is the sky blue?"
  pith tune sensitivity -f book.txt --tokens 16384 --output sensitivity.json
  pith tune less -f book.txt --output less.gguf
  pith run --recipe "snapkv act=less:less.gguf" --kv-budget 20% -f book.txt -p "Who did it?"
  pith tune delta -f book.txt --latent 0.25 --output delta.gguf
  pith run --recipe deltakv:path=delta.gguf --kv-budget 60% -f book.txt -p "Who did it?"
  pith chat --recipe "epicache alloc=epicache:sensitivity.json" --kv-budget 16MiB
)";

Status CheckTune(const TuneFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  if (flags.output_file.empty()) return InvalidArgument("--output is missing: the file that the result goes to");
  if (!flags.lengths.empty()) PITH_RETURN_IF_ERROR(ParseIntegers(flags.lengths, "--lengths", 1, 100'000'000));
  PITH_RETURN_IF_ERROR(CheckOutput(flags.output_file));
  if (flags.what == "sensitivity") return {};
  if (flags.what == "less") {
    if (flags.tokens == 0 || flags.tokens >= 256) return {};
    return InvalidArgument("tune less takes a text of at least 256 --tokens");
  }
  if (flags.what == "delta") {
    if (!(flags.delta.latent > 0 && flags.delta.latent <= 1)) {
      return InvalidArgument("--latent is a share of the numbers of a key and a value, above 0 and at most 1");
    }
    if (flags.tokens == 0 || flags.tokens >= 256) return {};
    return InvalidArgument("tune delta takes a text of at least 256 --tokens");
  }
  if (flags.what == "budgets") return CheckTuneBudgets(flags);
  if (flags.what == "recipe") return CheckTuneRecipe(flags);
  if (flags.tokens != 0 && (flags.tokens < 8 || flags.tokens > 4096))
    return InvalidArgument("tune share takes texts of 8 to 4096 --tokens");
  if (!flags.model.share_layers.empty()) return InvalidArgument("a map is searched for a model without --share-layers");
  if (!flags.model.lora.empty() || !flags.model.lora_scaled.empty())
    return InvalidArgument("tune share takes no adapters");
  return {};
}

void AddRecipeFlags(CLI::App& command, TuneFlags& flags) {
  AddOption(command, "--keep", flags.keep, "recipe: shares of the full cache (default 0.5,0.2,0.1,0.05,0.02)", "F,...");
  AddOption(command, "--candidates", flags.candidates,
            "recipe: recipes that are tried (default: those of pith's choice)", "R;...");
  AddChoice(command, "--compress", flags.compress, {"block", "after"},
            "recipe: evict after every block, as a chat and a server must (default), or once after the whole prompt",
            "WHEN");
}

void AddBudgetFlags(CLI::App& command, TuneFlags& flags) {
  AddOption(command, "--recipe", flags.recipe, "budgets: of this recipe (default snapkv)", "R");
  AddNumber(command, "--samples", flags.samples, 1, 10000, "budgets, recipe: tasks that the search sees (default 8)",
            "N");
  AddNumber(command, "--held-out", flags.held_out, 0, 10000,
            "budgets, recipe: tasks after those on which the result is compared (default 8)", "N");
  AddNumber(command, "--entries", flags.entries, 1, 1 << 20, "budgets: entries of each head, on average (default 64)",
            "N");
  AddNumber(command, "--group", flags.group, 1, 64,
            "budgets: neighbouring layers that are searched together (default 8)", "N");
  AddNumber(command, "--iterations", flags.iterations, 1, 10000, "budgets: generations of each group (default 8)", "N");
  AddNumber(command, "--least", flags.least, 0, 1 << 20,
            "budgets: least entries of a layer (default: an eighth of --entries)", "N");
  AddNumber(command, "--most", flags.most, 0, 1 << 24,
            "budgets: most entries of a layer (default: eight times --entries)", "N");
  AddChoice(command, "--objective", flags.objective, {"kl", "nll", "accuracy"},
            "budgets: kl (default): distance from the full cache; nll: likelihood of the targets; accuracy: share of "
            "tasks whose target is the likeliest",
            "WHAT");
  AddOption(command, "--resume", flags.resume_file,
            "budgets, recipe: add each answer to this file, and do not ask for those that it holds", "FILE");
}

void AddShareFlags(CLI::App& command, TuneFlags& flags) {
  AddNumber(command, "--layers", flags.layers, 1, 10000, "share: layers that lose their cache (default 4)", "N");
  AddOption(command, "--threshold", flags.threshold,
            "share: how close the model must stay, as a cosine of its logits (default 0.5)", "F");
  AddChoice(command, "--order", flags.order, {"dissimilar", "similar", "random"},
            "share: which pairs are tried first (default dissimilar)", "WHICH");
  AddNumber(command, "--texts", flags.texts, 1, 10000, "share: texts that it is judged on (default 8)", "N");
}

void AddSensitivityFlags(CLI::App& command, TuneFlags& flags) {
  AddOption(command, "-f,--file", flags.text_file,
            "sensitivity, less, delta: the text (default: that of pith's own tasks)", "FILE");
  AddNumber(command, "--block", flags.sensitivity.block, 2, 1 << 24,
            "sensitivity: tokens that see one another (default 4096)", "N");
  AddNumber(command, "--first", flags.sensitivity.first, 0, 4096, "sensitivity: tokens that all see (default 128)",
            "N");
  AddNumber(command, "--previous", flags.sensitivity.previous, 0, 1 << 24,
            "sensitivity: tokens of the block before that are seen, too (default 2048)", "N");
  AddNumber(command, "--window", flags.sensitivity.window, 1, 1 << 20,
            "sensitivity: tokens whose keys are compared as one vector (default 100)", "N");
}

void AddLessFlags(CLI::App& command, TuneFlags& flags) {
  AddNumber(command, "--features", flags.less.rank, 1, kernels::kMostFeatures,
            "less: of each map; a state takes so many times the bytes of half an f32 entry (default 8)", "N");
  AddNumber(command, "--hidden", flags.less.hidden, 1, kernels::kMostHiddenUnits,
            "less: hidden units of each map (default 64)", "N");
}

void AddDeltaFlags(CLI::App& command, TuneFlags& flags) {
  AddOption(command, "--latent", flags.delta.latent,
            "delta: numbers of a latent, over those of a key and a value (default 0.168)", "F");
  AddNumber(command, "--every", flags.delta.every, 2, 4096, "delta: tokens from one reference to the next (default 10)",
            "N");
  AddNumber(command, "--references", flags.delta.references, 1, 8, "delta: references of a latent (default 4)", "N");
}

}  // namespace

Result<std::vector<Task>> ReadTuneTasks(const TuneFlags& flags, std::string& fingerprint) {
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ReadTasks(flags.tasks, flags.lengths, fingerprint));
  if (tasks.size() < static_cast<size_t>(flags.samples)) {
    return InvalidArgument(
        fmt::format("there are {} tasks, fewer than the {} of --samples", tasks.size(), flags.samples));
  }
  tasks.resize(std::min(tasks.size(), static_cast<size_t>(flags.samples + flags.held_out)));
  return tasks;
}

Result<TuneTasks> SplitTuneTasks(const TuneFlags& flags, const HostModel& model, std::vector<Task> tasks) {
  const int ctx = ContextOf(model.info(), flags.ctx);
  TuneTasks split;
  for (Task& task : tasks) {
    PITH_ASSIGN_OR_RETURN(JudgedTask one, TokenizeTask(model, std::move(task), false));
    if (one.num_tokens() > static_cast<size_t>(ctx)) {
      return InvalidArgument(
          fmt::format("task {} has {} tokens, and the context holds {}: choose shorter ones with "
                      "--lengths, or give a larger context with -c",
                      one.task.id, one.num_tokens(), ctx));
    }
    const bool searched = split.samples.size() < static_cast<size_t>(flags.samples);
    (searched ? split.samples : split.held_out).push_back(std::move(one));
  }
  return split;
}

void AddTune(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<TuneFlags>();
  CLI::App* command =
      AddCommand(app, "tune", "Find what recipes take from files, on your model and tasks", kTuneExamples);
  Require(AddChoice(
      *command, "what", flags->what, {"recipe", "budgets", "share", "sensitivity", "less", "delta"},
      "recipe: which loses least in so many bytes; budgets: entries of each layer; share: layers without "
      "a cache of their own; sensitivity: of each layer's keys; less: maps of queries and keys; delta: maps of "
      "keys and values",
      "WHAT"));
  AddOption(*command, "--output", flags->output_file, "Write the result here", "FILE");
  AddOption(*command, "--tasks", flags->tasks, "Tasks as JSON lines (default: a small set of pith's own)", "FILE");
  AddOption(*command, "--lengths", flags->lengths, "Only tasks of these lengths", "N,...");
  AddRecipeFlags(*command, *flags);
  AddBudgetFlags(*command, *flags);
  AddShareFlags(*command, *flags);
  AddSensitivityFlags(*command, *flags);
  AddLessFlags(*command, *flags);
  AddDeltaFlags(*command, *flags);
  AddNumber(*command, "--tokens", flags->tokens, 0, 1 << 24,
            "share: tokens of each text (default 64); sensitivity: of the text (default: as many as the model was "
            "trained for, up to 16384); less, delta: of the text (default 1024, 2048)",
            "N");
  AddNumber(*command, "-c,--ctx-size", flags->ctx, 0, 1 << 30,
            "Longest task in tokens (default, and 0: the model's trained context)", "N");
  AddOption(*command, "-s,--seed", flags->seed, "Seed of the search (default 42)", "SEED");
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckTune(*flags); };
    chosen.run = [flags] {
      if (flags->what == "sensitivity") return RunTuneSensitivity(*flags);
      if (flags->what == "less") return RunTuneLess(*flags);
      if (flags->what == "delta") return RunTuneDelta(*flags);
      if (flags->what == "recipe") return RunTuneRecipe(*flags);
      return flags->what == "share" ? RunTuneShare(*flags) : RunTuneBudgets(*flags);
    };
  });
}

}  // namespace pith::cli
