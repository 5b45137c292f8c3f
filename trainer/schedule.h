// The learning rate as a pure function of the step: a resumed run needs nothing but its step number to
// continue.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "trainer/run_config.h"

namespace lapidary {

/// Rate of update number `step` in 1..steps: rises linearly to `peak` at warmup_steps (update 1 is already
/// above zero), then stays, or falls on a line or a half cosine to final_ratio * peak at the last step, and
/// stays there.
inline double learning_rate(const RunConfig::Schedule& schedule, double peak, std::int64_t step,
                            std::int64_t steps) {
  step = std::min(step, steps);
  if (step < schedule.warmup_steps)
    return peak * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  if (schedule.kind == ScheduleKind::constant || step <= schedule.warmup_steps) return peak;
  const double progress =
      static_cast<double>(step - schedule.warmup_steps) / static_cast<double>(steps - schedule.warmup_steps);
  const double height = schedule.kind == ScheduleKind::linear
                            ? 1.0 - progress
                            : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return peak * (schedule.final_ratio + (1.0 - schedule.final_ratio) * height);
}

}  // namespace lapidary
