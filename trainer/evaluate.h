// The loss on held-out data, exact over tokens, the same on any number of ranks.
#pragma once
#include "data/loader.h"
#include "parallel/host_group.h"
#include "trainer/instance.h"

namespace lapidary {

struct EvaluationResult {
  double loss = 0;      ///< mean over trained tokens, label smoothing and z-loss included as in training
  double nll = 0;       ///< mean negative log-likelihood
  double accuracy = 0;  ///< share of tokens whose most probable id is the target
  double entropy = 0;   ///< mean entropy of the predictions, in nats
  double tokens = 0;    ///< trained tokens
};

/// Goes once over the loader (one_pass) or `rows` packed rows of it (0: all). Collective. Throws Error where
/// the data has no trained token.
EvaluationResult evaluate(Instance& instance, Loader& loader, std::int64_t rows, HostGroup& world);

}  // namespace lapidary
