#include "host/tried_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/atomic_file.h"
#include "base/byte_io.h"
#include "base/paths.h"
#include "ggml.h"

#ifndef PITH_VERSION
#define PITH_VERSION "0"
#endif

namespace pith {
namespace {

constexpr size_t kMostLines = 256;

std::string NotesPath() { return CacheDir() + "/tried"; }

std::vector<std::string> ReadNotes() {
  std::vector<std::string> lines;
  std::ifstream file(NotesPath());
  for (std::string line; lines.size() < 2 * kMostLines && std::getline(file, line);) lines.push_back(std::move(line));
  return lines;
}

}  // namespace

std::string FilesKey(std::span<const std::string> paths, std::string_view options) {
  std::string key = fmt::format("pith {} ggml {} {}", PITH_VERSION, ggml_version(), ggml_commit());
  for (const std::string& path : paths) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return {};
    key += fmt::format(" {}:{}:{}:{}.{}:{}.{}", info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec,
                       info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec);
  }
  if (!options.empty()) {
    Hash64 hash;  // so that it stays one line
    hash.Add(options);
    key += fmt::format(" {:016x}", hash.value());
  }
  return key;
}

bool WasTried(const std::string& key) {
  if (key.empty()) return false;
  const std::vector<std::string> lines = ReadNotes();
  return std::find(lines.begin(), lines.end(), key) != lines.end();
}

void RememberTried(const std::string& key) {
  if (key.empty()) return;
  std::vector<std::string> lines = ReadNotes();
  lines.push_back(key);
  if (lines.size() > kMostLines) lines.erase(lines.begin(), lines.end() - kMostLines);
  std::error_code error;
  std::filesystem::create_directories(CacheDir(), error);
  // Whole or not at all, whoever else writes at the same time. Without the note a file is tried again.
  (void)WriteWholeFile(NotesPath(), fmt::format("{}\n", fmt::join(lines, "\n")));
}

}  // namespace pith
