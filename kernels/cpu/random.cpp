// Normal random numbers from a counter.
#include <cmath>
#include <numbers>

#include "kernels/cpu/element.h"
#include "kernels/philox.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

double normal(const PhiloxBlock& block, bool odd) {
  const double radius = std::sqrt(-2.0 * std::log(uniform_above_zero(block)));
  const double angle = 2.0 * std::numbers::pi * uniform_below_one(block);
  return radius * (odd ? std::sin(angle) : std::cos(angle));
}

}  // namespace

void FillNormal::cpu(Stream&) const {
  check(*this);
  const std::int64_t count = out.numel();
  with_float_type(out.dtype(), [&]<class T>() {
    T* numbers = out.as<T>();
#pragma omp parallel for schedule(static) if (count >= kParallelElements / 8)
    for (std::int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<std::uint64_t>(first_index + i);
      const PhiloxBlock block = normal_block(seed, stream, index / 2);
      numbers[i] = round_to<T>(mean + std * normal(block, index % 2 != 0));
    }
  });
}

}  // namespace lapidary
