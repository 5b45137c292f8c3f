// How much scratch every operation takes on each device, in one place: a plan needs the sizes of a device
// that is not there, so nothing here may depend on how the program was built.
#include "kernels/cpu/add_rows.h"
#include "kernels/cpu/attention_backward.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/cuda/attention256_plan.h"
#include "kernels/cuda/attention512_plan.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/loss_plan.h"
#include "kernels/cuda/partials.h"
#include "kernels/ops.h"

namespace lapidary {

namespace {

/// A weight gradient: sums over rows, in parts.
std::size_t row_sum_bytes(Device device, std::int64_t rows, std::int64_t columns) {
  if (device == Device::cuda) return partial_bytes(rows, columns);
  return static_cast<std::size_t>(row_sum_count(rows, columns)) * sizeof(double);
}

/// The order in which rows are added to a table.
std::size_t addition_bytes(Device device, std::int64_t additions) {
  return static_cast<std::size_t>(additions) *
         (device == Device::cuda ? sizeof(std::int32_t) : sizeof(RowAddition));
}

template <class Op>
AttentionSizes attention_sizes(const Op& op) {
  return {op.q.size(0), op.q.size(1), op.k.size(1), op.q.size(2)};
}

}  // namespace

std::size_t RmsNormBackward::scratch_bytes(Device device) const {
  return d_weight ? row_sum_bytes(device, x.rows(), x.cols()) : 0;
}

std::size_t ResidualNormBackward::scratch_bytes(Device device) const {
  return row_sum_bytes(device, branch.rows(), (next_weight ? 2 : 1) * branch.cols());
}

std::size_t LayerNormBackward::scratch_bytes(Device device) const {
  return row_sum_bytes(device, x.rows(), 2 * x.cols());
}

std::size_t QkvNormRopeBackward::scratch_bytes(Device device) const {
  return row_sum_bytes(device, qkv.rows(), 2 * q_weight.numel());
}

std::size_t Attention::scratch_bytes(Device device) const {
  if (device == Device::cpu) return 0;
  const AttentionSizes sizes = attention_sizes(*this);
  if (attention512_applies(sizes, q.dtype())) return kAttention512ForwardScratch;
  return attention256_applies(sizes, q.dtype()) ? kAttention256Scratch : forward_score_bytes(sizes);
}

std::size_t AttentionBackward::scratch_bytes(Device device) const {
  if (device == Device::cpu) return attention_backward_scratch(*this);
  const AttentionSizes sizes = attention_sizes(*this);
  if (attention512_applies(sizes, q.dtype())) return attention512_scratch(sizes).total();
  return attention256_applies(sizes, q.dtype()) ? attention256_backward_scratch(sizes).total()
                                                : backward_scratch(sizes).total();
}

std::size_t EmbeddingBackward::scratch_bytes(Device device) const {
  return addition_bytes(device, ids.numel());
}

std::size_t BiasBackward::scratch_bytes(Device device) const {
  if (device == Device::cuda)
    return static_cast<std::size_t>(bias_partial_rows(dy.rows()) * dy.cols()) * sizeof(float);
  return row_sum_bytes(device, dy.rows(), dy.cols());
}

std::size_t GridEmbeddingBackward::scratch_bytes(Device device) const {
  return addition_bytes(device, xy.numel());
}

std::size_t LossScores::scratch_bytes(Device device) const {
  if (device == Device::cpu || hidden.dtype() != DType::bf16) return 0;
  return loss_scores_fit(hidden, scores, cap) ? ScoreScratch(hidden.rows(), table.rows()).total()
                                              : loss_block_bytes(hidden.rows(), table.rows());
}

std::size_t LossGradient::scratch_bytes(Device device) const {
  if (device == Device::cpu) return 0;
  if (hidden.dtype() != DType::bf16) {
    if (d_table.dtype() == hidden.dtype()) return 0;
    return static_cast<std::size_t>(loss_piece_rows(table.rows(), table.cols()) * table.cols()) *
           sizeof(float);
  }
  return loss_gradient_scratch(hidden.rows(), hidden.cols(), table.rows(), label_smoothing != 0).total();
}

std::size_t SquaredNorm::scratch_bytes(Device device) const {
  return device == Device::cuda ? static_cast<std::size_t>(kNormBlocks) * sizeof(double) : 0;
}

std::size_t RankSum::scratch_bytes(Device device) const {
  if (device == Device::cpu || !squares) return 0;
  return static_cast<std::size_t>(rank_sum_blocks(out.numel())) * sizeof(double);
}

/// The CPU keeps the capped logits in computing precision; a GPU keeps exponentials in bf16 where the
/// activations are bf16 (architecture, decision 7).
DType loss_score_dtype(Device device, DType activations) {
  if (activations == DType::bf16 && device == Device::cpu) return DType::f32;
  return activations;
}

std::int64_t loss_score_stride(Device device, std::int64_t rows) {
  constexpr std::int64_t kLine = 64;  // 128 bytes of bf16: what TMA and the cache move at a time
  return device == Device::cpu ? rows : (rows + kLine - 1) / kLine * kLine;
}

std::int64_t loss_tiles(Device device, DType activations, std::int64_t rows) {
  return device == Device::cuda && activations == DType::bf16 ? product_tiles(rows, kProductColumns) : 0;
}

bool loss_statistics_alone(Device device, DType activations, std::int64_t width, double cap) {
  return device == Device::cuda && activations == DType::bf16 && width % 8 == 0 && cap > 0;
}

}  // namespace lapidary
