// Where a step's time goes: events around every operation of a stream, summed by what was computed; on a dry
// stream, which operations there are and how long they would take. A stream without a timer pays one
// comparison an operation.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace lapidary {

/// The shape of a MatMul: c [m, n] from k terms.
struct ProductShape {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  DType in = DType::f32, out = DType::f32;
  bool operator==(const ProductShape&) const = default;
};

/// What an operation is and needs.
struct OpWork {
  std::string
      kind{};  ///< operations of one kind run at about one rate: "MatMul forward", "Attention d = 256"
  std::string label{};  ///< the kind, and the shape where that of one kind differs
  double flops = 0;     ///< 0 where the operation is bound by memory
  double bytes = 0;     ///< that it has to move at least (kernels/op_traffic.h); 0 where it is bound by flops
  ProductShape product{};  ///< of a MatMul
};

class OpTimer {
 public:
  /// Seconds of what a dry stream does not do.
  struct Forecast {
    std::function<double(const OpWork&)> operation;
    /// A collective ("all-gather", "reduce-scatter", "all-reduce") in which every rank sends `bytes`.
    std::function<double(const std::string& collective, double bytes)> transfer;
  };

  struct Line {
    OpWork work;  ///< flops and bytes: of all calls together
    std::int64_t count = 0;
    double seconds = 0;
  };

  OpTimer() = default;
  explicit OpTimer(Forecast forecast) : forecast_(std::move(forecast)) {}

  /// Calls may nest (an operation that runs others): only the outermost is timed.
  void begin(const Stream& stream, const OpWork& work);
  void end(const Stream& stream);
  /// An operation of a dry stream: counted, and its forecast added to the clock.
  void count(const OpWork& work);
  /// Waits for the stream and returns what was timed or counted since the last call, the longest first.
  std::vector<Line> collect(const Stream& stream);

  // The clock of a forecast: what the dry stream would have done by now, and its waits for communication.
  bool forecasts() const { return static_cast<bool>(forecast_.operation); }
  double clock() const { return clock_; }
  double waited() const { return waited_; }  ///< of clock(): nothing to do before a collective ended
  double transfer_seconds(const std::string& collective, double bytes) const;
  void wait_until(double end);

 private:
  struct Interval {
    OpWork work;
    Event from, to;
  };
  void add(const OpWork& work, double seconds);

  Forecast forecast_;
  double clock_ = 0, waited_ = 0;
  std::vector<Interval> intervals_;
  std::map<std::string, Line> lines_;  ///< by label
  int depth_ = 0;
};

}  // namespace lapidary
