// When a recipe evicts while rows run through the layers, and so what of them is there at once.
//
//   in layer     each layer right after its own attention: one layer's block is in flight. For recipes that judge
//   layers
//                by themselves, and sequences that drop nothing.
//   cascade      the layers so far together, whenever the blocks of a few are in flight (policy/cascade.h), and single
//                tokens after the last layer. For recipes that compare layers, if shares only fall as layers join.
//   after block  all layers together when the block has run: all of it is in flight. For all others, and for models
//                whose layers share caches.
//   between      blocks, when what was read has been repeated (engine/block_rereader.h), so that the next one finds its
//                room: a layer's rows are in flight until full pages are converted, or those of a repetition.
#ifndef PITH_ENGINE_EVICTION_SCHEDULE_H_
#define PITH_ENGINE_EVICTION_SCHEDULE_H_

#include <cstddef>
#include <memory>

namespace pith {

class EvictionSchedule {
 public:
  virtual ~EvictionSchedule() = default;

  // Heads whose rows are there before anything of them goes.
  virtual size_t HeadsInFlight(size_t widest_layer_heads, size_t all_heads) const = 0;
  // Pages beside those, of a sequence that takes a single token.
  virtual size_t TokenPages(size_t all_heads) const { return (void)all_heads, 0; }

  // A layer is done before the next one takes its rows: what has left its window goes, full pages are converted.
  virtual bool FinishesLayers() const = 0;
  // A layer that holds too much is evicted from right after its attention.
  virtual bool EvictsLayers() const { return false; }
  // Not 0: layers cascade, and the blocks of so many may be in flight.
  virtual int LayersInCascade() const { return 0; }
  // What is too much over all layers goes when the block has run.
  virtual bool EvictsAfterBlock() const { return !EvictsLayers(); }

  static std::shared_ptr<const EvictionSchedule> InLayer();
  static std::shared_ptr<const EvictionSchedule> Cascade(int num_layers);
  static std::shared_ptr<const EvictionSchedule> AfterBlock();
  static std::shared_ptr<const EvictionSchedule> BetweenBlocks();
};

}  // namespace pith

#endif  // PITH_ENGINE_EVICTION_SCHEDULE_H_
