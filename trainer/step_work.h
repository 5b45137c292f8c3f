// One training step as benchmarks and forecasts run it: the configuration's micro-batches of one repeated
// batch, really or dry.
#pragma once
#include <vector>

#include "kernels/op_timer.h"
#include "trainer/run_config.h"
#include "trainer/run_setup.h"

namespace lapidary {

/// Micro-batches of a rank in a step of the configuration.
std::int64_t micro_batches(const RunConfig& config, int world);

/// Forward and backward of `micro` times the batch, and an update: step `number`. `targets`: of the global
/// batch.
void run_step(Instance& instance, const Batch& batch, std::int64_t micro, double targets, double lr,
              std::int64_t number);

/// A step of one rank on random text, on a device that only counts, with `timer` on its stream.
void run_dry_step(const RunConfig& config, const RunSetup& setup, Device device, OpTimer& timer);

/// What such a step consists of, seconds 0.
std::vector<OpTimer::Line> step_operations(const RunConfig& config, const RunSetup& setup, Device device);

}  // namespace lapidary
