// One row of RMSNorm, shared by every operation that contains one (specification 3.2).
#pragma once
#include <cmath>

#include "kernels/cpu/element.h"

namespace lapidary {

/// Sum of squares in float32, in the order of eight lanes times four, every 16 additions carried into a
/// second level: how the reference sums a row. The rounding of this one number moves every element of the row
/// alike, so float32 runs that are to stay close to the reference's round it as it does.
template <class T>
float sum_of_squares(const T* x, std::int64_t n) {
  constexpr std::int64_t kLanes = 8, kStep = 4 * kLanes, kCarry = 16;
  const auto square = [&](std::int64_t j) { return load(x[j]) * load(x[j]); };
  float sums[kStep] = {}, carried[kStep] = {};
  std::int64_t j = 0;
  for (std::int64_t step = 1; j + kStep <= n; j += kStep, ++step) {
    for (std::int64_t l = 0; l < kStep; ++l) sums[l] += square(j + l);
    if (step % kCarry != 0) continue;
    for (std::int64_t l = 0; l < kStep; ++l) {
      carried[l] += sums[l];
      sums[l] = 0;
    }
  }
  for (; j + kLanes <= n; j += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) sums[l] += square(j + l);
  for (std::int64_t l = 0; l < kStep; ++l) sums[l] += carried[l];
  float total = 0;
  for (; j < n; ++j) total += square(j);
  for (std::int64_t l = 0; l < kLanes; ++l)
    total += ((sums[l] + sums[l + kLanes]) + sums[l + 2 * kLanes]) + sums[l + 3 * kLanes];
  return total;
}

/// (mean(x^2) + eps)^(-1/2) over n numbers of F, each operation rounded to F as the reference does.
template <class F, class T>
F rms_rstd(const T* x, std::int64_t n, double eps) {
  F sum;
  if constexpr (std::is_same_v<F, double>) {
    sum = sum_of(n, [&](std::int64_t j) { return x[j] * x[j]; });
  } else {
    sum = sum_of_squares(x, n);
  }
  return F{1} / std::sqrt(sum / static_cast<F>(n) + static_cast<F>(eps));
}

/// dx = rstd g - x rstd^3 mean(g x).
template <class F>
struct RmsRowBackward {
  F rstd, slope;
  F operator()(F g, F x) const { return rstd * g - x * slope; }
};

template <class F>
RmsRowBackward<F> rms_row_backward(F rstd, std::int64_t n, double sum_gx) {
  const double r = static_cast<double>(rstd);
  return {rstd, static_cast<F>(r * r * r * (sum_gx / static_cast<double>(n)))};
}

}  // namespace lapidary
