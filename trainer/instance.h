// A model that can run: device, memory, mesh, sharded parameters, optimizer and the model over them, put
// together from options; and the same put together on a device that only counts, which is the memory plan.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/gemma4.h"
#include "model/parameter_table.h"
#include "parallel/mesh.h"
#include "trainer/optimizer.h"

namespace lapidary {

struct InstanceOptions {
  ModelOptions model;
  ShardingOptions sharding;
  std::optional<OptimizerOptions> optimizer;  ///< absent: evaluation only, no gradients are ever computed
};

/// Sizes of the arenas of a rank, bytes.
struct MemorySizes {
  std::size_t state = 0;        ///< weight shards, gradient shards, optimizer state
  std::size_t transient = 0;    ///< gathered weights and whole gradients of the units in use
  std::size_t activations = 0;  ///< a micro-batch's inputs and activations
  std::size_t workspace = 0;    ///< scratch of operations, the loss head's chunk
  std::size_t host = 0;         ///< optimizer state that is kept in host memory
  /// Of the device's memory.
  std::size_t total() const { return state + transient + activations + workspace; }
  bool operator==(const MemorySizes&) const = default;
};

class Instance {
 public:
  /// `sizes` are the arenas' capacities; on a plan backend they do not matter. All references must outlive
  /// the instance.
  Instance(const ModelConfig& config, const ParameterTable& table, const InstanceOptions& options, Mesh& mesh,
           Backend& backend, const MemorySizes& sizes);

  Stream& stream() { return *stream_; }
  Gemma4& model() { return *model_; }
  bool has_optimizer() const { return optimizer_ != nullptr; }
  Optimizer& optimizer();
  const ParameterTable& table() const { return *table_; }
  const std::vector<ParameterShard*>& shards() const {
    return shards_;
  }  ///< units, then the vocabulary table
  /// Weights were written from outside (initialised, loaded, resumed): gathered copies and masters follow.
  void weights_loaded();
  /// The same, with masters restored from a checkpoint already.
  void weights_resumed() { units_->weights_changed(); }

  /// A step's gradients and totals start at zero.
  void begin_step();
  void run_training(const Batch& batch, double grad_scale, bool last) {
    model_->train(*stream_, batch, grad_scale, last, totals_);
  }
  /// Somebody copies the state: the next update comes after this event, forward and backward do not wait.
  void hold_state_until(Event copied) { held_until_ = std::move(copied); }
  /// Update with the accumulated gradients.
  void finish_step(double lr, std::int64_t step);

  void begin_evaluation() { run(*stream_, Fill{.x = totals_}); }
  void run_evaluation(const Batch& batch, const TokenResults& tokens = {}) {
    model_->evaluate(*stream_, batch, totals_, tokens);
  }

  /// Copies to the host and waits: this rank's loss totals since begin_step() or begin_evaluation(), to be
  /// summed over the world, and the norm of the last finish_step().
  std::vector<double> read_totals();
  double read_norm();
  /// Reads all weights that this rank holds, and waits.
  bool weights_finite();

  MemorySizes peaks() const;  ///< the most that each arena has held

 private:
  const ParameterTable* table_;
  Backend* backend_;
  Arena state_, transient_, activations_, workspace_, host_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<ShardedUnits> units_;
  std::unique_ptr<VocabularyTable> vocabulary_;
  std::vector<ParameterShard*> shards_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Gemma4> model_;
  Tensor totals_;  ///< f64 [kLossTotals]
  Event held_until_;
};

/// Runs a step and an evaluation on a device that only counts: what an instance with these options needs on
/// this rank.
MemorySizes plan_memory(const ModelConfig& config, const ParameterTable& table,
                        const InstanceOptions& options, const MeshShape& mesh, Device device);

/// A batch of `tokens` tokens with as many image and sound tokens as matter for memory, for dry runs and
/// benchmarks: contents are valid and meaningless.
Batch synthetic_batch(const ModelConfig& config, std::int64_t tokens, std::int64_t sequence_length,
                      ImageAttention rule = ImageAttention::sliding);

}  // namespace lapidary
