// How long something took on this machine's clock, and the middle of several such times.
#pragma once
#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/check.h"

namespace lapidary {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Of an even number of values, the mean of the two in the middle.
inline double median_of(std::vector<double> values) {
  require(!values.empty(), "the median of no values");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace lapidary
