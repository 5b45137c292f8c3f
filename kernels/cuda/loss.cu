// The loss head. With bf16 activations `scores` holds E' = exp(l - m) (1 - (l / cap)^2) in bf16: the soft
// cap's derivative is folded in, and because the cap bounds the logits, m = cap needs no running maximum.
// Logits reach that form from float32, block by block of the vocabulary. The gradient's products read E'
// directly: d_hidden = v (E' W) and d_table += E'^T (v X), with v the row's scale. The target's term, which
// carries most of the gradient, is left out of E' and added exactly in float32.
// With float32 activations `scores` holds the capped logits, and everything is float32.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/loss_plan.h"
#include "kernels/cuda/segments.h"
#include "kernels/ops.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

constexpr int kThreads = 256;
using Key = unsigned long long;

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.4426950408889634f;

/// A capped logit and its derivative with respect to z.
struct Capped {
  float l, slope;
};

/// The soft cap. The bf16 head's passes over the vocabulary run it for every logit and are bound by
/// arithmetic, so they take two approximate functions (about 1e-7 of the cap) and no division.
template <class T>
struct Cap {
  float cap, inverse;
  __device__ explicit Cap(float c) : cap(c), inverse(c > 0.0f ? 1.0f / c : 0.0f) {}
  __device__ Capped operator()(float z) const {
    if (cap <= 0.0f) return {z, 1.0f};
    if constexpr (std::is_same_v<T, float>) {
      const float t = tanhf(z / cap);
      return {cap * t, 1.0f - t * t};
    } else {
      const float x = z * inverse, a = exp2_fast(-2.0f * kLog2E * fabsf(x)), r = __fdividef(1.0f, 1.0f + a);
      return {cap * copysignf((1.0f - a) * r, x), 4.0f * a * r * r};
    }
  }
};

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

struct BlockShape {
  std::int64_t columns;  ///< of this block
  std::int64_t begin;    ///< first column of the block in the shard
  std::int64_t rows;     ///< columns of the shard: row stride of the scores
  std::int64_t first_row;
  float cap;
};

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
  if (b.columns % 4 == 0 && b.rows % 4 == 0) {
    for (std::int64_t j = static_cast<std::int64_t>(threadIdx.x) * 4; j < b.columns; j += kThreads * 4) {
      const auto in = Pack<float, 4>::load(row + j);
      float e[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) e[i] = one(in.get(i), j + i);
      if (b.cap > 0.0f) Pack<Bf16, 4>::from(e).store(scores + r * b.rows + b.begin + j);
    }
  } else {
    for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads) {
      const float e = one(row[j], j);
      if (b.cap > 0.0f) scores[r * b.rows + b.begin + j] = from_float<Bf16>(e);
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
    scores[r * b.rows + b.begin + j] = from_float<Bf16>(expf(z[r * b.columns + j] - shift));
}

/// What turns scores into gradients.
struct GradientTerms {
  float cap, smoothing, z_loss, grad_scale, uniform;  ///< uniform = smoothing / vocabulary
  std::int64_t first_row;

  __device__ float weight(float lse) const { return 1.0f + 2.0f * z_loss * lse; }
  __device__ float slope(float l) const { return cap > 0.0f ? 1.0f - (l / cap) * (l / cap) : 1.0f; }
};

/// (1 - t^2) (p (1 + 2 z lse) - s / V) of a block: with label smoothing every column has a term that E' does
/// not hold, so the logits are made again.
__global__ void __launch_bounds__(kThreads)
    block_gradients(const float* z, BlockShape b, GradientTerms g, const float* lse, Bf16* scores) {
  const std::int64_t r = blockIdx.x;
  const float row_lse = lse[r], weight = g.weight(row_lse);
  const Cap<Bf16> cap(b.cap);
  for (std::int64_t j = threadIdx.x; j < b.columns; j += kThreads) {
    const Capped c = cap(z[r * b.columns + j]);
    scores[r * b.rows + b.begin + j] = from_float<Bf16>(c.slope * (expf(c.l - row_lse) * weight - g.uniform));
  }
}

/// Per row: its scale v, the exact gradient at the target (whose score becomes 0), and v x rounded to bf16.
/// whole_scores: the scores are gradients already, up to grad_scale.
__global__ void __launch_bounds__(kThreads)
    prepare_rows(GradientTerms g, bool whole_scores, const std::int32_t* targets, const float* stats,
                 const float* lse, const Bf16* hidden, int width, std::int64_t columns, Bf16* scores,
                 float* scale, float* at_target, Bf16* scaled) {
  const std::int64_t r = blockIdx.x;
  const std::int32_t target = targets[r];
  const float row_lse = lse[r];
  float v = 0.0f;
  if (target >= 0) {
    v = g.grad_scale;
    if (!whole_scores) v *= g.weight(row_lse) * expf(stats[r * kLossStats + kLossMax] - row_lse);
  }
  if (threadIdx.x == 0) {
    const std::int64_t column = target - g.first_row;
    float exact = 0.0f;
    if (target >= 0 && column >= 0 && column < columns) {
      const float l = stats[r * kLossStats + kLossTarget];
      const float d = expf(l - row_lse) * g.weight(row_lse) - (1.0f - g.smoothing) - g.uniform;
      exact = g.grad_scale * d * g.slope(l);
      scores[r * columns + column] = from_float<Bf16>(0.0f);
    }
    scale[r] = v;
    at_target[r] = exact;
  }
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kThreads)
    scaled[r * width + j] = from_float<Bf16>(v * to_float(hidden[r * width + j]));
}

/// d_hidden = v product + (gradient at the target) table[target].
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_rows(const float* product, const float* scale, const float* at_target, const std::int32_t* targets,
                const Bf16* table, std::int64_t first_row, int width, T* d_hidden) {
  const std::int64_t r = blockIdx.x;
  const float v = scale[r], exact = at_target[r];
  const Bf16* row = exact != 0.0f ? table + (targets[r] - first_row) * width : nullptr;
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kThreads) {
    // A row without a target has no gradient, whatever its scores hold.
    float d = v != 0.0f ? v * product[r * width + j] : 0.0f;
    if (row) d += exact * to_float(row[j]);
    d_hidden[r * width + j] = from_float<T>(d);
  }
}

/// Float32 form: caps the logits in place and gathers the row's statistics.
__global__ void __launch_bounds__(kThreads)
    row_stats(float* scores, std::int64_t columns, float soft_cap, const std::int32_t* targets,
              std::int64_t first_row, float* stats) {
  const std::int64_t r = blockIdx.x;
  float* row = scores + r * columns;
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

/// Float32 form: capped logits become gradients with respect to z, in place.
__global__ void __launch_bounds__(kThreads)
    row_gradients(float* scores, std::int64_t columns, GradientTerms g, const std::int32_t* targets,
                  const float* lse) {
  const std::int64_t r = blockIdx.x;
  float* row = scores + r * columns;
  const float row_lse = lse[r], weight = g.weight(row_lse);
  const std::int64_t target = targets[r] - g.first_row;
  for (std::int64_t j = threadIdx.x; j < columns; j += kThreads) {
    float d = 0.0f;
    if (targets[r] >= 0) {
      d = expf(row[j] - row_lse) * weight - g.uniform;
      if (j == target) d -= 1.0f - g.smoothing;
      d *= g.slope(row[j]) * g.grad_scale;
    }
    row[j] = d;
  }
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

struct CombineData {
  const float* stats;
  const std::int32_t* targets;
  std::int64_t shards, tokens;
  double vocabulary, smoothing, z_loss;
  float *lse, *token_nll, *entropy;
  double* totals;
};

/// One block for all tokens, so that the totals have one order. A few thousand tokens of a few numbers each.
__global__ void __launch_bounds__(1024) combine(CombineData d) {
  double sums[4] = {};
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
    const double lse = shift + log(sum), nll = lse - target;
    const bool trained = d.targets[t] >= 0;
    d.lse[t] = static_cast<float>(lse);
    if (d.entropy) d.entropy[t] = static_cast<float>(lse - weighted / sum);
    d.token_nll[t] = trained ? static_cast<float>(nll) : -1.0f;
    if (!trained) continue;
    sums[0] += (1 - d.smoothing) * nll + d.smoothing * (lse - total / d.vocabulary) + d.z_loss * lse * lse;
    sums[1] += nll;
    sums[2] += best_id == d.targets[t] ? 1.0 : 0.0;
    sums[3] += 1.0;
  }
  block_sum(sums);
  if (threadIdx.x > 0) return;
  for (int i = 0; i < 4; ++i) d.totals[i] += sums[i];
}

MatrixView rows_of(const Tensor& x) {
  return {x.data(), x.dtype(), x.cols(), 0};
}

/// Calls f(block) after the block's float32 logits are in `logits`.
template <class Op, class F>
void for_blocks(Stream& stream, const Op& op, float* logits, F&& f) {
  const std::int64_t tokens = op.hidden.rows(), width = op.hidden.cols(), rows = op.table.rows();
  const std::int64_t step = loss_block_columns(tokens, rows);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t columns = std::min(step, rows - begin);
    gemm(stream, {rows_of(op.hidden),
                  rows_of(op.table.row_range(begin, begin + columns)),
                  {logits, DType::f32, columns, 0},
                  tokens,
                  columns,
                  width,
                  false,
                  true});
    f(BlockShape{columns, begin, rows, op.first_row, static_cast<float>(op.cap)});
    launched("the loss head");
  }
}

void scores_bf16(Stream& stream, const LossScores& op) {
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
      ptr<float>(op.scores), op.table.rows(), static_cast<float>(op.cap), ptr<std::int32_t>(op.targets),
      op.first_row, ptr<float>(op.stats));
  launched("LossScores");
}

GradientTerms terms_of(const LossGradient& op) {
  return {static_cast<float>(op.cap),
          static_cast<float>(op.label_smoothing),
          static_cast<float>(op.z_loss),
          static_cast<float>(op.grad_scale),
          static_cast<float>(op.label_smoothing / static_cast<double>(op.vocabulary)),
          op.first_row};
}

/// Where LossGradient's bf16 form keeps what.
struct GradientBuffers {
  float *d_hidden, *scale, *at_target, *logits;
  Bf16* scaled;
  std::int32_t* order;

  GradientBuffers(const Tensor& scratch, const LossGradientScratch& plan) {
    auto* at = static_cast<std::byte*>(scratch.data());
    const auto take = [&](std::size_t bytes) {
      std::byte* out = at;
      at += bytes;
      return out;
    };
    d_hidden = reinterpret_cast<float*>(take(plan.d_hidden));
    scaled = reinterpret_cast<Bf16*>(take(plan.scaled));
    scale = reinterpret_cast<float*>(take(plan.rows / 3));
    at_target = reinterpret_cast<float*>(take(plan.rows / 3));
    order = reinterpret_cast<std::int32_t*>(take(plan.rows / 3));
    logits = reinterpret_cast<float*>(take(plan.block));
  }
};

void gradient_bf16(Stream& stream, const LossGradient& op) {
  const std::int64_t tokens = op.hidden.rows(), width = op.hidden.cols(), columns = op.table.rows();
  const bool smoothing = op.label_smoothing != 0;
  const GradientBuffers buffers(op.scratch, loss_gradient_scratch(tokens, width, columns, smoothing));
  const GradientTerms terms = terms_of(op);
  const cudaStream_t native = cuda_stream(stream);
  const auto rows = static_cast<unsigned>(tokens);
  auto* scores = ptr<Bf16>(op.scores);
  if (smoothing) {
    for_blocks(stream, op, buffers.logits, [&](const BlockShape& b) {
      block_gradients<<<rows, kThreads, 0, native>>>(buffers.logits, b, terms, ptr<float>(op.lse), scores);
    });
  }
  prepare_rows<<<rows, kThreads, 0, native>>>(terms, smoothing, ptr<std::int32_t>(op.targets),
                                              ptr<float>(op.stats), ptr<float>(op.lse), ptr<Bf16>(op.hidden),
                                              static_cast<int>(width), columns, scores, buffers.scale,
                                              buffers.at_target, buffers.scaled);
  launched("LossGradient");
  const Tensor product(buffers.d_hidden, DType::f32, {tokens, width});
  run(stream, MatMul{.a = op.scores, .b = op.table, .c = product});
  with_float_type("LossGradient", op.d_hidden.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    finish_rows<T><<<rows, kThreads, 0, native>>>(buffers.d_hidden, buffers.scale, buffers.at_target,
                                                  ptr<std::int32_t>(op.targets), ptr<Bf16>(op.table),
                                                  op.first_row, static_cast<int>(width), ptr<T>(op.d_hidden));
  });
  launched("LossGradient");
  Gemm table{rows_of(op.scores), {buffers.scaled, DType::bf16, width, 0}, rows_of(op.d_table)};
  table.m = columns;
  table.n = width;
  table.k = tokens;
  table.transpose_a = true;
  table.beta = 1.0f;
  gemm(stream, table);
  add_rows_by_id(stream, "LossGradient", {op.targets, op.first_row, -1, buffers.at_target}, op.hidden, 1.0,
                 op.d_table, buffers.order);
}

void gradient_f32(Stream& stream, const LossGradient& op) {
  row_gradients<<<static_cast<unsigned>(op.hidden.rows()), kThreads, 0, cuda_stream(stream)>>>(
      ptr<float>(op.scores), op.table.rows(), terms_of(op), ptr<std::int32_t>(op.targets),
      ptr<float>(op.lse));
  launched("LossGradient");
  run(stream, MatMul{.a = op.scores, .b = op.table, .c = op.d_hidden});
  if (op.d_table.dtype() == DType::f32) {
    run(stream,
        MatMul{.a = op.scores, .b = op.hidden, .c = op.d_table, .transpose_a = true, .accumulate = true});
    return;
  }
  // cuBLASLt has no float32 product with a bf16 result: a piece of the table at a time, then added.
  const std::int64_t rows = op.table.rows(), width = op.hidden.cols();
  const std::int64_t step = loss_piece_rows(rows, width);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t end = std::min(rows, begin + step);
    const Tensor piece(op.scratch.data(), DType::f32, {end - begin, width});
    run(stream,
        MatMul{.a = op.scores.col_range(begin, end), .b = op.hidden, .c = piece, .transpose_a = true});
    run(stream, Add{piece, op.d_table.row_range(begin, end)});
  }
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
  if (hidden.dtype() == DType::bf16) return scores_bf16(stream, *this);
  if (hidden.dtype() != DType::f32) refuse("LossScores", hidden.dtype());
  scores_f32(stream, *this);
}

void LossCombine::cuda(Stream& stream) const {
  check(*this);
  if (targets.numel() == 0) return;
  if (stats.dtype() != DType::f32) refuse("LossCombine", stats.dtype());
  const CombineData data{ptr<float>(stats),
                         ptr<std::int32_t>(targets),
                         stats.size(0),
                         stats.size(1),
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

void LossGradient::cuda(Stream& stream) const {
  check(*this, Device::cuda);
  if (hidden.rows() == 0) return;
  if (hidden.dtype() == DType::bf16) return gradient_bf16(stream, *this);
  if (hidden.dtype() != DType::f32) refuse("LossGradient", hidden.dtype());
  gradient_f32(stream, *this);
}

}  // namespace lapidary
