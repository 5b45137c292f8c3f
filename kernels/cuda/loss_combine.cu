// Statistics of vocabulary shards to losses of tokens and their sums.
#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

struct CombineData {
  const float* stats;
  const std::int32_t* targets;
  std::int64_t shards, tokens, counted_begin, counted_end;
  double vocabulary, smoothing, z_loss;
  float *lse, *token_nll, *entropy;
  double* totals;
};

/// One block for all tokens, so that the totals have one order. A few thousand tokens of a few numbers each.
__global__ void __launch_bounds__(1024) combine(CombineData d) {
  double sums[kLossTotals] = {};
  for (std::int64_t t = threadIdx.x; t < d.tokens; t += 1024) {
    const auto stat = [&](std::int64_t shard, LossStat which) {
      return static_cast<double>(d.stats[(shard * d.tokens + t) * kLossStats + which]);
    };
    double shift = stat(0, kLossMax);
    for (std::int64_t s = 1; s < d.shards; ++s) shift = fmax(shift, stat(s, kLossMax));
    double sum = 0, weighted = 0, total = 0, target = 0, best = -INFINITY, best_id = -1;
    for (std::int64_t s = 0; s < d.shards; ++s) {
      const double factor = exp(stat(s, kLossMax) - shift);
      sum += factor * stat(s, kLossSum);
      weighted += factor * stat(s, kLossWeightedSum);
      total += stat(s, kLossLogitSum);
      target += stat(s, kLossTarget);
      if (stat(s, kLossBest) > best) best = stat(s, kLossBest), best_id = stat(s, kLossBestId);
    }
    const double lse = shift + log(sum), nll = lse - target, entropy = lse - weighted / sum;
    const bool trained = d.targets[t] >= 0;
    d.lse[t] = static_cast<float>(lse);
    if (d.entropy) d.entropy[t] = static_cast<float>(entropy);
    d.token_nll[t] = trained ? static_cast<float>(nll) : -1.0f;
    if (!trained || t < d.counted_begin || t >= d.counted_end) continue;
    sums[kTotalLoss] +=
        (1 - d.smoothing) * nll + d.smoothing * (lse - total / d.vocabulary) + d.z_loss * lse * lse;
    sums[kTotalNll] += nll;
    sums[kTotalCorrect] += best_id == d.targets[t] ? 1.0 : 0.0;
    sums[kTotalTokens] += 1.0;
    sums[kTotalEntropy] += entropy;
  }
  block_sum(sums);
  if (threadIdx.x > 0) return;
  for (int i = 0; i < kLossTotals; ++i) d.totals[i] += sums[i];
}

}  // namespace

void LossCombine::cuda(Stream& stream) const {
  check(*this);
  if (targets.numel() == 0) return;
  if (stats.dtype() != DType::f32) refuse("LossCombine", stats.dtype());
  const CombineData data{ptr<float>(stats),
                         ptr<std::int32_t>(targets),
                         stats.size(0),
                         stats.size(1),
                         counted_begin,
                         counted_end,
                         static_cast<double>(vocabulary),
                         label_smoothing,
                         z_loss,
                         ptr<float>(lse),
                         ptr<float>(token_nll),
                         ptr_or_null<float>(entropy),
                         ptr<double>(totals)};
  combine<<<1, 1024, 0, cuda_stream(stream)>>>(data);
  launched("LossCombine");
}

}  // namespace lapidary
