#include "session/stop_filter.h"

#include <algorithm>
#include <utility>

namespace pith {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase(stops_, std::string());
}

std::string StopFilter::Push(std::string_view text) {
  if (hit_) return {};
  held_ += text;
  size_t first = std::string::npos;
  size_t begun = held_.size();  // where the earliest unfinished stop string may begin
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    size_t length = std::min(stop.size() - 1, held_.size());
    while (length > 0 && !held_.ends_with(std::string_view(stop).substr(0, length))) --length;
    begun = std::min(begun, held_.size() - length);
  }
  hit_ = first != std::string::npos;
  std::string out = held_.substr(0, hit_ ? first : begun);
  held_.erase(0, hit_ ? held_.size() : begun);
  return out;
}

std::string StopFilter::Flush() { return std::exchange(held_, std::string()); }

}  // namespace pith
