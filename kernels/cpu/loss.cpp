// The loss head on the CPU. `scores` keeps the capped logits themselves and the shift is the row's maximum:
// the most accurate form, for a chunk that fits anyway.
#include <cmath>
#include <limits>

#include "kernels/cpu/element.h"
#include "kernels/cpu/gemm.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// Caps one row of logits in place and returns the first index of the largest (0 for an empty row).
template <class F>
std::int64_t cap_row(F* l, std::int64_t n, F cap) {
  if (cap > 0)
    for (std::int64_t j = 0; j < n; ++j) l[j] = cap * std::tanh(l[j] / cap);
  std::int64_t best = 0;
  for (std::int64_t j = 1; j < n; ++j)
    if (l[j] > l[best]) best = j;
  return best;
}

template <class F>
void row_stats(const F* l, std::int64_t n, std::int64_t best, std::int64_t first_row, std::int32_t target,
               F* stats) {
  const F top = n > 0 ? l[best] : -std::numeric_limits<F>::infinity();
  double sum = 0, weighted = 0, total = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    const F e = std::exp(l[j] - top);
    sum += static_cast<double>(e);
    weighted += static_cast<double>(e) * static_cast<double>(l[j]);
    total += static_cast<double>(l[j]);
  }
  const std::int64_t at = target - first_row;
  stats[kLossMax] = stats[kLossBest] = top;
  stats[kLossSum] = static_cast<F>(sum);
  stats[kLossWeightedSum] = static_cast<F>(weighted);
  stats[kLossLogitSum] = static_cast<F>(total);
  stats[kLossTarget] = target >= 0 && at >= 0 && at < n ? l[at] : F{0};
  stats[kLossBestId] = static_cast<F>(first_row + best);
}

template <class F>
void score_rows(const LossScores& op) {
  const std::int64_t tokens = op.scores.rows(), n = op.scores.cols();
  const std::int32_t* targets = op.targets.as<std::int32_t>();
#pragma omp parallel for schedule(static) if (tokens * n >= kParallelElements / 8)
  for (std::int64_t i = 0; i < tokens; ++i) {
    F* l = row<F>(op.scores, i);
    const std::int64_t best = cap_row(l, n, static_cast<F>(op.cap));
    row_stats(l, n, best, op.first_row, targets[i], row<F>(op.stats, i));
  }
}

/// One token's statistics over all shards, in double.
struct TokenStats {
  double lse, entropy, logit_sum, target, best;
  std::int64_t best_id;
};

template <class F>
TokenStats combine_token(const Tensor& stats, std::int64_t token) {
  const std::int64_t shards = stats.size(0), tokens = stats.size(1);
  const auto stat = [&](std::int64_t shard, LossStat which) {
    return static_cast<double>(stats.as<F>()[(shard * tokens + token) * kLossStats + which]);
  };
  double shift = -std::numeric_limits<double>::infinity();
  for (std::int64_t s = 0; s < shards; ++s) shift = std::max(shift, stat(s, kLossMax));
  TokenStats out{0, 0, 0, 0, -std::numeric_limits<double>::infinity(), -1};
  double sum = 0, weighted = 0;
  for (std::int64_t s = 0; s < shards; ++s) {
    const double factor = std::exp(stat(s, kLossMax) - shift);
    sum += factor * stat(s, kLossSum);
    weighted += factor * stat(s, kLossWeightedSum);
    out.logit_sum += stat(s, kLossLogitSum);
    out.target += stat(s, kLossTarget);
    if (stat(s, kLossBest) > out.best) {
      out.best = stat(s, kLossBest);
      out.best_id = static_cast<std::int64_t>(stat(s, kLossBestId));
    }
  }
  out.lse = shift + std::log(sum);
  out.entropy = out.lse - weighted / sum;
  return out;
}

template <class F>
void combine(const LossCombine& op) {
  const std::int32_t* targets = op.targets.as<std::int32_t>();
  double sums[kLossTotals] = {};
  for (std::int64_t i = 0; i < op.targets.size(0); ++i) {
    const TokenStats token = combine_token<F>(op.stats, i);
    op.lse.as<F>()[i] = static_cast<F>(token.lse);
    if (op.entropy) op.entropy.as<F>()[i] = static_cast<F>(token.entropy);
    op.token_nll.as<F>()[i] = F{-1};
    if (targets[i] < 0) continue;
    const double nll = token.lse - token.target;
    const double smooth = token.lse - token.logit_sum / static_cast<double>(op.vocabulary);
    op.token_nll.as<F>()[i] = static_cast<F>(nll);
    if (i < op.counted_begin || i >= op.counted_end) continue;
    sums[kTotalLoss] +=
        (1 - op.label_smoothing) * nll + op.label_smoothing * smooth + op.z_loss * token.lse * token.lse;
    sums[kTotalNll] += nll;
    sums[kTotalCorrect] += token.best_id == targets[i] ? 1.0 : 0.0;
    sums[kTotalTokens] += 1.0;
    sums[kTotalEntropy] += token.entropy;
  }
  for (int i = 0; i < kLossTotals; ++i) op.totals.as<double>()[i] += sums[i];
}

/// Capped logits become the gradient with respect to the products z.
template <class F>
void logit_gradients(const LossGradient& op) {
  const std::int64_t tokens = op.scores.rows(), n = op.scores.cols();
  const std::int32_t* targets = op.targets.as<std::int32_t>();
  const F uniform = static_cast<F>(op.label_smoothing / static_cast<double>(op.vocabulary));
  const F factor = static_cast<F>(op.grad_scale), cap = static_cast<F>(op.cap);
#pragma omp parallel for schedule(static) if (tokens * n >= kParallelElements / 8)
  for (std::int64_t i = 0; i < tokens; ++i) {
    F* l = row<F>(op.scores, i);
    if (targets[i] < 0) {
      std::fill_n(l, n, F{0});
      continue;
    }
    const F lse = op.lse.as<F>()[i];
    const F weight = static_cast<F>(1.0 + 2.0 * op.z_loss * static_cast<double>(lse));
    const std::int64_t target = targets[i] - op.first_row;
    for (std::int64_t j = 0; j < n; ++j) {
      const F t = cap > 0 ? l[j] / cap : F{0};
      F d = std::exp(l[j] - lse) * weight - uniform;
      if (j == target) d -= static_cast<F>(1.0 - op.label_smoothing);
      l[j] = factor * d * (F{1} - t * t);
    }
  }
}

template <class Body>
void with_score_type(const Tensor& t, Body&& body) {
  if (t.dtype() == DType::f64) {
    body.template operator()<double>();
  } else {
    body.template operator()<float>();
  }
}

}  // namespace

void LossScores::cpu(Stream&) const {
  check(*this, Device::cpu);
  gemm(hidden, false, table, true, scores, false);
  with_score_type(scores, [&]<class F>() { score_rows<F>(*this); });
}

void LossCombine::cpu(Stream&) const {
  check(*this);
  with_score_type(stats, [&]<class F>() { combine<F>(*this); });
}

void LossGradient::cpu(Stream&) const {
  check(*this, Device::cpu);
  with_score_type(scores, [&]<class F>() { logit_gradients<F>(*this); });
  gemm(scores, false, table, false, d_hidden, false);
  gemm(scores, true, hidden, false, d_table, true);
}

}  // namespace lapidary
