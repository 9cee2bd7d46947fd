#include "server/text_memory.h"

#include <algorithm>
#include <utility>

namespace pith::server {

void TextMemory::Add(const std::string& tenant, std::string text, std::vector<int32_t> tokens) {
  Entry entry{tenant, std::move(text), std::move(tokens)};
  if (entry.bytes() > most_bytes_ / 2) return;
  const std::lock_guard lock(mutex_);
  // An older turn of the same conversation is of no use any more.
  for (auto at = entries_.begin(); at != entries_.end();) {
    const bool is_older = at->tenant == tenant && entry.text.starts_with(at->text);
    if (is_older) bytes_ -= at->bytes();
    at = is_older ? entries_.erase(at) : std::next(at);
  }
  bytes_ += entry.bytes();
  entries_.push_front(std::move(entry));
  while (bytes_ > most_bytes_) {
    bytes_ -= entries_.back().bytes();
    entries_.pop_back();
  }
}

Result<std::vector<int32_t>> TextMemory::Tokenize(const TextModel& model, const std::string& tenant,
                                                  const std::string& text) {
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model.Tokenize(text, true, true));
  std::vector<int32_t> known;
  size_t length = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      const bool is_longer = entry.tenant == tenant && entry.text.size() > length && text.starts_with(entry.text);
      if (is_longer) known = entry.tokens, length = entry.text.size();
    }
  }
  if (known.empty()) return tokens;
  const auto [differs, ignored] = std::ranges::mismatch(known, tokens);
  if (differs == known.end()) return tokens;
  // Where the known text ends must be the end of a token, too.
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> rest, model.Tokenize(text.substr(length), false, true));
  const bool parts = rest.size() <= tokens.size() && std::equal(rest.rbegin(), rest.rend(), tokens.rbegin());
  if (!parts) return tokens;
  known.insert(known.end(), rest.begin(), rest.end());
  return known;
}

}  // namespace pith::server
