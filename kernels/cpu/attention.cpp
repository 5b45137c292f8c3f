// Attention over key intervals: for every tile of queries the keys that any of them sees are walked block by
// block, so that memory stays bounded and invisible blocks are never touched.
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tiles.h"
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

/// One tile of queries: scores against a block of keys, and what is known of every query's softmax.
template <class F>
struct ForwardTile {
  std::vector<F> scores, out, maximum, sum;
  std::vector<F> q_buffer, k_buffer, v_buffer;

  void reset(std::int64_t queries, std::int64_t dim) {
    scores.resize(static_cast<std::size_t>(kQueryTile * kKeyBlock));
    out.assign(static_cast<std::size_t>(queries * dim), F{0});
    maximum.assign(static_cast<std::size_t>(queries), -std::numeric_limits<F>::infinity());
    sum.assign(static_cast<std::size_t>(queries), F{0});
  }
};

/// The visible part [a, b) of a block's scores joins the query's maximum and its sum of exp(score - maximum).
/// The sum is taken in eight lanes by the key's place in the block, as the reference takes it.
template <class F>
void join_softmax(const F* scores, std::int64_t a, std::int64_t b, F& maximum, F& sum) {
  F top = maximum;
  for (std::int64_t k = a; k < b; ++k) top = std::max(top, scores[k]);
  if (top > maximum) sum *= std::exp(maximum - top);
  maximum = top;
  F lanes[8] = {};
  for (std::int64_t k = a; k < b; ++k) lanes[k % 8] += std::exp(scores[k] - top);
  sum += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/// Scores become probabilities, and 0 outside the visible part [a, b) of the block. Each step is rounded to
/// F, as the reference rounds it: scores are not scaled and reach hundreds, where a float32 step is 1e-5 of
/// every probability.
template <class F>
void to_probabilities(F* scores, std::int64_t a, std::int64_t b, std::int64_t keys, F maximum, F sum) {
  const F share = F{1} / sum;
  for (std::int64_t k = a; k < b; ++k) scores[k] = std::exp(scores[k] - maximum) * share;
  std::fill(scores, scores + std::min(a, keys), F{0});
  std::fill(scores + std::max(b, std::int64_t{0}), scores + keys, F{0});
}

/// The keys that the tile's queries see are walked twice: for the softmax's maximum and sum, then for the
/// output; a single block keeps its scores.
template <class T>
void forward_tile(const Attention& op, std::int64_t h, std::int64_t q0, std::int64_t q1,
                  ForwardTile<Compute<T>>& tile) {
  using F = Compute<T>;
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1), dim = op.q.size(2);
  const std::int64_t kv = h / (heads / op.k.size(1));
  const KeyIntervals keys{op.lo.as<std::int32_t>(), op.hi.as<std::int32_t>()};
  tile.reset(q1 - q0, dim);
  const HeadRows<F> q = head_rows<T>(op.q, h, q0, q1, tile.q_buffer);
  F* scores = tile.scores.data();
  const std::int64_t first = keys.lo[q0], last = keys.hi[q1 - 1];
  // visit(a, b, k0, k1) for every block of keys, with the queries [a, b) that see any of it.
  const auto walk = [&](bool multiply, const auto& visit) {
    for (std::int64_t k0 = first; k0 < last; k0 += kKeyBlock) {
      const std::int64_t k1 = std::min(k0 + kKeyBlock, last);
      std::int64_t a = q0, b = q1;
      keys.narrow(a, b, k0, k1);
      if (a == b) continue;
      if (multiply) {
        const HeadRows<F> k = head_rows<T>(op.k, kv, k0, k1, tile.k_buffer);
        blas_gemm(false, true, b - a, k1 - k0, dim, 1.0, q.at(a - q0), q.ld, k.data, k.ld, 0.0, scores,
                  k1 - k0);
      }
      visit(a, b, k0, k1);
    }
  };
  walk(true, [&](std::int64_t a, std::int64_t b, std::int64_t k0, std::int64_t k1) {
    for (std::int64_t i = a; i < b; ++i) {
      const auto at = static_cast<std::size_t>(i - q0);
      join_softmax(scores + (i - a) * (k1 - k0), keys.first(i, k0), keys.last(i, k0, k1), tile.maximum[at],
                   tile.sum[at]);
    }
  });
  walk(last - first > kKeyBlock, [&](std::int64_t a, std::int64_t b, std::int64_t k0, std::int64_t k1) {
    for (std::int64_t i = a; i < b; ++i) {
      const auto at = static_cast<std::size_t>(i - q0);
      to_probabilities(scores + (i - a) * (k1 - k0), keys.first(i, k0), keys.last(i, k0, k1), k1 - k0,
                       tile.maximum[at], tile.sum[at]);
    }
    const HeadRows<F> v = head_rows<T>(op.v, kv, k0, k1, tile.v_buffer);
    blas_gemm(false, false, b - a, dim, k1 - k0, 1.0, scores, k1 - k0, v.data, v.ld, 1.0,
              tile.out.data() + (a - q0) * dim, dim);
  });
  for (std::int64_t i = q0; i < q1; ++i) {
    const auto at = static_cast<std::size_t>(i - q0);
    const F* from = tile.out.data() + (i - q0) * dim;
    T* to = row<T>(op.out, i) + h * dim;
    for (std::int64_t j = 0; j < dim; ++j) to[j] = round_to<T>(from[j]);
    op.lse.as<F>()[h * tokens + i] = tile.maximum[at] + std::log(tile.sum[at]);
  }
}

template <class T>
void forward(const Attention& op) {
  const std::int64_t tokens = op.q.size(0), heads = op.q.size(1);
  const std::int64_t tiles = (tokens + kQueryTile - 1) / kQueryTile;
#pragma omp parallel  // in any case: attention_backward.cpp says why
  {
    ForwardTile<Compute<T>> tile;
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
