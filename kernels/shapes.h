// What every operation demands of its tensors (shapes, element types, aliasing), checked on the host before a
// backend touches them. Free of fmt and of any device's types, so that every backend includes it.
#pragma once
#include "kernels/ops.h"

namespace lapidary {

/// Throw Error naming the operation, the field, what was found and what was expected. Values on the device
/// (indices, interval ends) are not looked at.
void check(const MatMul&);
void check(const RmsNorm&);
void check(const RmsNormBackward&);
void check(const ResidualNorm&);
void check(const ResidualNormBackward&);
void check(const LayerNorm&);
void check(const LayerNormBackward&);
void check(const RopeTable&);
void check(const QkvNormRope&);
void check(const QkvNormRopeBackward&);
void check(const Attention&);
void check(const AttentionBackward&);
void check(const GeGlu&);
void check(const GeGluBackward&);
void check(const EmbeddingLookup&);
void check(const EmbeddingBackward&);
void check(const ScatterRows&);
void check(const GatherRows&);
void check(const ConvertFeatures&);
void check(const AddBias&);
void check(const BiasBackward&);
void check(const GridEmbedding&);
void check(const GridEmbeddingBackward&);
void check(const LossScores&, Device);
void check(const LossCombine&);
void check(const LossGradient&, Device);
void check(const AdamW&);
void check(const SquaredNorm&);
void check(const ClipFactor&);
void check(const Fill&);
void check(const Copy&);
void check(const Add&);
void check(const RankSum&);
void check(const FillNormal&);

/// Sizes of a checked QkvNormRope or its backward.
struct QkvSizes {
  std::int64_t tokens, heads, kv_heads, dim, pairs;
  std::int64_t columns;    ///< of the fused projection
  std::int64_t v_column;   ///< where v is read: its own columns, or those of k with shared_kv
  std::int64_t all_heads;  ///< heads + 2 kv_heads: columns of rstd
};
QkvSizes sizes_of(const QkvNormRope&);
QkvSizes sizes_of(const QkvNormRopeBackward&);

}  // namespace lapidary
