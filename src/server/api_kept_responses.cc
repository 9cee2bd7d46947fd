// OpenAI's /v1/responses/{id}: responses that were made, for as long as they are kept.
#include <algorithm>
#include <memory>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "base/parse_number.h"
#include "server/api.h"

namespace pith::server {
namespace {

// The part of the path behind "responses/", up to the next one.
std::string IdOf(const Call& call) {
  constexpr std::string_view kBefore = "responses/";
  std::string id = call.request.path.substr(call.request.path.find(kBefore) + kBefore.size());
  for (const std::string_view after : {"/input_items", "/cancel"}) {
    if (id.ends_with(after)) id.resize(id.size() - after.size());
  }
  return id;
}

void FailNotFound(const Call& call, const std::string& id) {
  call.exchange->Send(ErrorResponse(call.dialect, 404, "invalid_request_error",
                                    fmt::format("Response with id '{}' not found.", Escaped(id, 200)), Json::object()));
}

// Null: the request got its answer.
std::shared_ptr<const KeptResponse> Find(const Call& call) {
  const std::string id = IdOf(call);
  auto kept = call.responses->Find(call.tenant, id);
  if (kept == nullptr) FailNotFound(call, id);
  return kept;
}

struct ListRange {
  int limit = 20;
  bool ascends = false;  // OpenAI's default: the newest first
  std::string after;     // an item's id
};

Result<ListRange> ReadRange(const HttpRequest& request) {
  ListRange range;
  if (const std::string limit = request.Parameter("limit"); !limit.empty()) {
    range.limit = ParseNumber<int>(limit).value_or(0);
    if (range.limit < 1 || range.limit > 100) return InvalidArgument("'limit' must be an integer from 1 to 100");
  }
  if (const std::string order = request.Parameter("order"); !order.empty()) {
    if (order != "asc" && order != "desc") return InvalidArgument("'order' must be asc or desc");
    range.ascends = order == "asc";
  }
  range.after = request.Parameter("after");
  return range;
}

}  // namespace

void OpenAiKeptResponse(Call& call) {
  if (const std::string stream = call.request.Parameter("stream"); !stream.empty() && stream != "false")
    return call.Fail(400, "'stream': responses that are over are told as a whole");
  const auto kept = Find(call);
  if (kept != nullptr) call.exchange->Send({.body = kept->body});
}

void OpenAiForgetResponse(Call& call) {
  const std::string id = IdOf(call);
  if (!call.responses->Remove(call.tenant, id)) return FailNotFound(call, id);
  call.Reply({{"id", id}, {"object", "response"}, {"deleted", true}});
}

void OpenAiCancelResponse(Call& call) {
  if (Find(call) != nullptr) call.Fail(400, "only responses in the background can be cancelled: this one is over");
}

void OpenAiInputItems(Call& call) {
  const Result<ListRange> range = ReadRange(call.request);
  if (!range) return call.Fail(range.error());
  const auto kept = Find(call);
  if (kept == nullptr) return;
  Json items = OrderedJsonOf(kept->items);
  if (!range->ascends) std::ranges::reverse(items);
  auto first = items.begin();
  if (!range->after.empty()) {
    first = std::ranges::find_if(items, [&](const Json& item) { return item["id"] == range->after; });
    if (first == items.end()) return call.Fail(400, "'after' names no item of this response");
    ++first;
  }
  Json data = Json::array();
  for (; first != items.end() && data.size() < static_cast<size_t>(range->limit); ++first) data.push_back(*first);
  const auto id_of = [](const Json& list, bool is_first) {
    return list.empty() ? Json() : is_first ? list.front()["id"] : list.back()["id"];
  };
  call.Reply({{"object", "list"},
              {"data", data},
              {"first_id", id_of(data, true)},
              {"last_id", id_of(data, false)},
              {"has_more", first != items.end()}});
}

}  // namespace pith::server
