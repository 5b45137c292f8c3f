// The gradient norm and the clip factor made from it.
#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/shapes.h"

namespace lapidary {

void SquaredNorm::cpu(Stream&) const {
  check(*this);
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
  *sum.as<double>() += sum_of(kParts, [&](std::int64_t k) { return parts[k]; });
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
