// How long a training step would take: the step's own code on a device that only counts, every operation at
// the rate it was measured at, every collective beside the work that hides it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "trainer/rates.h"
#include "trainer/run_config.h"
#include "trainer/run_setup.h"

namespace lapidary {

struct StepForecast {
  double seconds = 0;
  double waiting = 0;                ///< of them, with nothing to do but to wait for a collective
  double tokens = 0;                 ///< of one rank
  double flops = 0;                  ///< of one rank's model, for the share of peak
  std::vector<std::string> sources;  ///< of the rates that counted
  std::vector<std::string> guessed;  ///< kinds without a rate: counted at the mean of the others
};

/// A step of random text, each row one document. `sets`: of one device. Of several that know a kind the one
/// counts whose situation is nearest: one rank or several, then the number of tokens. Nothing without a set
/// of the run's type, and where the ranks are more than a node's: links between nodes were not measured.
std::optional<StepForecast> forecast_step(const RunConfig& config, const RunSetup& setup, Device device,
                                          const std::vector<RateSet>& sets, int ranks_per_node);

}  // namespace lapidary
