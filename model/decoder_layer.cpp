#include "model/decoder_layer.h"

namespace lapidary {

// -------------------------------------------------------------------------------------------------------
// forward

void DecoderLayer::normalize(Stream& stream, const Tensor& x, int norm, const Tensor& y,
                             const Tensor& rstd) const {
  run(stream, RmsNorm{.x = x, .weight = weight(norm), .y = y, .rstd = rstd, .eps = config_->rms_eps});
}

void DecoderLayer::project_qkv(Stream& stream, const LayerActivations& a) const {
  run(stream,
      MatMul{.a = a.normed, .b = units_->weight(p_->q, p_->qkv_count), .c = a.qkv, .transpose_b = true});
}

void DecoderLayer::project_gate_up(Stream& stream, const LayerActivations& a) const {
  run(stream, MatMul{.a = a.mlp_in, .b = units_->weight(p_->gate, 2), .c = a.gate_up, .transpose_b = true});
}

void DecoderLayer::split_heads(Stream& stream, const AttentionInputs& inputs,
                               const LayerActivations& a) const {
  run(stream, QkvNormRope{.qkv = a.qkv,
                          .q_weight = weight(p_->q_norm),
                          .k_weight = weight(p_->k_norm),
                          .cos = inputs.cos,
                          .sin = inputs.sin,
                          .shared_kv = layer_->shared_kv,
                          .q = a.q,
                          .k = a.k,
                          .v = a.v,
                          .rstd = a.qkv_rstd,
                          .eps = config_->rms_eps});
}

void DecoderLayer::attention_forward(Stream& stream, const AttentionInputs& inputs,
                                     const LayerActivations& a) const {
  normalize(stream, a.x, p_->input_norm, a.normed, a.normed_rstd);
  project_qkv(stream, a);
  split_heads(stream, inputs, a);
  run(stream, Attention{.q = a.q,
                        .k = a.k,
                        .v = a.v,
                        .lo = inputs.lo,
                        .hi = inputs.hi,
                        .out = a.attended,
                        .lse = a.lse,
                        .host_lo = inputs.host_lo,
                        .host_hi = inputs.host_hi});
  run(stream, MatMul{.a = a.attended.reshape({a.attended.rows(), layer_->q_width()}),
                     .b = weight(p_->o),
                     .c = a.projected,
                     .transpose_b = true});
  run(stream, ResidualNorm{.residual = a.x,
                           .branch = a.projected,
                           .branch_weight = weight(p_->post_attention_norm),
                           .next_weight = weight(p_->pre_mlp_norm),
                           .out = a.middle,
                           .next = a.mlp_in,
                           .branch_rstd = a.projected_rstd,
                           .next_rstd = a.mlp_in_rstd,
                           .eps = config_->rms_eps});
}

void DecoderLayer::mlp_forward(Stream& stream, const LayerActivations& a, const Tensor& out) const {
  project_gate_up(stream, a);
  run(stream, GeGlu{.gate_up = a.gate_up, .out = a.product});
  run(stream, MatMul{.a = a.product, .b = weight(p_->down), .c = a.mlp_out, .transpose_b = true});
  run(stream, ResidualNorm{.residual = a.middle,
                           .branch = a.mlp_out,
                           .branch_weight = weight(p_->post_mlp_norm),
                           .scale = weight(p_->layer_scalar),
                           .out = out,
                           .branch_rstd = a.mlp_out_rstd,
                           .eps = config_->rms_eps});
}

void DecoderLayer::forward(Stream& stream, const AttentionInputs& inputs, const LayerActivations& a,
                           const Tensor& out) const {
  attention_forward(stream, inputs, a);
  mlp_forward(stream, a, out);
}

// -------------------------------------------------------------------------------------------------------
// backward

void DecoderLayer::weight_gradient(Stream& stream, const Tensor& d_out, const Tensor& in,
                                   const Tensor& gradient) const {
  // Each of the layer's matrices gets one product a micro-batch; the first of a step overwrites.
  run(stream,
      MatMul{
          .a = d_out, .b = in, .c = gradient, .transpose_a = true, .accumulate = !units_->gradients_blank()});
}

void DecoderLayer::mlp_backward(Stream& stream, const ActivationShape& shape, Arena& arena,
                                const LayerActivations& a, bool product_kept, const Tensor& dx,
                                const Tensor& d_mlp_in) const {
  const Tensor d_mlp_out = allocate_rows(arena, shape, shape.type, config_->width);
  run(stream, ResidualNormBackward{.d_out = dx,
                                   .branch = a.mlp_out,
                                   .branch_weight = weight(p_->post_mlp_norm),
                                   .scale = weight(p_->layer_scalar),
                                   .branch_rstd = a.mlp_out_rstd,
                                   .d_residual = dx,
                                   .d_branch = d_mlp_out,
                                   .d_branch_weight = gradient(p_->post_mlp_norm)});
  const Tensor d_product = allocate_rows(arena, shape, shape.type, config_->mlp_width);
  run(stream, MatMul{.a = d_mlp_out, .b = weight(p_->down), .c = d_product});
  // The gradient of gate and up takes the place of their values, and the recomputed product that of its
  // gradient.
  const Tensor product = product_kept ? a.product : d_product;
  if (product_kept) weight_gradient(stream, d_mlp_out, product, gradient(p_->down));
  run(stream, GeGluBackward{.d_out = d_product,
                            .gate_up = a.gate_up,
                            .d_gate_up = a.gate_up,
                            .out = product_kept ? Tensor() : product});
  if (!product_kept) weight_gradient(stream, d_mlp_out, product, gradient(p_->down));
  weight_gradient(stream, a.gate_up, a.mlp_in, units_->gradient(p_->gate, 2));
  run(stream, MatMul{.a = a.gate_up, .b = units_->weight(p_->gate, 2), .c = d_mlp_in});
}

void DecoderLayer::attention_backward(Stream& stream, const AttentionInputs& inputs,
                                      const ActivationShape& shape, Arena& arena, const LayerActivations& a,
                                      const Tensor& d_projected, const Tensor& dx) const {
  const std::int64_t n = shape.tokens;
  const auto heads = [&](std::int64_t count) {
    return allocate_rows(arena, shape, shape.type, count * layer_->head_dim)
        .reshape({n, count, layer_->head_dim});
  };
  const Tensor d_attended = heads(layer_->heads);
  const auto as_matrix = [&](const Tensor& t) { return t.reshape({n, layer_->q_width()}); };
  run(stream, MatMul{.a = d_projected, .b = weight(p_->o), .c = as_matrix(d_attended)});
  weight_gradient(stream, d_projected, as_matrix(a.attended), gradient(p_->o));

  const Tensor d_q = heads(layer_->heads), d_k = heads(layer_->kv_heads), d_v = heads(layer_->kv_heads);
  run(stream, AttentionBackward{.d_out = d_attended,
                                .q = a.q,
                                .k = a.k,
                                .v = a.v,
                                .lo = inputs.lo,
                                .hi = inputs.hi,
                                .out = a.attended,
                                .lse = a.lse,
                                .d_q = d_q,
                                .d_k = d_k,
                                .d_v = d_v,
                                .host_lo = inputs.host_lo,
                                .host_hi = inputs.host_hi});
  const Tensor d_qkv = allocate_rows(arena, shape, shape.type, layer_->qkv_width());
  run(stream, QkvNormRopeBackward{.d_q = d_q,
                                  .d_k = d_k,
                                  .d_v = d_v,
                                  .qkv = a.qkv,
                                  .q_weight = weight(p_->q_norm),
                                  .k_weight = weight(p_->k_norm),
                                  .cos = inputs.cos,
                                  .sin = inputs.sin,
                                  .rstd = a.qkv_rstd,
                                  .shared_kv = layer_->shared_kv,
                                  .d_qkv = d_qkv,
                                  .d_q_weight = gradient(p_->q_norm),
                                  .d_k_weight = gradient(p_->k_norm)});
  weight_gradient(stream, d_qkv, a.normed, units_->gradient(p_->q, p_->qkv_count));
  // d_projected has served: its memory takes the gradient of the layer's normed input.
  run(stream, MatMul{.a = d_qkv, .b = units_->weight(p_->q, p_->qkv_count), .c = d_projected});
  run(stream, RmsNormBackward{.dy = d_projected,
                              .x = a.x,
                              .rstd = a.normed_rstd,
                              .weight = weight(p_->input_norm),
                              .dx = dx,
                              .add_to_dx = true,
                              .d_weight = gradient(p_->input_norm)});
}

void DecoderLayer::backward(Stream& stream, const AttentionInputs& inputs, const ActivationShape& shape,
                            ActivationPolicy policy, Arena& arena, LayerActivations a,
                            const Tensor& dx) const {
  ArenaScope layer_scope(arena);
  const Tensor d_mlp_in = allocate_rows(arena, shape, shape.type, config_->width);
  if (policy == ActivationPolicy::recompute_block) {
    allocate_missing(arena, shape, *config_, *layer_, a);
    forward(stream, inputs, a,
            d_mlp_in);  // its output is not needed: it lands where a gradient will be written
  }
  {
    ArenaScope scope(arena);
    if (!a.mlp_in) {
      a.mlp_in = allocate_rows(arena, shape, shape.type, config_->width);
      normalize(stream, a.middle, p_->pre_mlp_norm, a.mlp_in, a.mlp_in_rstd);
    }
    if (!a.gate_up) {
      a.gate_up = allocate_rows(arena, shape, shape.type, 2 * config_->mlp_width);
      project_gate_up(stream, a);
    }
    mlp_backward(stream, shape, arena, a, static_cast<bool>(a.product), dx, d_mlp_in);
  }
  run(stream, ResidualNormBackward{.d_out = dx,
                                   .d_next = d_mlp_in,
                                   .out = a.middle,
                                   .branch = a.projected,
                                   .branch_weight = weight(p_->post_attention_norm),
                                   .next_weight = weight(p_->pre_mlp_norm),
                                   .branch_rstd = a.projected_rstd,
                                   .next_rstd = a.mlp_in_rstd,
                                   .d_residual = dx,
                                   .d_branch = d_mlp_in,
                                   .d_branch_weight = gradient(p_->post_attention_norm),
                                   .d_next_weight = gradient(p_->pre_mlp_norm)});
  if (!a.normed) {
    a.normed = allocate_rows(arena, shape, shape.type, config_->width);
    normalize(stream, a.x, p_->input_norm, a.normed, a.normed_rstd);
  }
  if (!a.q) {
    const auto heads = [&](std::int64_t count) {
      return allocate_rows(arena, shape, shape.type, count * layer_->head_dim)
          .reshape({shape.tokens, count, layer_->head_dim});
    };
    a.q = heads(layer_->heads);
    a.k = heads(layer_->kv_heads);
    a.v = heads(layer_->kv_heads);
    split_heads(stream, inputs, a);
  }
  attention_backward(stream, inputs, shape, arena, a, d_mlp_in, dx);
}

}  // namespace lapidary
