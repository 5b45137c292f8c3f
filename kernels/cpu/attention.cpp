// Attention over key intervals: for every tile of queries the keys that any of them sees are walked block by
// block with a running maximum, so that memory stays bounded and invisible blocks are never touched.
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/gemm.h"
#include "kernels/shapes.h"

namespace lapidary {

void check_intervals(const char* op, const Tensor& lo, const Tensor& hi) {
  const std::int64_t tokens = lo.size(0);
  const std::int32_t* a = lo.as<std::int32_t>();
  const std::int32_t* b = hi.as<std::int32_t>();
  for (std::int64_t q = 0; q < tokens; ++q) {
    require(a[q] >= 0 && a[q] <= b[q] && b[q] <= tokens && (q == 0 || (a[q] >= a[q - 1] && b[q] >= b[q - 1])),
            "{}: query {} sees keys [{}, {}), expected ends within [0, {}] that never decrease", op, q, a[q],
            b[q], tokens);
  }
}

namespace {

/// Running softmax of one tile of queries.
template <class F>
struct ForwardTile {
  std::vector<F> scores, out, maximum;
  std::vector<double> sum;
  std::vector<F> q_buffer, k_buffer, v_buffer;

  void reset(std::int64_t queries, std::int64_t dim) {
    scores.resize(static_cast<std::size_t>(kQueryTile * kKeyBlock));
    out.assign(static_cast<std::size_t>(queries * dim), F{0});
    maximum.assign(static_cast<std::size_t>(queries), -std::numeric_limits<F>::infinity());
    sum.assign(static_cast<std::size_t>(queries), 0.0);
  }
};

/// Scores of one query over the visible part [a, b) of a block become exp(score - maximum), the rest 0; what
/// was summed before is brought to the new maximum.
template <class F>
void softmax_row(F* scores, std::int64_t a, std::int64_t b, std::int64_t keys, F& maximum, double& sum,
                 F* out, std::int64_t dim) {
  F top = maximum;
  for (std::int64_t k = a; k < b; ++k) top = std::max(top, scores[k]);
  if (top > maximum) {
    const F shrink = std::exp(maximum - top);
    sum *= static_cast<double>(shrink);
    for (std::int64_t j = 0; j < dim; ++j) out[j] *= shrink;
    maximum = top;
  }
  for (std::int64_t k = a; k < b; ++k) scores[k] = std::exp(scores[k] - top);
  sum += sum_of(b - a, [&](std::int64_t k) { return scores[a + k]; });
  std::fill(scores, scores + std::min(a, keys), F{0});
  std::fill(scores + std::max(b, std::int64_t{0}), scores + keys, F{0});
}

template <class T>
void forward_tile(const Attention& op, std::int64_t h, std::int64_t q0, std::int64_t q1,
                  ForwardTile<AttentionCompute<T>>& tile) {
  using F = AttentionCompute<T>;
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1), dim = op.q.size(2);
  const std::int64_t kv = h / (heads / op.k.size(1));
  const KeyIntervals keys{op.lo.as<std::int32_t>(), op.hi.as<std::int32_t>()};
  tile.reset(q1 - q0, dim);
  const HeadRows<F> q = head_rows<T>(op.q, h, q0, q1, tile.q_buffer);
  for (std::int64_t k0 = keys.lo[q0]; k0 < keys.hi[q1 - 1]; k0 += kKeyBlock) {
    const std::int64_t k1 = std::min<std::int64_t>(k0 + kKeyBlock, keys.hi[q1 - 1]);
    std::int64_t a = q0, b = q1;
    keys.narrow(a, b, k0, k1);
    if (a == b) continue;
    const HeadRows<F> k = head_rows<T>(op.k, kv, k0, k1, tile.k_buffer);
    const HeadRows<F> v = head_rows<T>(op.v, kv, k0, k1, tile.v_buffer);
    F* scores = tile.scores.data();
    F* out = tile.out.data() + (a - q0) * dim;
    blas_gemm(false, true, b - a, k1 - k0, dim, 1.0, q.at(a - q0), q.ld, k.data, k.ld, 0.0, scores, k1 - k0);
    for (std::int64_t i = a; i < b; ++i) {
      const auto at = static_cast<std::size_t>(i - q0);
      softmax_row(scores + (i - a) * (k1 - k0), keys.first(i, k0), keys.last(i, k0, k1), k1 - k0,
                  tile.maximum[at], tile.sum[at], out + (i - a) * dim, dim);
    }
    blas_gemm(false, false, b - a, dim, k1 - k0, 1.0, scores, k1 - k0, v.data, v.ld, 1.0, out, dim);
  }
  for (std::int64_t i = q0; i < q1; ++i) {
    const auto at = static_cast<std::size_t>(i - q0);
    const F* from = tile.out.data() + (i - q0) * dim;
    T* to = row<T>(op.out, i) + h * dim;
    const double sum = tile.sum[at];
    // A query without keys gives 0; NaN in its scores must stay NaN.
    const F scale = sum == 0.0 ? F{0} : static_cast<F>(1.0 / sum);
    for (std::int64_t j = 0; j < dim; ++j) to[j] = round_to<T>(from[j] * scale);
    op.lse.as<Compute<T>>()[h * tokens + i] =
        static_cast<Compute<T>>(static_cast<double>(tile.maximum[at]) + std::log(sum));
  }
}

template <class T>
void forward(const Attention& op) {
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1);
  const std::int64_t tiles = (tokens + kQueryTile - 1) / kQueryTile;
#pragma omp parallel if (heads * tiles > 1)
  {
    ForwardTile<AttentionCompute<T>> tile;
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < heads * tiles; ++task) {
      const std::int64_t q0 = task / heads * kQueryTile;
      forward_tile<T>(op, task % heads, q0, std::min(q0 + kQueryTile, tokens), tile);
    }
  }
}

}  // namespace

void Attention::cpu(Stream&) const {
  check(*this);
  check_intervals("Attention", lo, hi);
  with_float_type(q.dtype(), [&]<class T>() { forward<T>(*this); });
}

}  // namespace lapidary
