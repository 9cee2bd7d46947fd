// The tokens of texts that were read and written here.
//
// A model may write a text in other tokens than the tokenizer would give. A cache that has dropped entries cannot go
// back to where the two differ, so that the next turn of its conversation would be read anew. The tokens that were
// written are remembered for it.
#ifndef PITH_SERVER_TEXT_MEMORY_H_
#define PITH_SERVER_TEXT_MEMORY_H_

#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"
#include "session/text_model.h"

namespace pith::server {

// Threads: any.
class TextMemory {
 public:
  explicit TextMemory(size_t most_bytes = size_t{16} << 20) : most_bytes_(most_bytes) {}

  // `tokens` are the whole text. Those of a tenant are for its requests alone.
  void Add(const std::string& tenant, std::string text, std::vector<int32_t> tokens);
  // Tokens of a prompt, of which those of the longest text that it goes on from are as they were. kInvalidArgument: the
  // tokenizer's.
  Result<std::vector<int32_t>> Tokenize(const TextModel& model, const std::string& tenant, const std::string& text);

  size_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    std::string tenant, text;
    std::vector<int32_t> tokens;
    size_t bytes() const { return sizeof(Entry) + tenant.size() + text.size() + sizeof(int32_t) * tokens.size(); }
  };

  const size_t most_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the newest first
  size_t bytes_ = 0;
};

}  // namespace pith::server

#endif  // PITH_SERVER_TEXT_MEMORY_H_
