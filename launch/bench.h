// How the `lapidary bench` commands measure: cases in turn, hot, medians.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace lapidary {

/// Something to time: queues its work on the stream that is measured.
struct BenchCase {
  std::string name;
  std::function<void()> run;
};

struct BenchOptions {
  double warm_up_ms = 1000;  ///< of all cases in turn, so that clocks and heat are those of a long run
  double least_ms = 20;      ///< a measurement repeats its case until it is at least this long
  int rounds = 5;            ///< measurements of each case
  /// The slowest rank's time where cases communicate: all ranks must then repeat equally often.
  std::function<double(double)> agree{};
  std::function<void()> align{};  ///< called before a measurement: ranks then begin it together
};

/// Milliseconds of one run of a case.
struct BenchTime {
  double median = 0, fastest = 0, slowest = 0;
};

/// Times all cases, a measurement of each in every round: what drifts (heat, clocks, other users of the
/// machine) then meets all of them alike, and their ratios hold.
std::vector<BenchTime> time_in_turn(Stream& stream, const std::vector<BenchCase>& cases,
                                    const BenchOptions& options = {});

}  // namespace lapidary
