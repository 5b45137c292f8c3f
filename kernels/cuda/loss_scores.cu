// The loss head. With bf16 activations `scores` holds E' = exp(l - m) (1 - (l / cap)^2) in bf16: the soft
// cap's derivative is folded in, and because the cap bounds the logits, m = cap needs no running maximum.
// Logits reach that form from float32, block by block of the vocabulary. The gradient's products read E'
// directly: d_hidden = v (E' W) and d_table += E'^T (v X), with v the row's scale. The largest terms, which
// carry most of the gradient, are left out of E' and added exactly in float32 (loss_terms.cuh).
// With float32 activations `scores` holds the capped logits, and everything is float32.
#include "kernels/cuda/loss_blocks.cuh"
#include "kernels/cuda/loss_products.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = kLossThreads;
using Key = unsigned long long;

/// Orders by value, then by lower index.
__device__ inline Key best_key(float l, int column) {
  const unsigned bits = __float_as_uint(l);
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(column));
}

__device__ inline float key_value(Key key) {
  const auto ordered = static_cast<unsigned>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline Key block_best(Key key) {
  __shared__ Key shared[kThreads / 32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) key = max(key, __shfl_xor_sync(0xffffffffu, key, lane));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = key;
  __syncthreads();
  for (int i = 0; i < kThreads / 32; ++i) key = max(key, shared[i]);
  __syncthreads();
  return key;
}

/// A thread's part of a row and block of the vocabulary. Columns come in rising order.
struct BlockSums {
  float sum = 0.0f, weighted = 0.0f, total = 0.0f;
  float best = -INFINITY;
  int best_column = 0;

  __device__ void add(float l, float e, int column) {
    sum += e;
    weighted += e * l;
    total += l;
    if (l > best) best = l, best_column = column;
  }
};

/// Adds a block's sums, relative to `shift`, to the row's statistics; the first block sets them. The blocks
/// come in the order of the stream, so the sums have one order.
__device__ inline void merge(const BlockSums& part, float shift, bool first, std::int64_t first_row,
                             float* stats) {
  float sums[3] = {part.sum, part.weighted, part.total};
  block_sum(sums);
  const Key best = block_best(best_key(part.best, part.best_column));
  if (threadIdx.x > 0) return;
  const float before = first ? -INFINITY : stats[kLossMax], now = fmaxf(before, shift);
  const float keep = first || before == now ? 1.0f : expf(before - now),
              take = shift == now ? 1.0f : expf(shift - now);
  stats[kLossMax] = now;
  stats[kLossSum] = (first ? 0.0f : stats[kLossSum] * keep) + sums[0] * take;
  stats[kLossWeightedSum] = (first ? 0.0f : stats[kLossWeightedSum] * keep) + sums[1] * take;
  stats[kLossLogitSum] = (first ? 0.0f : stats[kLossLogitSum]) + sums[2];
  if (first || key_value(best) > stats[kLossBest]) {
    stats[kLossBest] = key_value(best);
    stats[kLossBestId] = static_cast<float>(first_row + (0xffffffffu - static_cast<unsigned>(best)));
  }
}

/// Statistics of a block of float32 logits, one row per thread block. With a cap the exponentials take their
/// final form at once; without, the row's maximum must be known first, and `scores` is left to a second pass.
__global__ void __launch_bounds__(kThreads)
    block_stats(const float* z, BlockShape b, const std::int32_t* targets, Bf16* scores, float* stats) {
  const std::int64_t r = blockIdx.x;
  const float* row = z + r * b.columns;
  float shift = b.cap;
  if (b.cap <= 0.0f) {
    float top = -INFINITY;
    for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads) top = fmaxf(top, row[j]);
    shift = block_max(top);
  }
  BlockSums sums;
  const Cap<Bf16> cap(b.cap);
  const auto one = [&](float logit, std::int64_t j) {
    const Capped c = cap(logit);
    const float e = exp2_fast((c.l - shift) * kLog2E);
    sums.add(c.l, e, static_cast<int>(b.begin + j));
    return e * c.slope;
  };
  if (b.columns % 4 == 0 && b.stride % 4 == 0) {
    for (std::int64_t j = static_cast<std::int64_t>(threadIdx.x) * 4; j < b.columns; j += kThreads * 4) {
      const auto in = Pack<float, 4>::load(row + j);
      float e[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) e[i] = one(in.get(i), j + i);
      if (b.cap > 0.0f) Pack<Bf16, 4>::from(e).store(scores + r * b.stride + b.begin + j);
    }
  } else {
    for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads) {
      const float e = one(row[j], j);
      if (b.cap > 0.0f) scores[r * b.stride + b.begin + j] = from_float<Bf16>(e);
    }
  }
  float* mine = stats + r * kLossStats;
  merge(sums, shift, b.begin == 0, b.first_row, mine);
  if (threadIdx.x > 0) return;
  const std::int64_t target = targets[r] < 0 ? -1 : targets[r] - b.first_row - b.begin;
  if (target >= 0 && target < b.columns) {
    mine[kLossTarget] = cap(row[target]).l;
  } else if (b.begin == 0) {
    mine[kLossTarget] = 0.0f;
  }
}

/// exp(l - m) of a block, once the maximum is known (no cap).
__global__ void __launch_bounds__(kThreads)
    block_exponentials(const float* z, BlockShape b, const float* stats, Bf16* scores) {
  const std::int64_t r = blockIdx.x;
  const float shift = stats[r * kLossStats + kLossMax];
  for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads)
    scores[r * b.stride + b.begin + j] = from_float<Bf16>(expf(z[r * b.columns + j] - shift));
}

/// Float32 form: caps the logits in place and gathers the row's statistics.
__global__ void __launch_bounds__(kThreads)
    row_stats(float* scores, std::int64_t stride, std::int64_t columns, float soft_cap,
              const std::int32_t* targets, std::int64_t first_row, float* stats) {
  const std::int64_t r = blockIdx.x;
  float* row = scores + r * stride;
  const Cap<float> cap(soft_cap);
  float top = -INFINITY;
  for (std::int64_t j = threadIdx.x; j < columns; j += kThreads) {
    row[j] = cap(row[j]).l;
    top = fmaxf(top, row[j]);
  }
  top = block_max(top);
  BlockSums sums;
  for (std::int64_t j = threadIdx.x; j < columns; j += kThreads)
    sums.add(row[j], expf(row[j] - top), static_cast<int>(j));
  __syncthreads();
  merge(sums, top, true, first_row, stats + r * kLossStats);
  if (threadIdx.x > 0) return;
  const std::int64_t target = targets[r] < 0 ? -1 : targets[r] - first_row;
  stats[r * kLossStats + kLossTarget] = target >= 0 && target < columns ? row[target] : 0.0f;
}

/// A shard without rows: it adds nothing, whatever the other shards hold.
__global__ void __launch_bounds__(kThreads)
    empty_stats(std::int64_t tokens, std::int64_t first_row, float* stats) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (r >= tokens) return;
  for (int i = 0; i < kLossStats; ++i) stats[r * kLossStats + i] = 0.0f;
  stats[r * kLossStats + kLossMax] = stats[r * kLossStats + kLossBest] = -INFINITY;
  stats[r * kLossStats + kLossBestId] = static_cast<float>(first_row);
}

void scores_bf16(Stream& stream, const LossScores& op) {
  // Here nobody knows where the large terms are.
  if (op.tile_best) run(stream, Fill{.x = op.tile_best, .value = INFINITY});
  auto* logits = reinterpret_cast<float*>(op.scratch.data());
  const auto rows = static_cast<unsigned>(op.hidden.rows());
  for_blocks(stream, op, logits, [&](const BlockShape& b) {
    block_stats<<<rows, kThreads, 0, cuda_stream(stream)>>>(logits, b, ptr<std::int32_t>(op.targets),
                                                            ptr<Bf16>(op.scores), ptr<float>(op.stats));
  });
  if (op.cap > 0) return;
  for_blocks(stream, op, logits, [&](const BlockShape& b) {
    block_exponentials<<<rows, kThreads, 0, cuda_stream(stream)>>>(logits, b, ptr<float>(op.stats),
                                                                   ptr<Bf16>(op.scores));
  });
}

void scores_f32(Stream& stream, const LossScores& op) {
  run(stream, MatMul{.a = op.hidden, .b = op.table, .c = op.scores, .transpose_b = true});
  row_stats<<<static_cast<unsigned>(op.hidden.rows()), kThreads, 0, cuda_stream(stream)>>>(
      ptr<float>(op.scores), op.scores.row_stride(), op.table.rows(), static_cast<float>(op.cap),
      ptr<std::int32_t>(op.targets), op.first_row, ptr<float>(op.stats));
  launched("LossScores");
}

}  // namespace

void LossScores::cuda(Stream& stream) const {
  check(*this, Device::cuda);
  if (hidden.rows() == 0) return;
  if (table.rows() == 0) {
    empty_stats<<<blocks_for(hidden.rows(), kThreads), kThreads, 0, cuda_stream(stream)>>>(
        hidden.rows(), first_row, ptr<float>(stats));
    return launched("LossScores");
  }
  if (loss_scores_fit(hidden, scores, cap)) return score_product(stream, *this);
  if (hidden.dtype() == DType::bf16) return scores_bf16(stream, *this);
  if (hidden.dtype() != DType::f32) refuse("LossScores", hidden.dtype());
  scores_f32(stream, *this);
}

}  // namespace lapidary
