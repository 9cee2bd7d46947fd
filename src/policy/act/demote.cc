#include "policy/act/demote.h"

#include <algorithm>
#include <string>
#include <vector>

#include "policy/stage.h"
#include "policy/storage.h"

namespace pith {
namespace {

// f16 and all in fewer bits, but for those in the fewest: the most precise first.
const std::vector<PageFormat>& HighFormats() {
  static const std::vector<PageFormat> formats = [] {
    std::vector<PageFormat> high;
    for (const KvFormat format : kKvFormats) {
      if (format == KvFormat::kF16 || BitsOf(format) < 16) high.emplace_back(format);
    }
    high.pop_back();
    return high;
  }();
  return formats;
}

// All in fewer bits than f16 and what format=auto mixes of them: those in the fewest first.
const std::vector<PageFormat>& LowFormats() {
  static const std::vector<PageFormat> formats = [] {
    std::vector<PageFormat> low;
    for (const KvFormat format : kKvFormats) {
      if (BitsOf(format) < 16) low.emplace_back(format);
    }
    for (const PageFormat mixed : kAutoFormats) {
      if (!(mixed.key == mixed.value)) low.push_back(mixed);
    }
    std::ranges::stable_sort(low, {}, &PageFormat::bits);
    return low;
  }();
  return formats;
}

// "q2|q4"
std::string NamesOf(const std::vector<PageFormat>& formats) {
  std::string names;
  for (const PageFormat format : formats) names += (names.empty() ? "" : "|") + format.Name();
  return names;
}

DemoteOptions OptionsOf(const Params& p) {
  return {.high = HighFormats()[static_cast<size_t>(p.Choice("hi"))],
          .low = LowFormats()[static_cast<size_t>(p.Choice("lo"))],
          .share = p.Real("share")};
}

class Demote final : public Action {
 public:
  explicit Demote(const DemoteOptions& options) : options_(options) {}
  const DemoteOptions* demote() const override { return &options_; }

 private:
  DemoteOptions options_;
};

}  // namespace

StageInfo<Action> DemoteStage() {
  static const std::string high = NamesOf(HighFormats()), low = NamesOf(LowFormats());
  return {"entries that matter less go to fewer bits; none is dropped",
          {ChoiceParam("hi", high, "format of entries that matter"), ChoiceParam("lo", low, "format of the others"),
           RealParam("share", 1, 0, 1, "of the entries that matter, at most; fewer where bytes do not hold them")},
          [](const Params& p) -> std::unique_ptr<Action> { return std::make_unique<Demote>(OptionsOf(p)); },
          0,
          [](const Params& p) -> Status {
            const DemoteOptions options = OptionsOf(p);
            if (options.low.bits() < options.high.bits()) return {};
            return InvalidArgument("act=demote: lo=" + options.low.Name() + " takes no fewer bits than hi=" +
                                   options.high.Name());
          }};
}

}  // namespace pith
