// Rotary tables at the positions of long documents, where reduced-range or fast functions are wrong in every
// digit (specification 3.6, 8.2 items 5 and 6).
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/op_run.h"

namespace lapidary {
namespace {

TEST(RopeTable, IsExactForTheFloat32AngleUpToTheLongestContext) {
  const Values positions = {0, 1, 2, 1023, 4096, 65535, 131071, 200001, 262143};
  Values frequencies;
  for (int j = 0; j < 128; ++j) frequencies.push_back(rounded(std::pow(10000.0, -2.0 * j / 256), DType::f32));
  const Arrays given{{"positions", positions}, {"frequencies", frequencies}};
  OpRun run(cpu_backend(), given, {.type = DType::f32});
  const Tensor at = run.in_as("positions", DType::i32, {9}),
               rate = run.in_as("frequencies", DType::f32, {128});
  const Tensor cos = run.out_wide("cos", {9, 128}), sin = run.out_wide("sin", {9, 128});
  run(RopeTable{at, rate, cos, sin});
  const Values c = run.read(cos), s = run.read(sin);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    for (std::size_t j = 0; j < frequencies.size(); ++j) {
      const float angle = static_cast<float>(positions[i]) * static_cast<float>(frequencies[j]);
      const auto exact_cos = static_cast<double>(std::cos(static_cast<long double>(angle)));
      const auto exact_sin = static_cast<double>(std::sin(static_cast<long double>(angle)));
      ASSERT_LE(std::abs(c[i * 128 + j] - exact_cos), 0x1p-24 * std::abs(exact_cos))
          << positions[i] << " " << j;
      ASSERT_LE(std::abs(s[i * 128 + j] - exact_sin), 0x1p-24 * std::abs(exact_sin))
          << positions[i] << " " << j;
    }
  }
}

}  // namespace
}  // namespace lapidary
