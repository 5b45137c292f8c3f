// The training run: load - forward - backward - update - log - evaluate - checkpoint.
#pragma once
#include <iosfwd>
#include <string>

#include "parallel/host_group.h"
#include "trainer/run_config.h"
#include "trainer/run_setup.h"

namespace lapidary {

/// Trains as configured, resuming where the run's folder says so. Collective over the world. Returns
/// ExitCode::ok, or ExitCode::interrupted after a save that a signal asked for. Errors carry their exit code.
int train(const RunConfig& config, HostGroup& world, const NodePlace& place, std::ostream& console);

/// The validation loss of a checkpoint (or of the run's newest, where `checkpoint` is empty).
int evaluate_run(const RunConfig& config, const std::string& checkpoint, HostGroup& world,
                 const NodePlace& place, std::ostream& console);

}  // namespace lapidary
