// How much scratch every operation takes on each device, in one place: a plan needs the sizes of a device
// that is not there, so nothing here may depend on how the program was built.
#include "kernels/cpu/add_rows.h"
#include "kernels/cpu/attention_backward.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/ops.h"

namespace lapidary {

namespace {

std::size_t row_sum_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(row_sum_count(rows, columns)) * sizeof(double);
}

std::size_t addition_bytes(std::int64_t additions) {
  return static_cast<std::size_t>(additions) * sizeof(RowAddition);
}

}  // namespace

std::size_t RmsNormBackward::scratch_bytes(Device) const {
  return d_weight ? row_sum_bytes(x.rows(), x.cols()) : 0;
}

std::size_t ResidualNormBackward::scratch_bytes(Device) const {
  return row_sum_bytes(branch.rows(), (next_weight ? 2 : 1) * branch.cols());
}

std::size_t LayerNormBackward::scratch_bytes(Device) const {
  return row_sum_bytes(x.rows(), 2 * x.cols());
}

std::size_t QkvNormRopeBackward::scratch_bytes(Device) const {
  return row_sum_bytes(qkv.rows(), 2 * q_weight.numel());
}

std::size_t Attention::scratch_bytes(Device) const {
  return 0;
}

std::size_t AttentionBackward::scratch_bytes(Device) const {
  return attention_backward_scratch(*this);
}

std::size_t EmbeddingBackward::scratch_bytes(Device) const {
  return addition_bytes(ids.numel());
}

std::size_t BiasBackward::scratch_bytes(Device) const {
  return row_sum_bytes(dy.rows(), dy.cols());
}

std::size_t GridEmbeddingBackward::scratch_bytes(Device) const {
  return addition_bytes(xy.numel());
}

std::size_t LossScores::scratch_bytes(Device) const {
  return 0;
}

std::size_t LossGradient::scratch_bytes(Device) const {
  return 0;
}

std::size_t SquaredNorm::scratch_bytes(Device) const {
  return 0;
}

/// The CPU keeps the capped logits in computing precision; a GPU keeps exponentials in bf16 where the
/// activations are bf16 (architecture, decision 7).
DType loss_score_dtype(Device device, DType activations) {
  if (activations == DType::bf16 && device == Device::cpu) return DType::f32;
  return activations;
}

}  // namespace lapidary
