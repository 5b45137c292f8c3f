// Sums over ranks, the gradient norm and the clip factor made from it.
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

double sum_of_squares(const Tensor& x) {
  constexpr std::int64_t kParts = 64;  // fixed, so that the sum does not depend on the number of threads
  const std::int64_t count = x.numel();
  double parts[kParts];
  with_float_type(x.dtype(), [&]<class T>() {
    const T* numbers = x.as<T>();
#pragma omp parallel for schedule(static) if (count >= kParallelElements)
    for (std::int64_t k = 0; k < kParts; ++k) {
      const std::int64_t begin = count * k / kParts, end = count * (k + 1) / kParts;
      parts[k] = sum_of(end - begin, [&](std::int64_t i) {
        const double value = static_cast<double>(load(numbers[begin + i]));
        return value * value;
      });
    }
  });
  return sum_of(kParts, [&](std::int64_t k) { return parts[k]; });
}

}  // namespace

void SquaredNorm::cpu(Stream&) const {
  check(*this);
  *sum.as<double>() += sum_of_squares(x);
}

void RankSum::cpu(Stream&) const {
  check(*this);
  const std::int64_t n = out.numel();
  with_float_type(out.dtype(), [&]<class T>() {
    T* const sums = out.as<T>();
#pragma omp parallel for schedule(static) if (n >= kParallelElements)
    for (std::int64_t j = 0; j < n; ++j) {
      Compute<T> sum = 0;
      for (std::int64_t i = 0; i <= others.rows(); ++i)
        sum += load(i == rank ? own.as<T>()[j] : row<T>(others, i < rank ? i : i - 1)[j]);
      if (accumulate) sum += load(sums[j]);
      sums[j] = round_to<T>(sum);
    }
  });
  if (squares) *squares.as<double>() = sum_of_squares(out);
}

void ClipFactor::cpu(Stream&) const {
  check(*this);
  double total = 0.0;
  for (std::int64_t i = 0; i < sums.numel(); ++i) total += sums.as<double>()[i];
  const double length = std::sqrt(total);
  double scale = max_norm > 0 ? std::min(1.0, max_norm / (length + 1e-6)) : 1.0;
  if (!std::isfinite(length)) scale = 0.0;
  *norm.as<double>() = length;
  with_float_type(factor.dtype(), [&]<class F>() { *factor.as<F>() = round_to<F>(scale); });
}

}  // namespace lapidary
