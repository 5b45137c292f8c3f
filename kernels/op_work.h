// What an operation of kernels/ops.h is and needs (OpWork), and the hook by which run() times or counts it.
#pragma once
#include <string>
#include <string_view>

#include "kernels/op_timer.h"
#include "kernels/op_traffic.h"

namespace lapidary {

/// "RmsNorm" of lapidary::RmsNorm.
template <class Op>
std::string op_name() {
  constexpr std::string_view text = __PRETTY_FUNCTION__;
  constexpr std::size_t begin = text.find("Op = ") + 5;
  constexpr std::string_view name = text.substr(begin, text.find_first_of(";]", begin) - begin);
  constexpr std::size_t scope = name.rfind(':');
  return std::string(scope == std::string_view::npos ? name : name.substr(scope + 1));
}

/// A MatMul by its place in a linear layer y = x W^T: how it reads its operands decides its rate.
template <class Op>
OpWork work_of_product(const Op& op) {
  OpWork out;
  out.product = {op.c.rows(),    op.c.cols(),    op.transpose_a ? op.a.rows() : op.a.cols(),
                 op.transpose_a, op.transpose_b, op.accumulate,
                 op.a.dtype(),   op.c.dtype()};
  const ProductShape& p = out.product;
  out.kind = std::string("MatMul ") +
             (op.transpose_a ? "weight gradient" : (op.transpose_b ? "forward" : "input gradient"));
  out.label =
      out.kind + ' ' + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " + std::to_string(p.k);
  out.flops = 2.0 * static_cast<double>(op.c.numel()) * static_cast<double>(p.k);
  return out;
}

/// Floating-point operations of matrix products (2 a multiply-add), of attention's visible pairs (forward
/// 4 H d a pair, backward 8 H d) and of the loss head's products (forward one, backward two): what is
/// computed again is not counted. Bytes of everything else.
template <class Op>
OpWork work_of_op(const Op& op) {
  OpWork out;
  if constexpr (requires { op.transpose_a; }) {
    out = work_of_product(op);
  } else if constexpr (requires { op.host_lo; }) {
    out.kind = out.label = op_name<Op>() + " d = " + std::to_string(op.q.size(2));
    double pairs = 0;
    for (std::int64_t t = 0; op.host_lo && t < op.q.rows(); ++t) pairs += op.host_hi[t] - op.host_lo[t];
    constexpr bool kBackward = requires {
      op.d_out;
    };
    out.flops = (kBackward ? 8.0 : 4.0) * pairs * static_cast<double>(op.q.cols());
  } else if constexpr (requires { op.scores; }) {
    out.kind = out.label = op_name<Op>();
    constexpr bool kBackward = requires {
      op.d_table;
    };
    out.flops = (kBackward ? 4.0 : 2.0) * static_cast<double>(op.hidden.numel() * op.table.rows());
  } else {
    out.kind = out.label = op_name<Op>();
    out.bytes = traffic_of(op);
  }
  return out;
}

/// Times one call of run() where the stream has a timer; on a dry stream, counts it.
template <class Op>
class TimedOp {
 public:
  TimedOp(const Stream& stream, const Op& op) : stream_(stream) {
    if (stream.timer() == nullptr) return;
    if (stream.dry()) {
      stream.timer()->count(work_of_op(op));
    } else {
      stream.timer()->begin(stream, work_of_op(op));
    }
  }
  ~TimedOp() {
    if (stream_.timer() != nullptr && !stream_.dry()) stream_.timer()->end(stream_);
  }
  TimedOp(const TimedOp&) = delete;
  TimedOp& operator=(const TimedOp&) = delete;

 private:
  const Stream& stream_;
};

}  // namespace lapidary
