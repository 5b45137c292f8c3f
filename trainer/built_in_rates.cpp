// Rates of the project's own cards, in the form of a file of rates (trainer/rates.h): from the tables of
// operations that `lapidary bench step` printed for the 12B, and of collectives from two cards' NVLink.
// docs/performance.md compares what is forecast from them with what was measured.
#include "trainer/rates.h"

namespace lapidary {

namespace {

constexpr const char* kMeasured[] = {
    R"({"device": "NVIDIA H200", "type": "bf16", "ranks": 2, "tokens": 4096,
  "source": "bench step on two H200s, 4,096 tokens", "rates": {
  "AdamW": 3.836e+12, "Attention d = 256": 4.082e+14, "Attention d = 512": 4.681e+14,
  "AttentionBackward d = 256": 3.2e+14, "AttentionBackward d = 512": 3.451e+14, "ClipFactor": 5.6e+06,
  "Copy": 9.609e+11, "EmbeddingBackward": 5.096e+11, "EmbeddingLookup": 1.532e+12, "Fill": 8.15e+11,
  "GeGlu": 3.758e+12, "GeGluBackward": 3.918e+12, "LossCombine": 1.44e+10, "LossGradient": 7.114e+14,
  "LossScores": 7.202e+14, "MatMul forward": 7.089e+14, "MatMul input gradient": 6.657e+14,
  "MatMul weight gradient": 6.63e+14, "QkvNormRope": 2.495e+12, "QkvNormRopeBackward": 2.316e+12,
  "RankSum": 4.069e+12, "ResidualNorm": 3.008e+12, "ResidualNormBackward": 2.579e+12, "RmsNorm": 2.824e+12,
  "RmsNormBackward": 2.62e+12, "RopeTable": 3.3e+11, "SquaredNorm": 3.55e+12, "all-gather": 2.55e+11,
  "reduce-scatter": 2.44e+11}})",
    R"({"device": "NVIDIA H200", "type": "bf16", "ranks": 2, "tokens": 8192,
  "source": "bench step on two H200s, 8,192 tokens", "rates": {
  "AdamW": 3.849e+12, "Attention d = 256": 4.502e+14, "Attention d = 512": 5.083e+14,
  "AttentionBackward d = 256": 3.592e+14, "AttentionBackward d = 512": 3.771e+14, "ClipFactor": 5.6e+06,
  "Copy": 9.857e+11, "EmbeddingBackward": 6.344e+11, "EmbeddingLookup": 1.476e+12, "Fill": 6.84e+11,
  "GeGlu": 3.882e+12, "GeGluBackward": 3.866e+12, "LossCombine": 1.38e+10, "LossGradient": 6.549e+14,
  "LossScores": 6.697e+14, "MatMul forward": 6.981e+14, "MatMul input gradient": 6.668e+14,
  "MatMul weight gradient": 6.775e+14, "QkvNormRope": 2.603e+12, "QkvNormRopeBackward": 2.671e+12,
  "RankSum": 3.889e+12, "ResidualNorm": 3.618e+12, "ResidualNormBackward": 3.025e+12, "RmsNorm": 3.32e+12,
  "RmsNormBackward": 3.25e+12, "RopeTable": 6.274e+11, "SquaredNorm": 3.575e+12, "all-gather": 2.55e+11,
  "reduce-scatter": 2.44e+11}})",
    R"({"device": "NVIDIA H100 80GB HBM3", "type": "bf16", "ranks": 1, "tokens": 4096,
  "source": "bench step on one H100, 4,096 tokens, older attention kernels, memory-bound passes all at their common rate", "rates": {
  "AdamW over the bus": 1.46e+11, "Attention d = 256": 4.184e+14, "Attention d = 512": 2.347e+14,
  "AttentionBackward d = 256": 2.23e+14, "AttentionBackward d = 512": 2.187e+14,
  "ClipFactor": 2.461e+12, "EmbeddingBackward": 2.461e+12, "EmbeddingLookup": 2.461e+12,
  "Fill": 2.461e+12, "GeGlu": 2.461e+12, "GeGluBackward": 2.461e+12, "LossCombine": 2.445e+09,
  "LossGradient": 5.343e+14, "LossScores": 4.638e+14, "MatMul forward": 7.621e+14,
  "MatMul input gradient": 7.253e+14, "MatMul weight gradient": 7.174e+14, "QkvNormRope": 2.461e+12,
  "QkvNormRopeBackward": 2.461e+12, "ResidualNorm": 2.461e+12, "ResidualNormBackward": 2.461e+12,
  "RmsNorm": 2.461e+12, "RmsNormBackward": 2.461e+12, "RopeTable": 2.461e+12, "SquaredNorm": 2.461e+12,
  "between operations": 6.1e+05}})",
    R"({"device": "NVIDIA H200", "type": "bf16", "ranks": 1, "tokens": 4096,
  "source": "bench step on one H200, 4,096 tokens", "rates": {
  "AdamW": 3.961e+12, "Attention d = 256": 4.303e+14, "Attention d = 512": 4.617e+14,
  "AttentionBackward d = 256": 3.176e+14, "AttentionBackward d = 512": 3.204e+14, "ClipFactor": 7e+06,
  "EmbeddingBackward": 5.899e+11, "EmbeddingLookup": 2.03e+12, "Fill": 1.74e+12, "GeGlu": 3.862e+12,
  "GeGluBackward": 3.912e+12, "LossCombine": 2.601e+09, "LossGradient": 5.525e+14,
  "LossScores": 6.515e+14, "MatMul forward": 6.897e+14, "MatMul input gradient": 6.861e+14,
  "MatMul weight gradient": 6.813e+14, "QkvNormRope": 2.623e+12, "QkvNormRopeBackward": 2.201e+12,
  "ResidualNorm": 3.185e+12, "ResidualNormBackward": 2.008e+12, "RmsNorm": 3.002e+12,
  "RmsNormBackward": 2.318e+12, "RopeTable": 1.917e+11, "SquaredNorm": 4.021e+12,
  "between operations": 6.125e+05}})",
    R"({"device": "NVIDIA H200", "type": "bf16", "ranks": 1, "tokens": 8192,
  "source": "bench step on one H200, 8,192 tokens", "rates": {
  "AdamW": 3.97e+12, "Attention d = 256": 4.696e+14, "Attention d = 512": 4.861e+14,
  "AttentionBackward d = 256": 3.275e+14, "AttentionBackward d = 512": 3.393e+14, "ClipFactor": 7e+06,
  "EmbeddingBackward": 6.09e+11, "EmbeddingLookup": 2.736e+12, "Fill": 1.72e+12, "GeGlu": 3.934e+12,
  "GeGluBackward": 3.952e+12, "LossCombine": 2.601e+09, "LossGradient": 5.428e+14,
  "LossScores": 6.422e+14, "MatMul forward": 6.816e+14, "MatMul input gradient": 6.822e+14,
  "MatMul weight gradient": 6.908e+14, "QkvNormRope": 2.771e+12, "QkvNormRopeBackward": 2.41e+12,
  "ResidualNorm": 3.701e+12, "ResidualNormBackward": 2.45e+12, "RmsNorm": 3.563e+12,
  "RmsNormBackward": 2.746e+12, "RopeTable": 3.162e+11, "SquaredNorm": 4.023e+12,
  "between operations": 6.026e+05}})"};

}  // namespace

const std::vector<RateSet>& built_in_rates() {
  static const std::vector<RateSet> sets = [] {
    std::vector<RateSet> out;
    for (const char* text : kMeasured) out.push_back(parse_rate_set(text, "the built-in rates"));
    return out;
  }();
  return sets;
}

}  // namespace lapidary
