// Shape checks of matrix products, norms, attention and the MLP.
#include "kernels/op_check.h"
#include "kernels/shapes.h"

namespace lapidary {

void check(const MatMul& op) {
  const OpCheck c("MatMul");
  c.dims({"a", op.a}, 2);
  c.dims({"b", op.b}, 2);
  c.float_type({"a", op.a});
  const DType t = op.a.dtype();
  c.type({"b", op.b}, t);
  const std::int64_t m = op.a.size(op.transpose_a ? 1 : 0), k = op.a.size(op.transpose_a ? 0 : 1);
  const std::int64_t n = op.b.size(op.transpose_b ? 0 : 1);
  c.rows({op.transpose_b ? "b (transposed)" : "b", op.b}, t,
         op.transpose_b ? OpCheck::Shape{n, k} : OpCheck::Shape{k, n});
  const bool wide = op.c && t == DType::bf16 && op.c.dtype() == DType::f32;
  c.rows({"c", op.c}, wide ? DType::f32 : t, {m, n});
  c.aliases({{"a", op.a}, {"b", op.b}}, {{"c", op.c}});
}

void check(const RmsNorm& op) {
  const OpCheck c("RmsNorm");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  const DType t = op.x.dtype();
  const std::int64_t rows = op.x.size(0), n = op.x.size(1);
  c.optional({"weight", op.weight}, t, {n});
  c.rows({"y", op.y}, t, {rows, n});
  c.tensor({"rstd", op.rstd}, wide_type(t), {rows});
  c.aliases({{"x", op.x}, {"weight", op.weight}}, {{"y", op.y}, {"rstd", op.rstd}});
}

void check(const RmsNormBackward& op) {
  const OpCheck c("RmsNormBackward");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  const DType t = op.x.dtype();
  const std::int64_t rows = op.x.size(0), n = op.x.size(1);
  c.rows({"dy", op.dy}, t, {rows, n});
  c.tensor({"rstd", op.rstd}, wide_type(t), {rows});
  c.optional({"weight", op.weight}, t, {n});
  if (op.dx) c.rows({"dx", op.dx}, t, {rows, n});
  c.that(!op.add_to_dx || op.dx, "add_to_dx is set, but dx is not given");
  if (op.d_weight) c.gradient({"d_weight", op.d_weight}, {n});
  c.aliases({{"dy", op.dy}, {"x", op.x}, {"rstd", op.rstd}, {"weight", op.weight}},
            {{"dx", op.dx}, {"d_weight", op.d_weight}}, {{"dx", "dy"}});
}

void check(const ResidualNorm& op) {
  const OpCheck c("ResidualNorm");
  c.dims({"residual", op.residual}, 2);
  c.float_type({"residual", op.residual});
  const DType t = op.residual.dtype();
  const std::int64_t rows = op.residual.size(0), n = op.residual.size(1);
  c.tensor({"residual", op.residual}, t, {rows, n});
  c.tensor({"branch", op.branch}, t, {rows, n});
  c.tensor({"branch_weight", op.branch_weight}, t, {n});
  c.optional({"scale", op.scale}, t, {1});
  c.tensor({"out", op.out}, t, {rows, n});
  c.tensor({"branch_rstd", op.branch_rstd}, wide_type(t), {rows});
  if (op.next_weight) {
    c.tensor({"next_weight", op.next_weight}, t, {n});
    c.tensor({"next", op.next}, t, {rows, n});
    c.tensor({"next_rstd", op.next_rstd}, wide_type(t), {rows});
  } else {
    c.that(!op.next && !op.next_rstd, "next or next_rstd is given, but next_weight is not");
  }
  c.aliases(
      {{"residual", op.residual},
       {"branch", op.branch},
       {"branch_weight", op.branch_weight},
       {"scale", op.scale},
       {"next_weight", op.next_weight}},
      {{"out", op.out}, {"next", op.next}, {"branch_rstd", op.branch_rstd}, {"next_rstd", op.next_rstd}},
      {{"out", "residual"}});
}

void check(const ResidualNormBackward& op) {
  const OpCheck c("ResidualNormBackward");
  c.dims({"d_out", op.d_out}, 2);
  c.float_type({"d_out", op.d_out});
  const DType t = op.d_out.dtype();
  const std::int64_t rows = op.d_out.size(0), n = op.d_out.size(1);
  c.tensor({"d_out", op.d_out}, t, {rows, n});
  c.tensor({"branch", op.branch}, t, {rows, n});
  c.tensor({"branch_weight", op.branch_weight}, t, {n});
  c.tensor({"branch_rstd", op.branch_rstd}, wide_type(t), {rows});
  c.optional({"scale", op.scale}, t, {1});
  c.tensor({"d_residual", op.d_residual}, t, {rows, n});
  c.tensor({"d_branch", op.d_branch}, t, {rows, n});
  c.gradient({"d_branch_weight", op.d_branch_weight}, {n});
  if (op.next_weight) {
    c.tensor({"next_weight", op.next_weight}, t, {n});
    c.tensor({"d_next", op.d_next}, t, {rows, n});
    c.tensor({"out", op.out}, t, {rows, n});
    c.tensor({"next_rstd", op.next_rstd}, wide_type(t), {rows});
    c.gradient({"d_next_weight", op.d_next_weight}, {n});
  } else {
    c.that(!op.d_next && !op.d_next_weight && !op.next_rstd,
           "d_next, next_rstd or d_next_weight is given, but next_weight is not");
  }
  c.aliases({{"d_out", op.d_out},
             {"d_next", op.d_next},
             {"out", op.out},
             {"branch", op.branch},
             {"branch_weight", op.branch_weight},
             {"scale", op.scale},
             {"next_weight", op.next_weight},
             {"branch_rstd", op.branch_rstd},
             {"next_rstd", op.next_rstd}},
            {{"d_residual", op.d_residual},
             {"d_branch", op.d_branch},
             {"d_branch_weight", op.d_branch_weight},
             {"d_next_weight", op.d_next_weight}},
            {{"d_residual", "d_out"}, {"d_branch", "d_next"}});
}

void check(const LayerNorm& op) {
  const OpCheck c("LayerNorm");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  const DType t = op.x.dtype();
  const std::int64_t rows = op.x.size(0), n = op.x.size(1);
  c.tensor({"x", op.x}, t, {rows, n});
  c.tensor({"weight", op.weight}, t, {n});
  c.tensor({"bias", op.bias}, t, {n});
  c.tensor({"y", op.y}, t, {rows, n});
  c.tensor({"mean", op.mean}, wide_type(t), {rows});
  c.tensor({"rstd", op.rstd}, wide_type(t), {rows});
  c.aliases({{"x", op.x}, {"weight", op.weight}, {"bias", op.bias}},
            {{"y", op.y}, {"mean", op.mean}, {"rstd", op.rstd}}, {{"y", "x"}});
}

void check(const LayerNormBackward& op) {
  const OpCheck c("LayerNormBackward");
  c.dims({"x", op.x}, 2);
  c.float_type({"x", op.x});
  const DType t = op.x.dtype();
  const std::int64_t rows = op.x.size(0), n = op.x.size(1);
  c.tensor({"x", op.x}, t, {rows, n});
  c.tensor({"dy", op.dy}, t, {rows, n});
  c.tensor({"mean", op.mean}, wide_type(t), {rows});
  c.tensor({"rstd", op.rstd}, wide_type(t), {rows});
  c.tensor({"weight", op.weight}, t, {n});
  c.optional({"dx", op.dx}, t, {rows, n});
  c.gradient({"d_weight", op.d_weight}, {n});
  c.gradient({"d_bias", op.d_bias}, {n});
  c.aliases({{"dy", op.dy}, {"x", op.x}, {"mean", op.mean}, {"rstd", op.rstd}, {"weight", op.weight}},
            {{"dx", op.dx}, {"d_weight", op.d_weight}, {"d_bias", op.d_bias}}, {{"dx", "dy"}});
}

void check(const GeGlu& op) {
  const OpCheck c("GeGlu");
  c.dims({"out", op.out}, 2);
  c.float_type({"out", op.out});
  const DType t = op.out.dtype();
  const std::int64_t rows = op.out.size(0), width = op.out.size(1);
  c.tensor({"out", op.out}, t, {rows, width});
  c.tensor({"gate_up", op.gate_up}, t, {rows, 2 * width});
  c.aliases({{"gate_up", op.gate_up}}, {{"out", op.out}});
}

void check(const GeGluBackward& op) {
  const OpCheck c("GeGluBackward");
  c.dims({"d_out", op.d_out}, 2);
  c.float_type({"d_out", op.d_out});
  const DType t = op.d_out.dtype();
  const std::int64_t rows = op.d_out.size(0), width = op.d_out.size(1);
  c.tensor({"d_out", op.d_out}, t, {rows, width});
  c.tensor({"gate_up", op.gate_up}, t, {rows, 2 * width});
  c.tensor({"d_gate_up", op.d_gate_up}, t, {rows, 2 * width});
  c.optional({"out", op.out}, t, {rows, width});
  c.aliases({{"d_out", op.d_out}, {"gate_up", op.gate_up}}, {{"d_gate_up", op.d_gate_up}, {"out", op.out}},
            {{"d_gate_up", "gate_up"}, {"out", "d_out"}});
}

}  // namespace lapidary
