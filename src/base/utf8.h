// UTF-8: where a text stops being it, and streams of bytes cut into whole characters.
#ifndef PITH_BASE_UTF8_H_
#define PITH_BASE_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace pith {

// Offset of the first byte that is not UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view text);

// Cuts a stream of bytes into whole characters. What can never become UTF-8
// turns into U+FFFD, so that the output is always valid.
class Utf8Stream {
 public:
  // Whole characters that are complete now.
  std::string Push(std::string_view bytes);
  // What is left at the end, as U+FFFD.
  std::string Flush();

 private:
  std::string pending_;  // at most 3 bytes between calls
};

}  // namespace pith

#endif  // PITH_BASE_UTF8_H_
