// The loss head's three products on Hopper, with the epilogues that cuBLASLt lacks
// (kernels/cuda/product.cuh).
#pragma once
#include "kernels/device.h"
#include "kernels/ops.h"

namespace lapidary {

/// LossScores in bf16 with a cap, where loss_scores_fit: one product whose epilogue makes
/// exp(l - cap) (1 - (l / cap)^2) and the statistics. Scores may be absent. scratch: ScoreScratch.
void score_product(Stream& stream, const LossScores& op);

/// d_hidden = scores table and d_table += scores^T scaled. With a float32 gradient of the table both run in
/// one launch: the first is bound by the tensor cores, the second, in short chunks, by memory.
struct GradientProducts {
  Tensor scores;    ///< bf16 [C, R]
  Tensor table;     ///< bf16 [R, D]
  Tensor scaled;    ///< bf16 [C, D]
  Tensor d_hidden;  ///< f32 [C, D]
  Tensor d_table;   ///< acc f32 or bf16 [R, D]
  int* parts;       ///< LossGradientScratch::parts
};
void gradient_products(Stream& stream, const GradientProducts& products);

}  // namespace lapidary
