#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "policy/policy.h"
#include "policy/storage.h"

namespace pith {
namespace {

// "arXiv:2404.14469" as a link.
std::string PaperLink(const std::string& paper) {
  constexpr std::string_view kPrefix = "arXiv:";
  if (paper.rfind(kPrefix, 0) != 0) return paper;
  return fmt::format("[{}](https://arxiv.org/abs/{})", paper.substr(kPrefix.size()), paper.substr(kPrefix.size()));
}

// A vertical line would end the cell of a table.
std::string Cell(const std::string& text) {
  std::string cell;
  for (char c : text) cell += c == '|' ? std::string("\\|") : std::string(1, c);
  return cell;
}

constexpr std::string_view kIntroduction = R"(# Recipes

Generated from the registry: after a change, `pith recipes --markdown > docs/recipes/README.md`. `pith recipes --long` prints the same.

A recipe decides which entries of the KV cache stay. It is text in one of three forms:

- a name: `snapkv`
- a name with parameters: `snapkv:window=64,pool=7`
- stages, alone or beside a name: `score=snapkv:window=64 agg=defensive alloc=ada:alpha=0.2 act=drop`, `snapkv:window=64 alloc=ada`

A stage beside a name takes the place of the one of its kind; modifiers add up, and `mod=none` removes those of the name.
`prefill=criti` beside any of them skips attention work while the prompt is read. `turns=flowkv` or `turns=epicache` beside
any of them says what happens between the turns of a conversation (`pith chat`, the library's conversations, the server).
`sinks=N`, as a word or as a parameter of the name, pins the first N tokens of the sequence.
`format=q4` stores what stays in that format: FORMATS, or two of them for keys and values (`format=q8/q4`),
or in error-bounded codes (`format=comp:ek=0.06,ev=0.15`);
a share to keep is then a share of f16 bytes, see [formats.md](../formats.md). `format=auto:0.6` takes f16 where all entries
fit, else the most precise of AUTO that holds 60% of them (`format=auto`: 95%). Missing stages are `agg=mean`,
`alloc=uniform` and `act=drop`.

`act=prune` beside any recipe stores fewer channels of the keys that stay, once the prompt is whole; its share is one of f16
bytes, too.

`act=less:FILE` beside any recipe lets what is dropped go on contributing, through a state of constant size; `pith tune less` makes
such files ([tuning.md](../tuning.md)).

`kvzip or snapkv` is two recipes: the second works where the first cannot since the prompt is not whole, block by block and
while decoding. `pith`, the default, is two such.

Each recipe's cost is what it adds to attention: n entries of a head, w queries of the window, d the head size, H query heads,
B the budget. `kvzip` and its relatives read a prompt again once it is whole: they need a budget that holds it and the chunk
that is being repeated, compress once (`pith run --keep 0.3`, `pith eval`), and do not evict by blocks or while decoding; so does `act=prune`.
`kvzip:read=blocks` reads each block again before the next one that finds no room, and goes on while decoding;
`kvzip:read=echo` lets a block's own queries stand for a repetition's, and so reads again little but what is decoded. A recipe
with `alloc=pyramid` and the like decides once all layers have seen a block. With `alloc=cake` and `alloc=global` it goes in
a cascade: each layer is scored right after its own attention, and whenever an eighth of the layers hold the block, the layers
so far share what those to come leave of the total. From an empty cache that ends with what one decision over all layers would
keep; in later blocks the layers to come still hold what the last block left them, so that a layer that has gained much may end
with less. Entries in few bits (`format=q4`), `act=merge` and single tokens wait for all layers.
)";

// Those that format=auto takes where f16 does not hold everything.
std::string AutoFormats() {
  std::string names;
  for (const PageFormat format : kAutoFormats) {
    if (format == kAutoFormats.front()) continue;
    names += names.empty() ? "" : format == kAutoFormats.back() ? " and " : ", ";
    names += format.Name();
  }
  return names;
}

}  // namespace

std::string RecipesMarkdown() {
  std::string text(kIntroduction);
  for (const auto& [word, names] :
       {std::pair("FORMATS", ListKvFormats(&KvFormatInfo::name, " or ")), std::pair("AUTO", AutoFormats())}) {
    text.replace(text.find(word), std::string_view(word).size(), names);
  }
  text +=
      "\n## Named recipes\n\n| name | what stays | good for | stages | reads | cost | when | paper "
      "|\n|---|---|---|---|---|---|---|---|\n";
  for (const RecipeInfo& r : ListRecipes()) {
    text += fmt::format("| `{}` | {} | {} | `{}` | {} | {} | {} | {} |\n", r.name, Cell(r.summary), Cell(r.good_for),
                        r.stages, r.needs, r.cost, r.when, PaperLink(r.paper));
  }
  text += "\n## Parameters\n\n| name | parameters, with default and range |\n|---|---|\n";
  for (const RecipeInfo& r : ListRecipes()) {
    if (!r.parameters.empty()) text += fmt::format("| `{}` | {} |\n", r.name, Cell(r.parameters));
  }
  text += "\n## Stages\n\n| stage | what it does | parameters | paper |\n|---|---|---|---|\n";
  for (const StageListing& s : ListStages()) {
    text += fmt::format("| `{}={}` | {} | {} | {} |\n", s.kind, s.name, Cell(s.summary), Cell(s.parameters),
                        PaperLink(s.paper));
  }
  return text;
}

}  // namespace pith
