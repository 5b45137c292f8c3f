// Where a step's time goes: events around every operation of a stream, summed by what was computed. A stream
// without a timer pays one comparison an operation.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"

namespace lapidary {

class OpTimer {
 public:
  struct Line {
    std::string label;  ///< the operation, and the shape where shapes of one operation differ in rate
    std::int64_t count = 0;
    double seconds = 0;
    double flops = 0;  ///< 0 where the operation is bound by memory
  };

  /// Calls may nest (an operation that runs others): only the outermost is timed.
  void begin(const Stream& stream, const std::string& label, double flops);
  void end(const Stream& stream);
  /// Waits for the stream and returns what was timed since the last call, the longest first.
  std::vector<Line> collect(const Stream& stream);

 private:
  struct Interval {
    std::string label;
    double flops = 0;
    Event from, to;
  };
  std::vector<Interval> intervals_;
  int depth_ = 0;
};

/// "RmsNorm" of lapidary::RmsNorm.
template <class Op>
std::string op_name() {
  constexpr std::string_view text = __PRETTY_FUNCTION__;
  constexpr std::size_t begin = text.find("Op = ") + 5;
  constexpr std::string_view name = text.substr(begin, text.find_first_of(";]", begin) - begin);
  constexpr std::size_t scope = name.rfind(':');
  return std::string(scope == std::string_view::npos ? name : name.substr(scope + 1));
}

struct OpWork {
  std::string label;
  double flops = 0;
};

/// Floating-point operations of matrix products (2 a multiply-add) and of attention's visible pairs (forward
/// 4 H d a pair, backward 8 H d: what is computed again is not counted).
template <class Op>
OpWork work_of_op(const Op& op) {
  OpWork out{op_name<Op>(), 0};
  if constexpr (requires { op.transpose_a; }) {
    const std::int64_t k = op.transpose_a ? op.a.rows() : op.a.cols();
    out.label += ' ' + std::to_string(op.c.rows()) + " x " + std::to_string(op.c.cols()) + " x " +
                 std::to_string(k) + (op.transpose_a ? " (weight gradient)" : "");
    out.flops = 2.0 * static_cast<double>(op.c.numel()) * static_cast<double>(k);
  } else if constexpr (requires { op.host_lo; }) {
    out.label += " d = " + std::to_string(op.q.size(2));
    double pairs = 0;
    for (std::int64_t t = 0; op.host_lo && t < op.q.rows(); ++t) pairs += op.host_hi[t] - op.host_lo[t];
    constexpr bool kBackward = requires {
      op.d_out;
    };
    out.flops = (kBackward ? 8.0 : 4.0) * pairs * static_cast<double>(op.q.cols());
  }
  return out;
}

/// Times one call of run() where the stream has a timer.
template <class Op>
class TimedOp {
 public:
  TimedOp(const Stream& stream, const Op& op) : stream_(stream) {
    if (stream.timer() == nullptr || stream.dry()) return;
    const OpWork work = work_of_op(op);
    stream.timer()->begin(stream, work.label, work.flops);
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
