#include "server/kept_responses.h"

#include <utility>

#include <fmt/format.h>

namespace pith::server {
namespace {

// What heaps and tables hold beside the texts: of a response, of an item's name (which stands in it and in the table).
constexpr size_t kEntryBytes = 512, kItemBytes = 192;

}  // namespace

size_t KeptResponse::bytes() const {
  size_t sum = kEntryBytes + 2 * id.size() + tenant.size() + body.size() + items.size();
  for (const std::string& item_id : item_ids) sum += kItemBytes + 2 * item_id.size() + tenant.size();
  return sum;
}

bool KeptResponses::Keep(KeptResponse response) {
  const size_t bytes = response.bytes();
  if (limits_.most == 0 || bytes > limits_.bytes) return false;
  const auto kept = std::make_shared<const KeptResponse>(std::move(response));
  const std::lock_guard lock(mutex_);
  while (kept_.size() >= limits_.most || bytes_ + bytes > limits_.bytes) Drop(kept_.begin());
  by_id_[kept->id] = kept_.insert(kept_.end(), kept);
  for (const std::string& item_id : kept->item_ids) by_item_[ItemKey(kept->tenant, item_id)] = kept;
  bytes_ += bytes;
  return true;
}

std::shared_ptr<const KeptResponse> KeptResponses::Find(std::string_view tenant, const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto at = by_id_.find(id);
  return at == by_id_.end() || (*at->second)->tenant != tenant ? nullptr : *at->second;
}

std::shared_ptr<const KeptResponse> KeptResponses::FindByItem(std::string_view tenant,
                                                              const std::string& item_id) const {
  const std::lock_guard lock(mutex_);
  const auto at = by_item_.find(ItemKey(tenant, item_id));
  return at == by_item_.end() ? nullptr : at->second;
}

bool KeptResponses::Remove(std::string_view tenant, const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto at = by_id_.find(id);
  if (at == by_id_.end() || (*at->second)->tenant != tenant) return false;
  Drop(at->second);
  return true;
}

size_t KeptResponses::size() const {
  const std::lock_guard lock(mutex_);
  return kept_.size();
}

size_t KeptResponses::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void KeptResponses::Drop(Place place) {
  const std::shared_ptr<const KeptResponse> kept = *place;
  for (const std::string& item_id : kept->item_ids) {
    // A client may have given a later item the same name.
    const auto at = by_item_.find(ItemKey(kept->tenant, item_id));
    if (at != by_item_.end() && at->second == kept) by_item_.erase(at);
  }
  bytes_ -= kept->bytes();
  by_id_.erase(kept->id);
  kept_.erase(place);
}

std::string KeptResponses::ItemKey(std::string_view tenant, std::string_view item_id) {
  return fmt::format("{}/{}", tenant, item_id);
}

}  // namespace pith::server
