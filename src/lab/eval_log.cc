#include "lab/eval_log.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json_text.h"
#include "base/text.h"

namespace pith {
namespace {

using nlohmann::ordered_json;

std::string Line(const ordered_json& json) { return JsonText(json) + "\n"; }

}  // namespace

EvalLog::~EvalLog() {
  if (file_ >= 0) ::close(file_);
}

// Returns the bytes that are whole lines.
Result<size_t> EvalLog::ReadRows(const std::string& text, const ordered_json& run) {
  size_t at = 0, number = 0;
  while (at < text.size()) {
    const size_t end = text.find('\n', at);
    if (end == std::string::npos) break;  // torn by a kill
    ++number;
    const ordered_json json = OrderedJsonOf(std::string_view(text).substr(at, end - at));
    if (number == 1) {
      if (!json.is_object() || !json.contains("pith_eval")) {
        return Corrupt(fmt::format("{} is not a file that --resume has written", path_));
      }
      for (const auto& [name, value] : run.items()) {
        if (json.contains(name) && json[name] == value) continue;
        return InvalidArgument(fmt::format("{} holds rows of a run with another {}: give another file to --resume",
                                           path_, name));
      }
    } else {
      Result<EvalRow> row =
          json.is_discarded() ? Result<EvalRow>(Corrupt("this is not valid JSON")) : RowFromJson(json);
      if (!row) return Corrupt(fmt::format("{}, line {}: {}", path_, number, row.error().message));
      rows_.push_back(std::move(*row));
    }
    at = end + 1;
  }
  return at;
}

Result<std::unique_ptr<EvalLog>> EvalLog::Open(const std::string& path, const ordered_json& run) {
  std::unique_ptr<EvalLog> log(new EvalLog(path));
  ordered_json header = {{"pith_eval", 1}};
  header.update(run);
  struct stat status {};
  // A device or a pipe holds no rows, and cannot be cut.
  const bool exists = ::stat(path.c_str(), &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
  size_t whole = 0;
  if (exists) {
    PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    PITH_ASSIGN_OR_RETURN(whole, log->ReadRows(text, header));
    // Not even one whole line: only our own torn beginning may be written over.
    if (whole == 0 && !Line(header).starts_with(text)) {
      return Corrupt(fmt::format("{} is not a file that --resume has written", path));
    }
  }
  log->file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | O_CLOEXEC, 0644);
  if (log->file_ < 0) return IoError(fmt::format("cannot write {}: {}", path, std::strerror(errno)));
  if (exists && ::ftruncate(log->file_, static_cast<off_t>(whole)) != 0) {
    return IoError(fmt::format("cannot write {}: {}", path, std::strerror(errno)));
  }
  if (whole == 0) PITH_RETURN_IF_ERROR(log->Write(Line(header)));
  return log;
}

Status EvalLog::Write(const std::string& line) {
  for (size_t at = 0; at < line.size();) {
    const ssize_t written = ::write(file_, line.data() + at, line.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return IoError(fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
    at += static_cast<size_t>(written);
  }
  return {};
}

Status EvalLog::Append(const EvalRow& row) { return Write(Line(RowToJson(row))); }

std::string Fingerprint(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

}  // namespace pith
