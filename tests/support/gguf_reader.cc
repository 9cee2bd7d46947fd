#include "tests/support/gguf_reader.h"

#include <fmt/format.h>

#include <cstdlib>
#include <utility>

namespace pith::testing {
namespace {

[[noreturn]] void Missing(const std::string& path, const std::string& name) {
  fmt::print(stderr, "{} has no '{}'\n", path, name);
  std::abort();
}

}  // namespace

Result<GgufFile> GgufFile::Load(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(pith::GgufFile file, pith::GgufFile::Load(path));
  return GgufFile(std::move(file));
}

Result<GgufFile> GgufFile::Parse(std::span<const uint8_t> bytes) {
  PITH_ASSIGN_OR_RETURN(pith::GgufFile file, pith::GgufFile::Parse(bytes));
  return GgufFile(std::move(file));
}

const GgufTensor& GgufFile::tensor(const std::string& name) const {
  const GgufTensor* const found = Find(name);
  if (found == nullptr) Missing(path(), name);
  return *found;
}

double GgufFile::number(const std::string& key) const {
  const std::optional<double> found = Number(key);
  if (!found) Missing(path(), key);
  return *found;
}

std::vector<std::string> GgufFile::texts(const std::string& key) const {
  const auto it = metadata().find(key);
  if (it == metadata().end()) return {};
  if (const auto* one = std::get_if<std::string>(&it->second)) return {*one};
  if (const auto* many = std::get_if<std::vector<std::string>>(&it->second)) return *many;
  return {};
}

}  // namespace pith::testing
