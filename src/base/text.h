// Text in and out of the program: sizes, UTF-8, files.
#ifndef PITH_BASE_TEXT_H_
#define PITH_BASE_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/utf8.h"
#include "pith/types.h"

namespace pith {

// A number of bytes, or a share of something that is known later.
struct SizeOrShare {
  size_t bytes = 0;
  double share = 0;  // > 0: of the full-precision cache; bytes is not used
};

// "65536", "64MiB", "1.5GiB", "64M" (binary), "64MB" (decimal). kInvalidArgument.
Result<size_t> ParseSize(std::string_view text);
// The same, or "20%" (more than 0, at most 1000).
Result<SizeOrShare> ParseSizeOrShare(std::string_view text);

// "1.50 MiB", "900 bytes".
std::string FormatBytes(size_t bytes);
// 45000 -> "45,000".
std::string FormatCount(int64_t count);

// "0.5,0.2" -> {0.5, 0.2}, each within [low, high]; `flag` stands in the message.
Result<std::vector<double>> ParseNumbers(std::string_view text, std::string_view flag, double low, double high);
Result<std::vector<int>> ParseIntegers(std::string_view text, std::string_view flag, int low, int high);

// Recipes between ';' or ','. A ',' before "name=value" belongs to the recipe's
// parameters, unless the name is that of a stage: "a:x=1,y=2,b" -> "a:x=1,y=2", "b".
std::vector<std::string> SplitRecipes(std::string_view text);

// A file's contents, or standard input for "-". kNotFound, kIo, kInvalidArgument
// when it is a folder.
Result<std::string> ReadFile(const std::string& path);

// kInvalidArgument when `text` is not UTF-8; `what` begins the sentence.
Status RequireUtf8(std::string_view text, std::string_view what);

// Whether WriteFile() could, said before hours of work; empty: nothing is to be written.
Status CheckOutput(const std::string& path);

// Writes a whole file, all of it or nothing (base/atomic_file.h), or to standard output for "-".
Status WriteFile(const std::string& path, std::string_view text);

}  // namespace pith

#endif  // PITH_BASE_TEXT_H_
