#include "trainer/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lapidary {
namespace {

constexpr std::int64_t kSteps = 1000;

TEST(Schedule, ConstantIsConstantAfterALinearRise) {
  const RunConfig::Schedule s{ScheduleKind::constant, 10, 0.1};
  for (std::int64_t step = 1; step <= 10; ++step)
    EXPECT_DOUBLE_EQ(learning_rate(s, 3e-4, step, kSteps), 3e-4 * static_cast<double>(step) / 10);
  for (std::int64_t step = 10; step <= kSteps; ++step) EXPECT_EQ(learning_rate(s, 3e-4, step, kSteps), 3e-4);
}

TEST(Schedule, LinearFallsByEqualAmounts) {
  const RunConfig::Schedule s{ScheduleKind::linear, 200, 0.25};
  EXPECT_EQ(learning_rate(s, 1.0, 200, kSteps), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(s, 1.0, 600, kSteps), 0.625);  // half-way between 1 and 0.25
  EXPECT_DOUBLE_EQ(learning_rate(s, 1.0, kSteps, kSteps), 0.25);
  for (std::int64_t step = 201; step <= kSteps; ++step)
    EXPECT_NEAR(learning_rate(s, 1.0, step - 1, kSteps) - learning_rate(s, 1.0, step, kSteps), 0.75 / 800,
                1e-12);
}

TEST(Schedule, CosineIsAHalfWave) {
  const RunConfig::Schedule s{ScheduleKind::cosine, 100, 0.1};
  EXPECT_EQ(learning_rate(s, 2.0, 100, kSteps), 2.0);
  EXPECT_NEAR(learning_rate(s, 2.0, 400, kSteps), 2.0 * (0.1 + 0.9 * 0.75),
              1e-12);  // a third: cos 60 degrees = 1/2
  EXPECT_NEAR(learning_rate(s, 2.0, 550, kSteps), 2.0 * (0.1 + 0.9 * 0.50), 1e-12);
  EXPECT_NEAR(learning_rate(s, 2.0, 700, kSteps), 2.0 * (0.1 + 0.9 * 0.25), 1e-12);
  EXPECT_NEAR(learning_rate(s, 2.0, kSteps, kSteps), 0.2, 1e-12);
}

TEST(Schedule, EdgesStayWithinTheirBounds) {
  for (const auto kind : {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine}) {
    for (const std::int64_t warmup : {0, 1, 999, 1000}) {
      const RunConfig::Schedule s{kind, warmup, 0.0};
      double before = 0;
      for (std::int64_t step = 1; step <= kSteps + 5; ++step) {
        const double rate = learning_rate(s, 1.0, step, kSteps);
        ASSERT_TRUE(rate >= 0 && rate <= 1) << step;
        ASSERT_TRUE(step > warmup || rate > before) << step;
        ASSERT_TRUE(step <= warmup + 1 || rate <= before) << step;
        before = rate;
      }
      const double last = learning_rate(s, 1.0, kSteps, kSteps);
      EXPECT_EQ(learning_rate(s, 1.0, kSteps + 5, kSteps), last);
      EXPECT_NEAR(last, kind == ScheduleKind::constant || warmup == kSteps ? 1.0 : 0.0, 1e-12);
    }
  }
}

}  // namespace
}  // namespace lapidary
