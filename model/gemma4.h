// The whole model for one micro-batch: embeddings, decoder layers, loss; forward and backward over sharded
// weights.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "kernels/batch.h"
#include "model/activations.h"
#include "model/decoder_layer.h"
#include "model/device_batch.h"
#include "model/embedders.h"
#include "model/loss_head.h"

namespace lapidary {

struct ModelOptions {
  DType type = DType::f32;  ///< of activations and working weights
  ActivationPolicy activations = ActivationPolicy::keep;
  std::int64_t richer_layers = 0;  ///< so many, from the first, keep what richer(activations) keeps
  LossOptions loss;
  std::int64_t capacity = 0;  ///< most tokens of a micro-batch on any rank
  FeatureTypes features;

  ActivationPolicy policy_of(std::size_t layer) const {
    return static_cast<std::int64_t>(layer) < richer_layers ? richer(activations) : activations;
  }
};

/// Called with a name ("inputs_embeds", "hidden.3") and its tensor [N, D] while it is valid on the compute
/// stream. hidden.0 is the first layer's input, hidden.L (L layers) the state after the final norm, as
/// transformers counts.
using Observer = std::function<void(const std::string&, const Tensor&)>;

class Gemma4 {
 public:
  /// The arena takes a micro-batch's inputs and activations; the stream's workspace the rest. All references
  /// must outlive the model.
  Gemma4(const ModelConfig& config, const ParameterTable& table, const ModelOptions& options,
         ShardedUnits& units, VocabularyTable& vocabulary, Arena& arena);

  /// Forward and backward. Adds grad_scale * (sum of token losses)'s gradients to the shards and the sums of
  /// the loss to totals (f64 [kLossTotals], see LossHead). last: the micro-batch that ends a step. Collective
  /// over all ranks.
  void train(Stream& stream, const Batch& batch, double grad_scale, bool last, const Tensor& totals);
  /// Forward only; adds to totals.
  void evaluate(Stream& stream, const Batch& batch, const Tensor& totals, const TokenResults& tokens);

  void observe(Observer observer) { observer_ = std::move(observer); }
  const ModelConfig& config() const { return *config_; }

 private:
  struct Pass;  // what the parts of one micro-batch share
  void begin_pass(Stream& stream, const Batch& batch, Pass& pass);
  void embed(Pass& pass, const Tensor& x);
  void head(Pass& pass, const Tensor& x, double grad_scale, const Tensor& totals, const TokenResults& tokens,
            const Tensor& dx);
  void head_backward(Pass& pass, const Tensor& x, const Tensor& dx);
  void embed_backward(Pass& pass, const Tensor& dx);
  void report(const std::string& name, const Tensor& tensor) const;
  const AttentionInputs& inputs(const Pass& pass, const DecoderLayer& layer) const;

  const ModelConfig* config_;
  const ParameterTable* table_;
  ModelOptions options_;
  ShardedUnits* units_;
  VocabularyTable* vocabulary_;
  Arena* arena_;
  BatchUploader uploader_;
  Embedders embedders_;
  LossHead loss_head_;
  std::vector<DecoderLayer> layers_;
  double embedding_scale_;
  Observer observer_;
};

}  // namespace lapidary
