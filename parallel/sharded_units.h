// Weights and gradients that live in shards: gathered before use, released after, gradients reduce-scattered
// behind.
#pragma once
#include <memory>
#include <vector>

#include "kernels/arena.h"
#include "kernels/device.h"
#include "parallel/mesh.h"
#include "parallel/parameters.h"

namespace lapidary {

/// One rank's piece of some parameters: what the optimizer updates and a checkpoint saves.
struct ParameterShard {
  Tensor weight;                   ///< weight type [n], the working copy
  Tensor gradient;                 ///< gradient type [n]
  std::vector<ShardSlice> slices;  ///< what lies where; the rest is padding
  std::int64_t first_index =
      0;             ///< a number unique to element 0 over all shards and independent of the sharding:
                     ///< element i has first_index + i (for counter-based random numbers)
  int replicas = 1;  ///< ranks of the world that hold exactly this piece (the norm counts it once)
};

struct ShardingOptions {
  int zero = 3;  ///< 3: whole weights only while in use; 2: whole weights kept, gathered once a step
  DType weights = DType::f32;
  DType gradients = DType::f32;  ///< of the shards and of the reduction
  int prefetch = 1;              ///< units gathered ahead of use (zero = 3)
};

/// All units of a model but the vocabulary table. Order of use within a micro-batch: forward 0, 1, .. U-1,
/// backward U-1 .. 0; get() starts the gathers of the units that follow. Calls out of this order are an
/// Error. With one rank in the shard group nothing is copied: get() and gradients() are views of the shard
/// itself.
class ShardedUnits {
 public:
  /// `state` holds shards for the whole run, `transient` the gathered weights and whole gradients; both are
  /// counted when the backend is a plan.
  ShardedUnits(const std::vector<ParameterSpec>& parameters, const std::vector<std::string>& unit_names,
               Mesh& mesh, const ShardingOptions& options, Stream& compute, Arena& state, Arena& transient);
  ~ShardedUnits();

  int units() const;

  // -- weights
  /// Units that are gathered ahead of the one in use.
  int ahead() const;
  /// Before the first get() after an update: gathered copies are stale (zero = 2 gathers again).
  void weights_changed();
  enum class Direction { forward, backward };
  /// Starts over: the next get() is unit 0 (forward) or U-1 (backward) and its gather starts now.
  void begin(Direction direction);
  /// The whole unit's weights are there for work queued on the compute stream from now on; starts the next
  /// gather.
  void get(int unit);
  /// Work queued so far was the last to use the unit's weights.
  void release(int unit);
  /// A parameter's weight inside a unit between get() and release(), in its own shape.
  Tensor weight(int parameter) const;
  /// `count` joined parameters beginning with `first` as one matrix [sum of rows, columns].
  Tensor weight(int first, int count) const;

  // -- gradients
  /// Before the first micro-batch of a step: what the shards hold no longer counts.
  void zero_gradients();
  /// A whole gradient buffer for the unit (or the shard's own where there is one rank), zeroed where it holds
  /// nothing yet. A caller that overwrites_matrices writes every parameter of two or more dimensions whole
  /// where gradients_blank(), instead of adding to it; then only the others are zeroed.
  void begin_gradients(int unit, bool overwrites_matrices = false);
  /// Between begin_gradients() and reduce(): the buffer holds no sum yet.
  bool gradients_blank() const;
  Tensor gradient(int parameter) const;
  Tensor gradient(int first, int count) const;
  /// The unit's gradient is complete for this micro-batch: reduce-scatter it and add it to the shard.
  void reduce(int unit);
  /// All reductions of this micro-batch are in the shards; after the last micro-batch of a step (last = true)
  /// also summed over the replicas.
  void finish(bool last);

  std::vector<ParameterShard>& shards();  ///< one per unit
  /// squares f64 [units]. True: every finish(last = true) leaves the squared norms of this rank's gradients
  /// there, which then need no pass of their own. False: it cannot.
  bool leave_squares(const Tensor& squares);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lapidary
