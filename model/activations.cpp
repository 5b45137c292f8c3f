#include "model/activations.h"

#include <functional>

namespace lapidary {

namespace {

/// The least policy under which a tensor is no longer kept; keep is the least of all, recompute_block the
/// most.
enum class Kept : std::uint8_t { until_cheap = 1, until_gate_up = 2, until_block = 3, always = 4 };

/// Calls allocate(tensor, kept, type, shape...) for every activation: the one list of what exists and how
/// long it stays.
void for_each(LayerActivations& a, const ActivationShape& s, const ModelConfig& c, const LayerConfig& l,
              const std::function<void(Tensor&, Kept, DType, std::int64_t)>& visit) {
  const DType t = s.type, r = s.accumulation();
  const std::int64_t heads = l.heads + 2 * l.kv_heads;
  visit(a.x, Kept::always, t, c.width);
  visit(a.normed, Kept::until_cheap, t, c.width);
  visit(a.normed_rstd, Kept::until_block, r, 1);
  visit(a.qkv, Kept::until_block, t, l.qkv_width());
  visit(a.q, Kept::until_cheap, t, l.q_width());
  visit(a.k, Kept::until_cheap, t, l.kv_width());
  visit(a.v, Kept::until_cheap, t, l.kv_width());
  visit(a.qkv_rstd, Kept::until_block, r, heads);
  visit(a.attended, Kept::until_block, t, l.q_width());
  visit(a.lse, Kept::until_block, r, l.heads);
  visit(a.projected, Kept::until_block, t, c.width);
  visit(a.projected_rstd, Kept::until_block, r, 1);
  visit(a.middle, Kept::until_block, t, c.width);
  visit(a.mlp_in, Kept::until_cheap, t, c.width);
  visit(a.mlp_in_rstd, Kept::until_block, r, 1);
  visit(a.gate_up, Kept::until_gate_up, t, 2 * c.mlp_width);
  visit(a.product, Kept::until_cheap, t, c.mlp_width);
  visit(a.mlp_out, Kept::until_block, t, c.width);
  visit(a.mlp_out_rstd, Kept::until_block, r, 1);
}

/// The views that operations expect: heads apart, statistics as vectors, lse by head.
void shape_views(LayerActivations& a, const ActivationShape& s, const LayerConfig& l) {
  const auto as_heads = [&](Tensor& t, std::int64_t heads) {
    if (t) t = t.reshape({s.tokens, heads, l.head_dim});
  };
  as_heads(a.q, l.heads);
  as_heads(a.k, l.kv_heads);
  as_heads(a.v, l.kv_heads);
  as_heads(a.attended, l.heads);
  if (a.lse) a.lse = Tensor(a.lse.data(), a.lse.dtype(), {l.heads, s.tokens});
  for (Tensor* t : {&a.normed_rstd, &a.projected_rstd, &a.mlp_in_rstd, &a.mlp_out_rstd}) {
    if (*t) *t = t->reshape({s.tokens});
  }
}

}  // namespace

Tensor allocate_rows(Arena& arena, const ActivationShape& shape, DType type, std::int64_t columns) {
  return arena.allocate(type, {shape.capacity, columns}).row_range(0, shape.tokens);
}

LayerActivations allocate_kept(Arena& arena, const ActivationShape& shape, const ModelConfig& config,
                               const LayerConfig& layer, ActivationPolicy policy) {
  LayerActivations out;
  for_each(out, shape, config, layer, [&](Tensor& t, Kept kept, DType type, std::int64_t columns) {
    if (static_cast<int>(kept) > static_cast<int>(policy)) t = allocate_rows(arena, shape, type, columns);
  });
  shape_views(out, shape, layer);
  return out;
}

void allocate_missing(Arena& arena, const ActivationShape& shape, const ModelConfig& config,
                      const LayerConfig& layer, LayerActivations& activations) {
  for_each(activations, shape, config, layer, [&](Tensor& t, Kept, DType type, std::int64_t columns) {
    if (!t) t = allocate_rows(arena, shape, type, columns);
  });
  shape_views(activations, shape, layer);
}

}  // namespace lapidary
