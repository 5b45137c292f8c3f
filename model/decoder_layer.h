// One decoder layer: forward, and the backward pass written by hand (specification 3.3 to 3.6).
#pragma once
#include "kernels/ops.h"
#include "model/activations.h"
#include "model/parameter_table.h"
#include "parallel/sharded_units.h"

namespace lapidary {

/// What all layers of a kind share in a micro-batch.
struct AttentionInputs {
  Tensor lo, hi;                          ///< i32 [N] visible keys
  Tensor cos, sin;                        ///< [N, rotated pairs]
  const std::int32_t* host_lo = nullptr;  ///< lo and hi in host memory
  const std::int32_t* host_hi = nullptr;
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const LayerConfig& layer, const LayerParameters& parameters,
               ShardedUnits& units)
      : config_(&config), layer_(&layer), p_(&parameters), units_(&units) {}

  /// Reads a.x and writes every other activation and `out` [N, D]. All of `a` must be allocated. The unit's
  /// weights must be gathered.
  void forward(Stream& stream, const AttentionInputs& inputs, const LayerActivations& a,
               const Tensor& out) const;

  /// dx [N, D] holds the gradient of the layer's output and receives that of its input; the weights'
  /// gradients are added to the unit's. `kept` is what allocate_kept gave and forward filled; what the policy
  /// left out is computed again, and kept.gate_up is overwritten.
  void backward(Stream& stream, const AttentionInputs& inputs, const ActivationShape& shape,
                ActivationPolicy policy, Arena& arena, LayerActivations kept, const Tensor& dx) const;

  const LayerConfig& config() const { return *layer_; }
  int unit() const { return p_->unit; }

 private:
  void attention_forward(Stream& stream, const AttentionInputs& inputs, const LayerActivations& a) const;
  void mlp_forward(Stream& stream, const LayerActivations& a, const Tensor& out) const;
  /// y = rms(x) with the weight of parameter `norm`.
  void normalize(Stream& stream, const Tensor& x, int norm, const Tensor& y, const Tensor& rstd) const;
  void project_qkv(Stream& stream, const LayerActivations& a) const;
  void project_gate_up(Stream& stream, const LayerActivations& a) const;
  void split_heads(Stream& stream, const AttentionInputs& inputs, const LayerActivations& a) const;
  void mlp_backward(Stream& stream, const ActivationShape& shape, Arena& arena, const LayerActivations& a,
                    bool product_kept, const Tensor& dx, const Tensor& d_mlp_in) const;
  void attention_backward(Stream& stream, const AttentionInputs& inputs, const ActivationShape& shape,
                          Arena& arena, const LayerActivations& a, const Tensor& d_projected,
                          const Tensor& dx) const;
  void weight_gradient(Stream& stream, const Tensor& d_out, const Tensor& in, const Tensor& gradient) const;

  Tensor weight(int parameter) const { return units_->weight(parameter); }
  Tensor gradient(int parameter) const { return units_->gradient(parameter); }

  const ModelConfig* config_;
  const LayerConfig* layer_;
  const LayerParameters* p_;
  ShardedUnits* units_;
};

}  // namespace lapidary
