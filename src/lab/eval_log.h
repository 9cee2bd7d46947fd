// Rows of `pith eval` on disk as they are finished, so that a later run goes on where one ended.
//
// A text file: one JSON object that names the run, then one JSON object per row. A row is appended by one
// write, so a killed run leaves whole rows and at most a torn last line, which the next run removes.
#ifndef PITH_LAB_EVAL_LOG_H_
#define PITH_LAB_EVAL_LOG_H_

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "lab/eval_row.h"
#include "pith/types.h"

namespace pith {

class EvalLog {
 public:
  // Opens or creates. run: what must be the same for rows to belong together. kInvalidArgument: the file's rows are of
  // another run; kCorrupt: it is no such file; kIo.
  static Result<std::unique_ptr<EvalLog>> Open(const std::string& path, const nlohmann::ordered_json& run);
  ~EvalLog();

  // Rows that were there already.
  const std::vector<EvalRow>& rows() const { return rows_; }
  // On disk when it returns (but for the system's own cache).
  Status Append(const EvalRow& row);

 private:
  explicit EvalLog(std::string path) : path_(std::move(path)) {}
  Result<size_t> ReadRows(const std::string& text, const nlohmann::ordered_json& run);
  Status Write(const std::string& line);

  std::string path_;
  int file_ = -1;
  std::vector<EvalRow> rows_;
};

// 64 bits of a text (FNV-1a), as 16 hexadecimal digits: names a set of tasks.
std::string Fingerprint(std::string_view text);

}  // namespace pith

#endif  // PITH_LAB_EVAL_LOG_H_
