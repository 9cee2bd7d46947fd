// Stop strings in a stream of text.
#ifndef PITH_SESSION_STOP_FILTER_H_
#define PITH_SESSION_STOP_FILTER_H_

#include <string>
#include <string_view>
#include <vector>

namespace pith {

// Holds back what may be the beginning of a stop string, until it is one or is none.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  // Text that is certainly before any stop string. Once one is complete, hit() says so; it and what follows are gone.
  std::string Push(std::string_view text);
  // The stream ends: what was held back was no stop string.
  std::string Flush();
  bool hit() const { return hit_; }

 private:
  std::vector<std::string> stops_;  // none is empty
  std::string held_;
  bool hit_ = false;
};

}  // namespace pith

#endif  // PITH_SESSION_STOP_FILTER_H_
