// Which activations of a decoder layer are kept for its backward pass, and which are computed again: one
// policy, here.
#pragma once
#include <cstdint>

#include "kernels/arena.h"
#include "kernels/tensor.h"
#include "model/config.h"

namespace lapidary {

enum class ActivationPolicy : std::uint8_t {
  keep,               ///< everything
  recompute_cheap,    ///< norms, q/k norm and rotation and the GeGLU product are computed again; no matrix
                      ///< product is
  recompute_gate_up,  ///< also the gate and up projections
  recompute_block,    ///< only a layer's input is kept
};

/// The policy that keeps the next more; of keep itself.
constexpr ActivationPolicy richer(ActivationPolicy policy) {
  return policy == ActivationPolicy::keep
             ? policy
             : static_cast<ActivationPolicy>(static_cast<std::uint8_t>(policy) - 1);
}

/// A decoder layer's activations for N tokens; D width, F MLP width, T the activation type, R its
/// accumulation type. A default Tensor is one that is not there (yet).
struct LayerActivations {
  Tensor x;               ///< T [N, D] input of the layer
  Tensor normed;          ///< T [N, D] after input_layernorm
  Tensor normed_rstd;     ///< R [N]
  Tensor qkv;             ///< T [N, qkv width]
  Tensor q, k, v;         ///< T [N, H, d], [N, KV, d], [N, KV, d]
  Tensor qkv_rstd;        ///< R [N, H + 2 KV]
  Tensor attended, lse;   ///< T [N, H, d], R [H, N]
  Tensor projected;       ///< T [N, D] o_proj's output
  Tensor projected_rstd;  ///< R [N]
  Tensor middle;          ///< T [N, D] residual stream after attention
  Tensor mlp_in;          ///< T [N, D] after pre_feedforward_layernorm
  Tensor mlp_in_rstd;     ///< R [N]
  Tensor gate_up;         ///< T [N, 2 F]
  Tensor product;         ///< T [N, F] gelu(gate) up
  Tensor mlp_out;         ///< T [N, D]
  Tensor mlp_out_rstd;    ///< R [N]
};

/// Sizes that the activations' memory is planned for: `tokens` of the current micro-batch, room for
/// `capacity`.
struct ActivationShape {
  std::int64_t tokens = 0, capacity = 0;
  DType type = DType::f32;
  DType accumulation() const { return type == DType::f64 ? DType::f64 : DType::f32; }
};

/// A [tokens, columns] tensor with room for `capacity` tokens, so that the plan does not depend on the batch.
Tensor allocate_rows(Arena& arena, const ActivationShape& shape, DType type, std::int64_t columns);

/// Allocates what the policy keeps between forward and backward; x included.
LayerActivations allocate_kept(Arena& arena, const ActivationShape& shape, const ModelConfig& config,
                               const LayerConfig& layer, ActivationPolicy policy);
/// Allocates what is missing for a forward pass of the layer.
void allocate_missing(Arena& arena, const ActivationShape& shape, const ModelConfig& config,
                      const LayerConfig& layer, LayerActivations& activations);

}  // namespace lapidary
