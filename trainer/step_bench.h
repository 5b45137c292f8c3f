// A training step of a configuration on random text, timed: tokens a second, share of peak, and where the
// time goes, operation by operation. Needs no data set.
#pragma once
#include <iosfwd>

#include "parallel/host_group.h"
#include "trainer/run_config.h"
#include "trainer/run_setup.h"

namespace lapidary {

struct StepBenchOptions {
  int warmup = 3;
  int steps = 10;       ///< timed, each with its update
  bool profile = true;  ///< one more step with an event around every operation
  std::string rates{};  ///< a file that its rates are added to; empty: none
};

/// Trains on one repeated batch, so that its loss must fall, and prints every step, the median, memory
/// against the plan and the table of operations. Collective over the world.
void bench_step(const RunConfig& config, const StepBenchOptions& options, HostGroup& world,
                const NodePlace& place, std::ostream& out);

}  // namespace lapidary
