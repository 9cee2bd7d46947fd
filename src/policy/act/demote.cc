#include "policy/act/demote.h"

#include <array>

#include "policy/stage.h"

namespace pith {
namespace {

constexpr std::array<PageFormat, 3> kHighFormats = {KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4};
constexpr std::array<PageFormat, 4> kLowFormats = {KvFormat::kQ2, PageFormat(KvFormat::kQ4, KvFormat::kQ2),
                                                   KvFormat::kQ4, KvFormat::kQ8};

int BitsOf(PageFormat format) { return pith::BitsOf(format.key) + pith::BitsOf(format.value); }

DemoteOptions OptionsOf(const Params& p) {
  return {.high = kHighFormats[static_cast<size_t>(p.Choice("hi"))],
          .low = kLowFormats[static_cast<size_t>(p.Choice("lo"))],
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
  return {"entries that matter less go to fewer bits; none is dropped",
          {ChoiceParam("hi", "f16|q8|q4", "format of entries that matter"),
           ChoiceParam("lo", "q2|q4/q2|q4|q8", "format of the others"),
           RealParam("share", 1, 0, 1, "of the entries that matter, at most; fewer where bytes do not hold them")},
          [](const Params& p) -> std::unique_ptr<Action> { return std::make_unique<Demote>(OptionsOf(p)); },
          0,
          [](const Params& p) -> Status {
            const DemoteOptions options = OptionsOf(p);
            if (BitsOf(options.low) < BitsOf(options.high)) return {};
            return InvalidArgument("act=demote: lo=" + options.low.Name() + " takes no fewer bits than hi=" +
                                   options.high.Name());
          }};
}

}  // namespace pith
