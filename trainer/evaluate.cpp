#include "trainer/evaluate.h"

#include "kernels/check.h"

namespace lapidary {

EvaluationResult evaluate(Instance& instance, Loader& loader, std::int64_t rows, HostGroup& world) {
  instance.begin_evaluation();
  for (std::int64_t seen = 0; !loader.done() && (rows == 0 || seen < rows);) {
    const StepBatches step = loader.next();
    for (const Batch& batch : step.micro) instance.run_evaluation(batch);
    seen += step.rows;
  }
  std::vector<double> totals = instance.read_totals();
  world.all_reduce(totals, HostGroup::Reduce::sum, "validation loss");
  const double tokens = totals[kTotalTokens];
  require(tokens > 0, "validation data has no trained token");
  return {totals[kTotalLoss] / tokens, totals[kTotalNll] / tokens, totals[kTotalCorrect] / tokens,
          totals[kTotalEntropy] / tokens, tokens};
}

}  // namespace lapidary
