// One row of RMSNorm, shared by every operation that contains one (specification 3.2).
#pragma once
#include <cmath>

#include "kernels/cpu/element.h"

namespace lapidary {

/// (mean(x^2) + eps)^(-1/2) over n numbers; the sum is taken in double.
template <class F, class T>
F rms_rstd(const T* x, std::int64_t n, double eps) {
  const double sum = sum_of(n, [&](std::int64_t j) {
    const double value = static_cast<double>(load(x[j]));
    return value * value;
  });
  return static_cast<F>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
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
