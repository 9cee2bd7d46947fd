// EVICPRESS (arXiv:2512.14946): for each context one compression method, one ratio and one tier together, by
//
//   U(c, x) = (alpha * quality(c, method, ratio) - bytes(c, x) / bandwidth(tier)) * frequency(c)
//
// A new context takes the configuration of greatest U. While a tier holds too much, the change goes first that loses
// least U of all changes that free bytes on it: of any context there, further compressed, or on a slower tier. What
// that overfills is fitted the same way. Decisions are made on these numbers alone; whoever owns the bytes carries the
// operations out, in order.
//
// Rearrange() is for contexts whose uses or qualities have changed: each takes what is best for it now, and tiers
// are fitted as above. The paper does so from time to time and says no more.
//
// The paper's Algorithm 1 leaves out updates and uses "ratio" in two senses; here it is the share of tokens that is
// dropped. What was dropped does not come back: ratios only rise, and a compressed context keeps its method, unless its
// full copy is kept elsewhere.
#ifndef PITH_STORE_PLACEMENT_H_
#define PITH_STORE_PLACEMENT_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith::store {

struct PlacementTier {  // the fast ones first
  double bandwidth = 1;  // bytes a second
  double capacity = 0;   // bytes; <= 0: unbounded
};

struct PlacementOptions {
  double alpha = 1;             // seconds that one unit of quality is worth
  int num_methods = 1;
  std::vector<double> ratios;   // ascending; the first one is 0: not compressed
  std::vector<PlacementTier> tiers;
  bool has_full_copy = false;   // any method may follow any other
  bool per_byte = false;        // the smallest loss per byte that is freed goes first
};

struct Configuration {
  int method = -1;  // -1: none, where the ratio is 0
  int ratio = 0;    // index
  int tier = 0;

  bool operator==(const Configuration&) const = default;
};

struct PlacementOperation {
  int context = 0;
  Configuration from, to;
};

class Placement {
 public:
  explicit Placement(PlacementOptions options);

  // quality: [methods, ratios]; that of ratio 0 counts as 1. Returns the context's number, the next one. `operations`:
  // appended, of this context and of others. The context itself is at config() in the end.
  int Add(double bytes, double frequency, std::span<const double> quality, std::vector<PlacementOperation>& operations);
  // The same for one whose configuration is what it is already.
  int AddPlaced(double bytes, double frequency, std::span<const double> quality, const Configuration& at,
                std::vector<PlacementOperation>& operations);

  // All of them anew, as far as what was dropped allows. A tier may gain what another one loses: operations that enter
  // a tier come behind those that leave it.
  void Rearrange(std::vector<PlacementOperation>& operations);

  double Utility(int context, const Configuration& configuration) const;
  double BytesOf(int context, const Configuration& configuration) const;
  const Configuration& config(int context) const { return contexts_[static_cast<size_t>(context)].at; }
  double used(int tier) const { return used_[static_cast<size_t>(tier)]; }
  double total_utility() const;
  // What loading takes and compression loses, by how often: alpha * sum of the frequencies - total_utility(). Seconds.
  double total_cost() const;
  int num_contexts() const { return static_cast<int>(contexts_.size()); }

 private:
  struct Context {
    double bytes = 0;
    double frequency = 1;
    std::vector<double> quality;
    Configuration at;
  };
  struct Change {
    int context = -1;
    Configuration to;
    double loss = 0;
  };

  template <typename Visit>
  void ForEachConfiguration(const Visit& visit) const;
  bool Allows(const Context& context, const Configuration& to, int tier) const;
  bool KeepsItsMethod(const Context& context, const Configuration& to) const;
  Change BestChange(int tier) const;
  void Fit(int tier, std::vector<PlacementOperation>& operations);

  const PlacementOptions options_;
  std::vector<Context> contexts_;
  std::vector<double> used_;  // by tier
};

// What is left of a context's quality when it is compressed, judged by the logits with which a model goes on from it:
// the mean over probes of exp(-mean KL(full || compressed)), within (0, 1]. logits: [tokens, vocab] of one probe.
double MeanDivergence(std::span<const float> full, std::span<const float> compressed, size_t vocab);
// Share of the tokens whose likeliest next one is the same.
double SameTop(std::span<const float> full, std::span<const float> compressed, size_t vocab);

}  // namespace pith::store

#endif  // PITH_STORE_PLACEMENT_H_
