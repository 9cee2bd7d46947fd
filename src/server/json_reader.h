// JSON of requests: parsed within bounds, read member by member, with sentences for what is wrong.
#ifndef PITH_SERVER_JSON_READER_H_
#define PITH_SERVER_JSON_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "pith/types.h"

namespace pith::server {

// Members keep their order: a schema's properties are written in it.
using Json = nlohmann::ordered_json;

// kInvalidArgument: no JSON, no UTF-8, deeper than any request needs, an object of too many members, a number that no
// double holds.
Result<Json> ParseJson(std::string_view text);
// The same, and it is an object.
Result<Json> ParseJsonObject(std::string_view text);

// Members of one object. A member that is missing or null leaves its variable as it was; one that is wrong is the
// reader's error, of which the first stays: "'temperature' must be a number from 0 to 2".
class JsonReader {
 public:
  // object: outlives the reader. path: "messages[2]." in front of the names in sentences.
  explicit JsonReader(const Json& object, std::string path = "") : object_(object), path_(std::move(path)) {}

  // null: missing, or null itself.
  const Json* Find(const char* name) const;
  void Text(const char* name, std::string& out);
  void Bool(const char* name, bool& out);
  void Number(const char* name, double least, double greatest, float& out);
  void Integer(const char* name, int64_t least, int64_t greatest, int& out);
  void Integer64(const char* name, std::optional<int64_t>& out);
  void Texts(const char* name, std::vector<std::string>& out);  // a text or an array of texts
  const Json* Object(const char* name);
  const Json* Array(const char* name);
  void Require(const char* name);
  void Fail(const char* name, const std::string& what);  // "'NAME' " + what

  Status status() const;
  std::string Path(const char* name) const { return path_ + name; }

 private:
  const Json& object_;
  std::string path_;
  std::optional<std::string> error_;
};

// [0] and up; kInvalidArgument: `name` with what is wrong.
Result<std::vector<int32_t>> ReadTokens(const Json& array, std::string_view name, int num_vocab);

}  // namespace pith::server

#endif  // PITH_SERVER_JSON_READER_H_
