// AdamW over the shards that a rank holds: state layout, gradient norm and clip, one update.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/arena.h"
#include "kernels/ops.h"
#include "model/parameter_table.h"
#include "parallel/mesh.h"
#include "parallel/sharded_units.h"

namespace lapidary {

/// How weights and moments are kept between steps (architecture, decision 5).
enum class OptimizerLayout : std::uint8_t {
  float32,  ///< float32 master (the weight itself where that is float32 or f64) and moments
  split,    ///< bf16 weight plus a 16-bit remainder that together are the float32 master; bf16 moments
  bf16,     ///< no master: weights and moments bf16, rounded stochastically
  float8,   ///< no master: weights bf16, moments one byte (kernels/moment_codes.h), rounded stochastically
};

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: none
  OptimizerLayout layout = OptimizerLayout::float32;
  std::uint64_t seed = 0;  ///< of stochastic rounding
  bool offload = false;  ///< moments, masters and remainders live in host memory, which the update reads and
                         ///< writes over the bus
};

class Optimizer {
 public:
  /// One shard's state; element i belongs to element i of the shard's weight. Tensors that the layout does
  /// not have are default.
  struct State {
    Tensor master, remainder, m, v;
  };

  /// unit_shards are spread over the mesh's shard group, table_shard over its vocabulary group. State is
  /// zeroed; masters are set by weights_loaded(). `scalars` holds the norm and its factor, `state` the rest.
  Optimizer(const ParameterTable& table, std::vector<ParameterShard*> unit_shards,
            ParameterShard* table_shard, const OptimizerOptions& options, Mesh& mesh, Stream& stream,
            Arena& scalars, Arena& state);

  /// f64 [units]: where the units' gradients bring their squared norms with them (ShardedUnits), which are
  /// then not computed again.
  Tensor unit_squares() const { return sums_.flat_range(0, sums_.numel() - 1); }
  void units_bring_squares() { units_bring_squares_ = true; }
  /// The weights were initialised or loaded: masters follow them.
  void weights_loaded(Stream& stream);
  /// Global gradient norm (before clipping), clip, update. `step` counts from 1. Nothing changes where the
  /// norm is not finite. updated(i) is called when the update of shards()[i] is queued, in their order.
  /// Collective.
  void step(Stream& stream, double lr, std::int64_t step, const std::function<void(std::size_t)>& updated);
  const Tensor& norm() const { return norm_; }  ///< f64 [1] on the device, of the last step()

  const std::vector<ParameterShard*>& shards() const { return shards_; }  ///< units, then the table
  const std::vector<State>& states() const { return states_; }            ///< by shard
  const OptimizerOptions& options() const { return options_; }

 private:
  struct Segment {  ///< neighbouring elements of a shard that are updated alike
    std::size_t shard = 0;
    std::int64_t begin = 0, count = 0;
    bool decay = false;
  };
  void find_segments(const ParameterTable& table, std::size_t shard);
  void compute_norm(Stream& stream);

  OptimizerOptions options_;
  Mesh* mesh_;
  std::vector<ParameterShard*> shards_;
  std::vector<State> states_;
  std::vector<Segment> segments_;
  Tensor sums_;    ///< f64 [shards]: squared norms of the units' gradients, then of the table's
  Tensor norm_;    ///< f64 [1]
  Tensor factor_;  ///< f32 or f64 [1]
  bool units_bring_squares_ = false;
};

}  // namespace lapidary
