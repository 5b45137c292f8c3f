// The bytes that an operation bound by memory has to move at least: what it reads, once, and what it writes,
// once. The floor that its time is measured against is this over the rate of a copy.
#pragma once

namespace lapidary {

// Operations of kernels/ops.h. Rows of a table that are looked up count as if all were in this shard.
double traffic_of(const struct RmsNorm& op);
double traffic_of(const struct RmsNormBackward& op);
double traffic_of(const struct ResidualNorm& op);
double traffic_of(const struct ResidualNormBackward& op);
double traffic_of(const struct LayerNorm& op);
double traffic_of(const struct LayerNormBackward& op);
double traffic_of(const struct RopeTable& op);
double traffic_of(const struct QkvNormRope& op);
double traffic_of(const struct QkvNormRopeBackward& op);
double traffic_of(const struct GeGlu& op);
double traffic_of(const struct GeGluBackward& op);
double traffic_of(const struct EmbeddingLookup& op);
double traffic_of(const struct EmbeddingBackward& op);
double traffic_of(const struct ScatterRows& op);
double traffic_of(const struct GatherRows& op);
double traffic_of(const struct ConvertFeatures& op);
double traffic_of(const struct AddBias& op);
double traffic_of(const struct BiasBackward& op);
double traffic_of(const struct GridEmbedding& op);
double traffic_of(const struct GridEmbeddingBackward& op);
double traffic_of(const struct LossCombine& op);
double traffic_of(const struct AdamW& op);
double traffic_of(const struct SquaredNorm& op);
double traffic_of(const struct ClipFactor& op);
double traffic_of(const struct Fill& op);
double traffic_of(const struct Copy& op);
double traffic_of(const struct Add& op);
double traffic_of(const struct RankSum& op);
double traffic_of(const struct FillNormal& op);

}  // namespace lapidary
