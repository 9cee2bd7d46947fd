#include "evict/one_bit.h"

#include <array>
#include <string_view>
#include <utility>

#include "evict/follow.h"
#include "evict/learn/one_bit_model.h"
#include "evict/random.h"

namespace pith::evict {

Result<std::vector<uint8_t>> DiscardBits(const Trace& trace, uint64_t capacity) {
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Evictor> optimum,
                        MakeEvictor(trace.uniform() ? "belady" : "belady-size",
                                    {capacity, trace.num_objects(), &trace}));
  std::vector<uint8_t> bits(trace.num_accesses(), 0);
  std::vector<uint32_t> last_use(trace.num_objects(), 0);
  std::vector<uint32_t> victims;
  optimum->RecordVictims(&victims);
  size_t prompt = 0;
  for (uint32_t i = 0; i < trace.num_accesses(); ++i) {
    const Access access = trace.AtNext(i, prompt);
    if (optimum->Contains(access.object)) {
      optimum->OnHit(access);
    } else {
      optimum->OnMiss(access);
      // Not stored at all: gone as soon as it came.
      if (!optimum->Contains(access.object)) bits[i] = 1;
    }
    for (const uint32_t victim : victims) bits[last_use[victim]] = 1;
    victims.clear();
    last_use[access.object] = i;
  }
  return bits;
}

std::vector<uint8_t> PhaseBits(const Trace& trace, uint64_t capacity) {
  std::vector<uint32_t> phase_of(trace.num_accesses());
  std::vector<uint32_t> seen_in(trace.num_objects(), kNever);
  uint32_t phase = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < trace.num_accesses(); ++i) {
    const uint32_t object = trace.object[i];
    if (seen_in[object] != phase) {
      if (bytes > 0 && bytes + trace.size[i] > capacity) {
        ++phase;
        bytes = 0;
      }
      bytes += trace.size[i];
      seen_in[object] = phase;
    }
    phase_of[i] = phase;
  }
  std::vector<uint8_t> bits(trace.num_accesses());
  // The first phase after this one in which the object is asked for, and the phase that it was last met in, from
  // behind.
  std::vector<uint32_t> met_in(trace.num_objects(), kNever);
  std::vector<uint32_t> later(trace.num_objects(), kNever);
  for (size_t i = trace.num_accesses(); i-- > 0;) {
    const uint32_t object = trace.object[i];
    if (met_in[object] != phase_of[i]) {
      later[object] = met_in[object];
      met_in[object] = phase_of[i];
    }
    bits[i] = later[object] != phase_of[i] + 1;
  }
  return bits;
}

Result<OneBitParams> ReadOneBitParams(Params& params, const Setup& setup, bool phase_bits) {
  static constexpr std::array<std::string_view, 4> kBits = {"perfect", "learned", "zero", "one"};
  static constexpr std::array<std::string_view, 2> kGuards = {"off", "lru"};
  PITH_RETURN_IF_ERROR(CheckHasTrace("a policy of one bit", setup));
  OneBitParams read;
  PITH_ASSIGN_OR_RETURN(const std::string bits, params.Word("bits", "perfect", kBits));
  PITH_ASSIGN_OR_RETURN(const double flip, params.Number("flip", 0, 0, 1));
  PITH_ASSIGN_OR_RETURN(const double seed, params.Number("seed", 1, 0, 1e9));
  PITH_ASSIGN_OR_RETURN(const std::string guard, params.Word("guard", "off", kGuards));
  read.guard = guard == "lru";
  read.seed = static_cast<uint64_t>(seed);
  if (bits == "learned") {
    const ModelKind kind = phase_bits ? ModelKind::kPhaseBit : ModelKind::kDiscardBit;
    PITH_ASSIGN_OR_RETURN(const std::string path, params.Text("model", ""));
    PITH_ASSIGN_OR_RETURN(const double p_zero, params.Number("p_zero", 0.7, 0, 1));
    PITH_ASSIGN_OR_RETURN(const Model model, LoadModel(path, kind));
    read.bits = PredictBits(model, *setup.trace, setup.capacity, p_zero);
  } else if (bits != "perfect") {
    read.bits.assign(setup.trace->num_accesses(), bits == "one");
  } else if (phase_bits) {
    read.bits = PhaseBits(*setup.trace, setup.capacity);
  } else {
    PITH_ASSIGN_OR_RETURN(read.bits, DiscardBits(*setup.trace, setup.capacity));
  }
  Random random(read.seed ^ 0x5eedf11b);
  for (uint8_t& bit : read.bits) bit ^= random.Uniform() < flip;
  return read;
}

Result<std::unique_ptr<Evictor>> WithGuard(std::unique_ptr<Evictor> evictor, const OneBitParams& params,
                                           const Setup& setup) {
  if (!params.guard) return evictor;
  std::vector<std::unique_ptr<Evictor>> experts;
  experts.push_back(std::move(evictor));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Evictor> lru, MakeEvictor("lru", setup));
  experts.push_back(std::move(lru));
  return MakeFollow(setup, std::move(experts), {});
}

}  // namespace pith::evict
