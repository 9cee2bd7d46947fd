#include "engine/repeat.h"

#include <algorithm>
#include <new>

namespace pith {
namespace {

// Not a word of any template.
constexpr std::string_view kMark = "@@pith@@";

}  // namespace

Result<std::vector<int32_t>> AnswerTokens(const HostModel& model) {
  const ChatMessage message{"user", std::string(kMark)};
  std::string text = "\n\n";
  if (model.knows_chat_template()) {
    const Result<std::string> prompt = model.ApplyChatTemplate({&message, 1}, true);
    const size_t at = prompt ? prompt->rfind(kMark) : std::string::npos;
    if (at != std::string::npos) text = prompt->substr(at + kMark.size());
  }
  return model.Tokenize(text, false, true);
}

std::vector<ColumnSpec> PageColumns(const Policy& policy, bool rereads_blocks) {
  std::vector<ColumnSpec> columns;
  if (!ObservesRepeat(policy)) {
    columns = policy.columns();
  } else if (rereads_blocks) {
    for (const ColumnSpec& column : policy.columns()) columns.push_back({column.name, kNotRepeated});
  }
  if ((policy.needs() & kNeedValueNorms) != 0) columns.push_back({"value_norm", kUnknownNorm});
  return columns;
}

Status ReferenceQueries::Reserve(int num_tokens, int most_kept, std::span<const size_t> widths,
                                 MemoryAccount* account) {
  stride_ = std::max(1, (num_tokens + most_kept - 1) / std::max(most_kept, 1));
  capacity_ = (num_tokens + stride_ - 1) / stride_;
  size_t total = 0;
  first_.clear();
  for (const size_t width : widths) {
    first_.push_back(total);
    total += width * static_cast<size_t>(capacity_);
  }
  if (account != nullptr && !held_.Hold(account, MemoryTag::kTables, total * sizeof(uint16_t))) {
    return OutOfBudget("the KV budget has no room for the queries of a second reading");
  }
  rows_.resize(total);
  widths_.assign(widths.begin(), widths.end());
  return {};
}

Result<std::shared_ptr<RepeatColumns>> RepeatColumns::Create(
    MemoryAccount* account, const Policy& policy, int prefix, std::pair<int32_t, int32_t> part,
    std::span<const std::vector<std::pair<int, int>>> entries) {
  std::shared_ptr<RepeatColumns> made(new RepeatColumns(account));
  const std::vector<ColumnSpec> columns = ObservesRepeat(policy) ? policy.columns() : std::vector<ColumnSpec>();
  made->options_ = *policy.repeat();
  if (!columns.empty()) made->name_ = columns.front().name;
  made->prefix_ = prefix;
  made->part_ = part;
  size_t total = 0;
  for (const std::vector<std::pair<int, int>>& layer : entries) {
    made->heads_.emplace_back();
    for (const auto& [first, end] : layer) {
      const auto count = static_cast<size_t>(end - first);
      made->heads_.back().push_back({total, first, count});
      total += count * columns.size();
    }
  }
  try {
    made->values_.resize(total);
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget has no room for what a second reading finds");
  }
  for (size_t layer = 0; layer < entries.size(); ++layer) {
    for (size_t head = 0; head < entries[layer].size(); ++head) {
      for (size_t c = 0; c < columns.size(); ++c) {
        const std::span<float> column =
            made->column(static_cast<int>(layer), static_cast<int>(head), static_cast<int>(c));
        std::fill(column.begin(), column.end(), columns[c].initial);
      }
    }
  }
  return made;
}

Result<RepeatPrompt> RepeatPrompt::Make(const HostModel& model) {
  RepeatPrompt prompt;
  PITH_ASSIGN_OR_RETURN(prompt.whole_, model.Tokenize("\n\nRepeat the text above exactly.", false, false));
  PITH_ASSIGN_OR_RETURN(prompt.part_, model.Tokenize("\n\nRepeat exactly the part of the text above that begins with:",
                                                     false, false));
  PITH_ASSIGN_OR_RETURN(prompt.answer_, AnswerTokens(model));
  return prompt;
}

std::vector<int32_t> RepeatPrompt::Tokens(std::span<const int32_t> tokens, const RepeatPass& pass, int overlap,
                                          bool first) const {
  std::vector<int32_t> all = first ? whole_ : part_;
  const auto from = tokens.begin() + pass.from;
  if (!first) all.insert(all.end(), from - std::min(overlap, pass.from), from);
  all.insert(all.end(), answer_.begin(), answer_.end());
  all.insert(all.end(), from, tokens.begin() + pass.to);
  return all;
}

int RepeatPrompt::overhead(int overlap) const {
  return static_cast<int>(std::max(whole_.size(), part_.size() + static_cast<size_t>(overlap)) + answer_.size());
}

}  // namespace pith
