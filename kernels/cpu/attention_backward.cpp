// Backward of attention: probabilities are recomputed from the saved log-sum-exp, block by block as in the
// forward. The heads of a group add to the same keys; each of a fixed number of teams owns some heads and its
// own accumulators, which are added in order, so the result does not depend on the number of threads.
#include "kernels/cpu/attention_backward.h"

#include <cmath>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/shapes.h"

namespace lapidary {

namespace {

/// Teams per key head.
std::int64_t teams_of(const AttentionBackward& op) {
  return op.k.size(1) > 0 ? std::min<std::int64_t>(4, op.q.size(1) / op.k.size(1)) : 0;
}

template <class T>
struct BackwardTile {
  using F = AttentionCompute<T>;
  std::vector<F> p, ds, d_q, delta;
  std::vector<F> q_buffer, k_buffer, v_buffer, d_out_buffer;
  std::vector<Compute<T>> score_q_buffer, score_k_buffer, score_buffer;

  void reset(std::int64_t queries, std::int64_t dim) {
    p.resize(static_cast<std::size_t>(kQueryTile * kKeyBlock));
    ds.resize(static_cast<std::size_t>(kQueryTile * kKeyBlock));
    d_q.assign(static_cast<std::size_t>(queries * dim), F{0});
    delta.resize(static_cast<std::size_t>(queries));
  }
};

/// Of one query over the visible part [a, b) of a block: scores become probabilities p, dp becomes
/// p (dp - delta); the rest of both becomes 0.
template <class F>
void softmax_row_backward(F* p, F* ds, std::int64_t a, std::int64_t b, std::int64_t keys, F lse, F delta) {
  for (std::int64_t k = a; k < b; ++k) {
    p[k] = std::exp(p[k] - lse);
    ds[k] = p[k] * (ds[k] - delta);
  }
  for (F* line : {p, ds}) {
    std::fill(line, line + std::min(a, keys), F{0});
    std::fill(line + std::max(b, std::int64_t{0}), line + keys, F{0});
  }
}

/// One query head against one tile of queries: d_q of the tile; adds to the head's dk, dv [N, dim].
template <class T>
void backward_tile(const AttentionBackward& op, std::int64_t h, std::int64_t q0, std::int64_t q1,
                   BackwardTile<T>& tile, AttentionCompute<T>* dk, AttentionCompute<T>* dv) {
  using F = AttentionCompute<T>;
  using S = Compute<T>;
  const std::int64_t tokens = op.q.size(0), dim = op.q.size(2);
  const std::int64_t kv = h / (op.q.size(1) / op.k.size(1));
  const KeyIntervals keys{op.lo.as<std::int32_t>(), op.hi.as<std::int32_t>()};
  const Compute<T>* lse = op.lse.as<Compute<T>>() + h * tokens;
  tile.reset(q1 - q0, dim);
  const HeadRows<F> q = head_rows<T>(op.q, h, q0, q1, tile.q_buffer);
  const HeadRows<S> score_q = head_rows<T>(op.q, h, q0, q1, tile.score_q_buffer);
  const HeadRows<F> d_out = head_rows<T>(op.d_out, h, q0, q1, tile.d_out_buffer);
  for (std::int64_t i = q0; i < q1; ++i) {
    const T* out = row<T>(op.out, i) + h * dim;
    const F* d = d_out.at(i - q0);
    tile.delta[static_cast<std::size_t>(i - q0)] =
        static_cast<F>(sum_of(dim, [&](std::int64_t j) { return d[j] * load(out[j]); }));
  }
  for (std::int64_t k0 = keys.lo[q0]; k0 < keys.hi[q1 - 1]; k0 += kKeyBlock) {
    const std::int64_t k1 = std::min<std::int64_t>(k0 + kKeyBlock, keys.hi[q1 - 1]), block = k1 - k0;
    std::int64_t a = q0, b = q1;
    keys.narrow(a, b, k0, k1);
    if (a == b) continue;
    const HeadRows<F> k = head_rows<T>(op.k, kv, k0, k1, tile.k_buffer);
    const HeadRows<F> v = head_rows<T>(op.v, kv, k0, k1, tile.v_buffer);
    F* p = tile.p.data();
    F* ds = tile.ds.data();
    const F* qa = q.at(a - q0);
    const F* da = d_out.at(a - q0);
    const HeadRows<S> score_k = head_rows<T>(op.k, kv, k0, k1, tile.score_k_buffer);
    multiply_scores<T>(score_q.from(a - q0), score_k, b - a, block, dim, tile.score_buffer, p);
    blas_gemm(false, true, b - a, block, dim, 1.0, da, d_out.ld, v.data, v.ld, 0.0, ds, block);
    for (std::int64_t i = a; i < b; ++i)
      softmax_row_backward(p + (i - a) * block, ds + (i - a) * block, keys.first(i, k0), keys.last(i, k0, k1),
                           block, static_cast<F>(lse[i]), tile.delta[static_cast<std::size_t>(i - q0)]);
    blas_gemm(false, false, b - a, dim, block, 1.0, ds, block, k.data, k.ld, 1.0,
              tile.d_q.data() + (a - q0) * dim, dim);
    blas_gemm(true, false, block, dim, b - a, 1.0, ds, block, qa, q.ld, 1.0, dk + k0 * dim, dim);
    blas_gemm(true, false, block, dim, b - a, 1.0, p, block, da, d_out.ld, 1.0, dv + k0 * dim, dim);
  }
  for (std::int64_t i = q0; i < q1; ++i) {
    T* to = row<T>(op.d_q, i) + h * dim;
    for (std::int64_t j = 0; j < dim; ++j)
      to[j] = round_to<T>(tile.d_q[static_cast<std::size_t>((i - q0) * dim + j)]);
  }
}

/// d_k or d_v = sum over the teams of their accumulators; team t of key head g starts at
/// sums + (g teams + t) stride.
template <class T>
void add_teams(const AttentionCompute<T>* sums, std::int64_t stride, std::int64_t teams, const Tensor& out) {
  using F = AttentionCompute<T>;
  const std::int64_t tokens = out.size(0), kv_heads = out.size(1), dim = out.size(2);
#pragma omp parallel for schedule(static) if (out.numel() >= kParallelElements)
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t g = 0; g < kv_heads; ++g) {
      T* to = row<T>(out, i) + g * dim;
      for (std::int64_t j = 0; j < dim; ++j) {
        F sum = 0;
        for (std::int64_t t = 0; t < teams; ++t) sum += sums[(g * teams + t) * stride + i * dim + j];
        to[j] = round_to<T>(sum);
      }
    }
  }
}

template <class T>
void backward(const AttentionBackward& op) {
  using F = AttentionCompute<T>;
  const std::int64_t tokens = op.q.size(0), dim = op.q.size(2), kv_heads = op.k.size(1);
  const std::int64_t group = op.q.size(1) / kv_heads, teams = teams_of(op), one = tokens * dim;
  F* sums = scratch_for<F>(op.scratch, 2 * kv_heads * teams * one, "AttentionBackward");
  // In parallel even where there is one team: the BLAS library then runs on one thread, whatever their
  // number, and so gives the same bits.
#pragma omp parallel
  {
    BackwardTile<T> tile;
#pragma omp for schedule(dynamic)
    for (std::int64_t team = 0; team < kv_heads * teams; ++team) {
      F* dk = sums + 2 * team * one;
      std::fill(dk, dk + 2 * one, F{0});
      const std::int64_t g = team / teams, t = team % teams;
      for (std::int64_t h = g * group + group * t / teams; h < g * group + group * (t + 1) / teams; ++h)
        for (std::int64_t q0 = 0; q0 < tokens; q0 += kQueryTile)
          backward_tile<T>(op, h, q0, std::min(q0 + kQueryTile, tokens), tile, dk, dk + one);
    }
  }
  add_teams<T>(sums, 2 * one, teams, op.d_k);
  add_teams<T>(sums + one, 2 * one, teams, op.d_v);
}

}  // namespace

std::size_t attention_backward_scratch(const AttentionBackward& op) {
  const auto accumulators = static_cast<std::size_t>(2 * op.k.numel() * teams_of(op));
  return accumulators * (op.q.dtype() == DType::bf16 ? sizeof(float) : sizeof(double));
}

void AttentionBackward::cpu(Stream&) const {
  check(*this);
  check_intervals("AttentionBackward", lo, hi);
  with_float_type(q.dtype(), [&]<class T>() { backward<T>(*this); });
}

}  // namespace lapidary
