#include "kernels/op_traffic.h"

#include "kernels/ops.h"

namespace lapidary {

namespace {

/// Bytes of the tensors that are given.
template <class... Tensors>
double moved(const Tensors&... tensors) {
  return (0.0 + ... + (tensors ? static_cast<double>(tensors.bytes()) : 0.0));
}

/// Results that are added to: read and written.
template <class... Tensors>
double updated(const Tensors&... tensors) {
  return 2 * moved(tensors...);
}

/// `rows` rows as wide as one of `like`, in its type.
double rows_of(std::int64_t rows, const Tensor& like) {
  return static_cast<double>(rows * like.cols()) * static_cast<double>(size_of(like.dtype()));
}

}  // namespace

double traffic_of(const RmsNorm& op) {
  return moved(op.x, op.weight, op.y, op.rstd);
}

double traffic_of(const RmsNormBackward& op) {
  return moved(op.dy, op.x, op.rstd, op.weight, op.dx) + (op.add_to_dx ? moved(op.dx) : 0) +
         updated(op.d_weight);
}

double traffic_of(const ResidualNorm& op) {
  return moved(op.residual, op.branch, op.branch_weight, op.scale, op.next_weight, op.out, op.next,
               op.branch_rstd, op.next_rstd);
}

double traffic_of(const ResidualNormBackward& op) {
  return moved(op.d_out, op.d_next, op.out, op.branch, op.branch_weight, op.scale, op.next_weight,
               op.branch_rstd, op.next_rstd, op.d_residual, op.d_branch) +
         updated(op.d_branch_weight, op.d_next_weight);
}

double traffic_of(const LayerNorm& op) {
  return moved(op.x, op.weight, op.bias, op.y, op.mean, op.rstd);
}

double traffic_of(const LayerNormBackward& op) {
  return moved(op.dy, op.x, op.mean, op.rstd, op.weight, op.dx) + updated(op.d_weight, op.d_bias);
}

double traffic_of(const RopeTable& op) {
  return moved(op.positions, op.frequencies, op.cos, op.sin);
}

double traffic_of(const QkvNormRope& op) {
  return moved(op.qkv, op.q_weight, op.k_weight, op.cos, op.sin, op.q, op.k, op.v, op.rstd);
}

double traffic_of(const QkvNormRopeBackward& op) {
  return moved(op.d_q, op.d_k, op.d_v, op.qkv, op.q_weight, op.k_weight, op.cos, op.sin, op.rstd, op.d_qkv) +
         updated(op.d_q_weight, op.d_k_weight);
}

double traffic_of(const GeGlu& op) {
  return moved(op.gate_up, op.out);
}

double traffic_of(const GeGluBackward& op) {
  return moved(op.d_out, op.gate_up, op.d_gate_up, op.out);
}

double traffic_of(const EmbeddingLookup& op) {
  return moved(op.ids, op.out) + rows_of(op.ids.numel(), op.table);
}

double traffic_of(const EmbeddingBackward& op) {
  return moved(op.ids, op.d_out) + 2 * rows_of(op.ids.numel(), op.d_table);
}

double traffic_of(const ScatterRows& op) {
  return moved(op.rows, op.rows, op.index);
}

double traffic_of(const GatherRows& op) {
  return moved(op.rows, op.rows, op.index);
}

double traffic_of(const ConvertFeatures& op) {
  return moved(op.in, op.out);
}

double traffic_of(const AddBias& op) {
  return updated(op.x) + moved(op.bias);
}

double traffic_of(const BiasBackward& op) {
  return moved(op.dy) + updated(op.d_bias);
}

double traffic_of(const GridEmbedding& op) {
  // Two rows of the table for every row of x.
  return updated(op.x) + moved(op.x, op.x, op.xy);
}

double traffic_of(const GridEmbeddingBackward& op) {
  return moved(op.d, op.xy) + updated(op.d, op.d);
}

double traffic_of(const LossCombine& op) {
  return moved(op.stats, op.targets, op.lse, op.token_nll, op.entropy);
}

double traffic_of(const AdamW& op) {
  // A master is what is read of the weight; the weight itself is then only written.
  return updated(op.master, op.remainder, op.m, op.v) + moved(op.grad) +
         (op.master ? moved(op.param) : updated(op.param));
}

double traffic_of(const SquaredNorm& op) {
  return moved(op.x, op.sum);
}

double traffic_of(const ClipFactor& op) {
  return moved(op.sums, op.norm, op.factor);
}

double traffic_of(const Fill& op) {
  return moved(op.x);
}

double traffic_of(const Copy& op) {
  return moved(op.in, op.out);
}

double traffic_of(const Add& op) {
  return moved(op.in) + updated(op.out);
}

double traffic_of(const RankSum& op) {
  return moved(op.own, op.others, op.squares) + (op.accumulate ? updated(op.out) : moved(op.out));
}

double traffic_of(const FillNormal& op) {
  return moved(op.out);
}

}  // namespace lapidary
