// Responses of OpenAI's /v1/responses that clients may go on from or ask for again: in memory, beside the cache's
// budget and within one of their own. The oldest go first. Used by many threads.
#ifndef PITH_SERVER_KEPT_RESPONSES_H_
#define PITH_SERVER_KEPT_RESPONSES_H_

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pith::server {

struct KeptResponse {
  std::string id;
  std::string tenant;                 // whose key it came with: nobody else finds it
  std::string body;                   // JSON, as it was told
  std::string items;                  // all that it answered, as a JSON array of items: those of earlier responses, too
  std::vector<std::string> item_ids;  // of the items that came with it, its output's among them

  size_t bytes() const;
};

struct KeptResponseLimits {
  size_t most = 1000;  // 0: none are kept
  size_t bytes = size_t{64} << 20;
};

class KeptResponses {
 public:
  explicit KeptResponses(KeptResponseLimits limits) : limits_(limits) {}

  bool keeps_any() const { return limits_.most > 0; }
  // False: it is larger than all of them may be together.
  bool Keep(KeptResponse response);
  // Null: nothing of that name, or another tenant's.
  std::shared_ptr<const KeptResponse> Find(std::string_view tenant, const std::string& id) const;
  // The newest with which that item came.
  std::shared_ptr<const KeptResponse> FindByItem(std::string_view tenant, const std::string& item_id) const;
  // False: there was none.
  bool Remove(std::string_view tenant, const std::string& id);

  size_t size() const;
  size_t bytes() const;

 private:
  using Place = std::list<std::shared_ptr<const KeptResponse>>::iterator;
  void Drop(Place place);
  static std::string ItemKey(std::string_view tenant, std::string_view item_id);

  const KeptResponseLimits limits_;
  mutable std::mutex mutex_;
  std::list<std::shared_ptr<const KeptResponse>> kept_;  // the oldest first
  std::unordered_map<std::string, Place> by_id_;
  std::unordered_map<std::string, std::shared_ptr<const KeptResponse>> by_item_;
  size_t bytes_ = 0;
};

}  // namespace pith::server

#endif  // PITH_SERVER_KEPT_RESPONSES_H_
