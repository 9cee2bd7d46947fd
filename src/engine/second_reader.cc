#include "engine/second_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/entry_counts.h"
#include "policy/act/residue.h"

namespace pith {
namespace {

// Fewer tokens of a chunk than this are not worth a pass.
constexpr int kLeastChunk = 16;
// Queries of each kv head to which entries can be fitted at all.
constexpr int kLeastRows = 64;

// Chunks end where pages do, so that their entries are pages of their own.
int EndOfChunk(int from, int chunk, int num_tokens) {
  if (from + chunk >= num_tokens) return num_tokens;
  const int end = (from + chunk) / kPageEntries * kPageEntries;
  return end > from ? end : from + chunk;
}

// Short passes begin often, and what begins one is looked at by what stands before: those tokens are repeated, too.
// The first one is better off without, and so is a whole prompt's (docs/tried.md).
void LeadIn(std::span<const int32_t> text, const RepeatPass& pass, int overlap, std::vector<int32_t>& tokens) {
  const auto from = text.begin() + pass.from;
  tokens.insert(tokens.end() - (pass.to - pass.from), from - std::min(overlap, pass.from), from);
}

// The text that stands for what will be asked: one token at least, and no more than positions allow.
std::vector<int32_t> GuideOf(const Sequence& source, const RepeatOptions& options) {
  const auto most = static_cast<size_t>(MostGuideTokens(source, options));
  if (!source.guide.empty()) return {source.guide.begin(), source.guide.begin() + static_cast<std::ptrdiff_t>(most)};
  const size_t count = std::min(source.tokens.size(), most);
  return {source.tokens.end() - static_cast<std::ptrdiff_t>(count), source.tokens.end()};
}

// run() -> its result; all that it takes is the recipe's time.
template <typename Run>
auto AsRecipesTime(EngineTimes& times, const Run& run) {
  const EngineTimes before = times;
  const Clock::time_point began = Clock::now();
  auto result = run();
  const double seconds = SecondsSince(began);
  times = {.attention = before.attention, .policy = before.policy + seconds, .total = before.total + seconds};
  return result;
}

}  // namespace

int MostGuideTokens(const Sequence& sequence, const RepeatOptions& repeat) {
  const int tokens = sequence.guide.empty() ? repeat.chunk : static_cast<int>(sequence.guide.size());
  const int room = sequence.setup->keep_entries > 0 ? tokens : sequence.most_entries() / 4;
  return std::min(tokens, std::max(room, 16));
}

Result<int> SecondReader::ChunkOf(const Sequence& sequence, const ActiveRecipe& active, int overhead) const {
  const ModelInfo& info = *core_.info;
  // A conversation goes on where the model's training ended.
  const int known = sequence.setup->compresses_as_it_goes() ? 0 : info.trained_ctx;
  const int trained = std::max(known, sequence.next_position);
  const int last = info.max_positions > 0 ? info.max_positions : trained > sequence.next_position ? trained : INT32_MAX;
  const int chunk = std::min(active.recipe.policy->repeat()->chunk, last - sequence.next_position - overhead);
  if (chunk >= kLeastChunk) return chunk;
  return Unsupported(fmt::format("{} tokens leave no positions of the model's {} to read them again, which {} needs",
                                 sequence.next_position, last, active.recipe.text));
}

Result<bool> SecondReader::BeginPass(Sequence& source, SecondReading& reading) {
  const RepeatOptions& options = *reading.recipe.policy->repeat();
  const bool is_first = reading.pass.to == 0;
  if (options.guided) {
    if (!is_first) return false;
    reading.pass = {.to = source.next_position, .start = source.next_position, .guided = true};
    reading.tokens = GuideOf(source, options);
    const int last = core_.info->max_positions;
    const int room = last > 0 ? std::max(last - source.next_position, 1) : INT32_MAX;
    reading.tokens.resize(std::min(reading.tokens.size(), static_cast<size_t>(room)));
  } else {
    const int begin = std::max(reading.prefix, reading.part.from),
              end = std::min(source.next_position, reading.part.to);
    const int from = is_first ? begin : reading.pass.to;
    if (from >= end) return false;
    PITH_ASSIGN_OR_RETURN(const RepeatPrompt* const prompt, Prompt());
    reading.pass = {
        .prefix_end = reading.prefix,
        .from = from,
        .to = reading.in_passing ? std::min(from + reading.chunk, end) : EndOfChunk(from, reading.chunk, end),
        .start = source.next_position,
        .first_token = reading.columns->references.num_tokens(),
        .whole = options.whole};
    reading.tokens = prompt->Tokens(source.tokens, reading.pass, options.overlap, from == reading.prefix);
    if (reading.in_passing && from != reading.prefix)
      LeadIn(source.tokens, reading.pass, options.overlap, reading.tokens);
  }
  reading.num_read = 0;
  if (reading.in_passing) core_.flight.LetGo();
  PITH_ASSIGN_OR_RETURN(reading.fork, PassFork::Make(core_, source, reading.in_passing));
  return true;
}

Status SecondReader::ReadPass(SecondReading& reading, int rows) {
  if (cancelled_.load(std::memory_order_relaxed)) return Cancelled("stopped while reading the prompt again");
  const std::span<const int32_t> left = std::span(reading.tokens).subspan(reading.num_read);
  const size_t count = std::min({left.size(), static_cast<size_t>(core_.plan.block_tokens), static_cast<size_t>(rows)});
  const RepeatObserver observer{*reading.recipe.policy, reading.pass, *reading.columns};
  PITH_RETURN_IF_ERROR(runner_.RunPass(reading.fork->sequence(), left.first(count), observer));
  reading.num_read += count;
  if (reading.num_read < reading.tokens.size()) return {};
  reading.columns->references.Count(static_cast<int>(reading.tokens.size()));
  reading.fork.reset();
  return {};
}

Status SecondReader::ReserveReferences(const Sequence& source, const ActiveRecipe& active, const EntryGuard& part,
                                       int overhead, SecondReading& reading) const {
  const ResidueOptions* const residue = active.recipe.policy->residue();
  if (residue == nullptr) return {};
  const int chunk = reading.chunk;
  const int context = std::min(source.next_position, part.to) - std::max(reading.prefix, part.from);
  const int passes = (context + chunk - 1) / chunk;
  ReferenceQueries& references = reading.columns->references;
  if (reading.in_passing) {
    const int most = overhead + active.recipe.policy->repeat()->overlap;
    ReserveBlockReferences(core_, source, *active.recipe.policy, context + passes * most, references);
    return {};
  }
  const std::optional<ReferenceShape> shape = ReferenceShapeOf(core_, source);
  if (!shape) {
    return references.Reserve(0, 0, std::vector<size_t>(static_cast<size_t>(core_.layers.count()), 0), nullptr);
  }
  // The pass's fork copies last pages and has tables of its own.
  const int pass_tokens = std::min(chunk, context) + overhead + 3 * kPageEntries;
  const size_t used = source.account->used_bytes() + BytesToExtend(core_, source, pass_tokens);
  const size_t free = source.ceiling_bytes - std::min(source.ceiling_bytes, used);
  const size_t most = free / std::max<size_t>(shape->token_bytes, 1);
  const int tokens = std::min(residue->rows / shape->group, static_cast<int>(std::min(most, size_t{INT32_MAX})));
  const int least = (kLeastRows + shape->group - 1) / shape->group;
  return references.Reserve(context + passes * overhead, std::max(tokens, least), shape->widths, source.account);
}

Result<const RepeatPrompt*> SecondReader::Prompt() {
  if (!prompt_) {
    PITH_ASSIGN_OR_RETURN(prompt_, RepeatPrompt::Make(*core_.model));
  }
  return &*prompt_;
}

std::optional<int> SecondReader::BlockChunk(const RepeatOptions& options) {
  const Result<const RepeatPrompt*> prompt = Prompt();
  if (!prompt) return std::nullopt;
  const int overhead = (*prompt)->overhead(options.overlap) + options.overlap;
  const int chunk = std::min(options.chunk, core_.plan.block_tokens - overhead);
  return chunk >= kLeastChunk ? std::optional(chunk) : std::nullopt;
}

Status SecondReader::Begin(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, bool in_passing) {
  const Policy& policy = *active.recipe.policy;
  const RepeatOptions& options = *policy.repeat();
  if (source.tokens.size() != static_cast<size_t>(source.next_position)) {
    return Unsupported(
        fmt::format("{} reads the prompt again, and the tokens of this sequence are not known", active.recipe.text));
  }
  source.repeat.reset();
  auto reading = std::make_shared<SecondReading>();
  reading->recipe = active.recipe;
  reading->part = part;
  reading->prefix = PrefixOf(source, active.recipe);
  PITH_ASSIGN_OR_RETURN(const RepeatPrompt* const prompt, Prompt());
  const int overhead = prompt->overhead(options.overlap);
  PITH_ASSIGN_OR_RETURN(reading->chunk, ChunkOf(source, active, overhead));
  reading->in_passing = in_passing;
  if (in_passing) {
    const std::optional<int> most = BlockChunk(options);
    if (!most)
      return Unsupported(fmt::format("blocks of {} tokens are too short to be repeated", core_.plan.block_tokens));
    const int count = std::max(source.next_position - std::max(reading->prefix, part.from), 1);
    const int chunk = std::min(*most, reading->chunk), num_passes = (count + chunk - 1) / chunk;
    reading->chunk = (count + num_passes - 1) / num_passes;
  }
  std::vector<std::vector<std::pair<int, int>>> entries;
  for (const int layer : core_.layers.layers()) {
    std::vector<std::pair<int, int>>& of_layer = entries.emplace_back();
    for (const HeadCache& head : std::as_const(*core_.cache).heads(source.cache_id, layer)) {
      of_layer.emplace_back(in_passing ? EntriesBefore(head, part.from) : 0, head.num_entries());
    }
  }
  PITH_ASSIGN_OR_RETURN(reading->columns,
                        RepeatColumns::Create(source.account, policy, reading->prefix, {part.from, part.to}, entries));
  PITH_RETURN_IF_ERROR(ReserveReferences(source, active, part, overhead, *reading));
  source.reading = std::move(reading);
  return {};
}

Result<bool> SecondReader::Go(Sequence& source, int rows) {
  SecondReading& reading = *source.reading;
  while (rows > 0) {
    if (reading.fork == nullptr) {
      PITH_ASSIGN_OR_RETURN(const bool has_begun, BeginPass(source, reading));
      if (!has_begun) return true;
    }
    const size_t before = reading.num_read, left = reading.tokens.size() - before;
    PITH_RETURN_IF_ERROR(ReadPass(reading, rows));
    rows -= static_cast<int>(reading.fork != nullptr ? reading.num_read - before : left);
  }
  return false;
}

Error SecondReader::NoRoom(const Sequence& source, const ActiveRecipe& active, int chunk) const {
  return {ErrorCode::kOutOfBudget,
          fmt::format("the KV budget of {:.2f} MiB holds the prompt but not its second reading in chunks of {} tokens, "
                      "which {} needs",
                      static_cast<double>(core_.plan.budget_bytes) / (1 << 20),
                      std::min(chunk, source.next_position - PrefixOf(source, active.recipe)), active.recipe.text)};
}

Result<bool> SecondReader::ReadOn(Sequence& source, const ActiveRecipe& active, const EntryGuard& part, int rows) {
  return AsRecipesTime(core_.times, [&]() -> Result<bool> {
    const Policy& policy = *active.recipe.policy;
    if (source.repeat && source.repeat->Serves(policy, PrefixOf(source, active.recipe), {part.from, part.to})) {
      return true;
    }
    const auto is_it = [&](const SecondReading& reading) {
      return reading.recipe.policy == active.recipe.policy && reading.part == part;
    };
    if (source.reading != nullptr && !is_it(*source.reading)) source.reading.reset();
    const Status begun = source.reading == nullptr ? Begin(source, active, part, false) : Status();
    const Result<bool> done = begun ? Go(source, rows) : Result<bool>(tl::unexpected<Error>(begun.error()));
    if (!done) {
      const int chunk = source.reading != nullptr ? source.reading->chunk : policy.repeat()->chunk;
      source.reading.reset();
      if (done.error().code != ErrorCode::kOutOfBudget) return done;
      return tl::unexpected<Error>(NoRoom(source, active, chunk));
    }
    if (!*done) return false;
    source.repeat = source.reading->columns;
    source.reading.reset();
    return true;
  });
}

Status SecondReader::ReadBlock(Sequence& source, int32_t from) {
  runner_.KeepLogits();
  return AsRecipesTime(core_.times, [&]() -> Status {
    const ActiveRecipe& active = source.setup->active.front();
    const EntryGuard part{.num_sinks = active.recipe.num_running_sinks, .from = from, .to = source.next_position};
    const Status begun = Begin(source, active, part, true);
    const Result<bool> done = begun ? Go(source, INT32_MAX) : Result<bool>(tl::unexpected<Error>(begun.error()));
    if (done) source.repeat = source.reading->columns;
    source.reading.reset();
    return done ? Status() : Status(tl::unexpected<Error>(done.error()));
  });
}

Status SecondReader::ReadAll(Sequence& source, const ActiveRecipe& active, const EntryGuard& part) {
  // Blocks end the validity of logits, and the source's may still be wanted.
  runner_.KeepLogits();
  for (;;) {
    PITH_ASSIGN_OR_RETURN(const bool is_done, ReadOn(source, active, part, INT32_MAX));
    if (is_done) return {};
  }
}

}  // namespace pith
