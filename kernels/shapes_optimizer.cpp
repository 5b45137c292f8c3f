// Shape checks of the optimizer, the gradient norm and the elementwise operations.
#include "kernels/op_check.h"
#include "kernels/shapes.h"

namespace lapidary {

void check(const AdamW& op) {
  const OpCheck c("AdamW");
  c.float_type({"param", op.param});
  const std::int64_t n = op.param.numel();
  const DType t = op.param.dtype();
  c.flat({"param", op.param}, n);
  for (const OpCheck::Field field :
       {OpCheck::Field{"m", op.m}, OpCheck::Field{"v", op.v}, OpCheck::Field{"grad", op.grad}})
    c.flat(field, n);
  c.float_type({"grad", op.grad});
  if (op.m.dtype() == DType::u8) {
    c.type({"v", op.v}, DType::u8);
    c.that(t != DType::f64, "moments in one byte are given for f64 parameters");
  } else {
    c.float_type({"m", op.m});
    c.float_type({"v", op.v});
  }
  c.that(!op.master || !op.remainder, "master and remainder are both given, expected at most one");
  c.that(t != DType::f64 || !op.master, "master is given for f64 parameters");
  if (op.master) {
    c.flat({"master", op.master}, n);
    c.type({"master", op.master}, DType::f32);
  }
  if (op.remainder) {
    c.flat({"remainder", op.remainder}, n);
    c.type({"remainder", op.remainder}, DType::i16);
    c.that(t == DType::bf16, "remainder is given for parameters that are not bf16");
  }
  c.tensor({"grad_factor", op.grad_factor}, wide_type(t), {1});
  c.that(op.step >= 1, "step is below 1, expected 1 at the first update");
  c.aliases(
      {{"grad", op.grad}, {"grad_factor", op.grad_factor}},
      {{"param", op.param}, {"master", op.master}, {"remainder", op.remainder}, {"m", op.m}, {"v", op.v}});
}

void check(const SquaredNorm& op) {
  const OpCheck c("SquaredNorm");
  c.float_type({"x", op.x});
  c.flat({"x", op.x}, op.x.numel());
  c.tensor({"sum", op.sum}, DType::f64, {1});
  c.aliases({{"x", op.x}}, {{"sum", op.sum}});
}

void check(const ClipFactor& op) {
  const OpCheck c("ClipFactor");
  c.tensor({"sums", op.sums}, DType::f64, {op.sums.rows()});
  c.tensor({"norm", op.norm}, DType::f64, {1});
  c.float_type({"factor", op.factor});
  c.tensor({"factor", op.factor}, wide_type(op.factor.dtype()), {1});
  c.that(op.max_norm >= 0, "max_norm is negative");
  c.aliases({{"sums", op.sums}}, {{"norm", op.norm}, {"factor", op.factor}});
}

void check(const Fill& op) {
  OpCheck("Fill").that(static_cast<bool>(op.x), "x is not given");
}

void check(const Copy& op) {
  const OpCheck c("Copy");
  c.same_rows({"out", op.out}, {"in", op.in});
  if (op.in.dtype() != op.out.dtype()) {
    c.float_type({"in", op.in});
    c.float_type({"out", op.out});
  }
  c.aliases({{"in", op.in}}, {{"out", op.out}});
}

void check(const Add& op) {
  const OpCheck c("Add");
  c.float_type({"in", op.in});
  c.float_type({"out", op.out});
  c.same_rows({"out", op.out}, {"in", op.in});
  c.aliases({{"in", op.in}}, {{"out", op.out}});
}

void check(const RankSum& op) {
  const OpCheck c("RankSum");
  c.float_type({"own", op.own});
  c.dims({"others", op.others}, 2);
  c.tensor({"others", op.others}, op.own.dtype(), {op.others.rows(), op.others.cols()});
  c.tensor({"own", op.own}, op.own.dtype(), {op.others.cols()});
  c.tensor({"out", op.out}, op.own.dtype(), {op.others.cols()});
  c.that(op.rank >= 0 && op.rank <= op.others.rows(), "rank is not among the parts");
  if (op.squares) c.tensor({"squares", op.squares}, DType::f64, {1});
  c.aliases({{"own", op.own}, {"others", op.others}}, {{"out", op.out}, {"squares", op.squares}});
}

void check(const FillNormal& op) {
  const OpCheck c("FillNormal");
  c.float_type({"out", op.out});
  c.flat({"out", op.out}, op.out.numel());
}

}  // namespace lapidary
