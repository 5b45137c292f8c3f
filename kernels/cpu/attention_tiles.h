// What the forward and the backward of attention share on the CPU: tiles of queries against blocks of the
// keys that any of them sees, heads as plain matrices for BLAS, buffers of bounded size.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/cpu/element.h"
#include "kernels/cpu/gemm.h"
#include "kernels/ops.h"

namespace lapidary {

inline constexpr std::int64_t kQueryTile = 64, kKeyBlock = 384;

/// What the backward computes in.
template <class T>
using AttentionCompute = std::conditional_t<std::is_same_v<T, float>, double, Compute<T>>;

/// Throws Error unless the interval ends lie in [0, tokens], lo <= hi, and neither decreases.
void check_intervals(const char* op, const Tensor& lo, const Tensor& hi);

/// The visible keys of queries [q0, q1), which is one interval because both ends are monotone.
struct KeyIntervals {
  const std::int32_t* lo;
  const std::int32_t* hi;

  /// Narrows [q0, q1) to the queries that see a key of [k0, k1). Empty: q0 == q1.
  void narrow(std::int64_t& q0, std::int64_t& q1, std::int64_t k0, std::int64_t k1) const {
    while (q0 < q1 && hi[q0] <= k0) ++q0;
    while (q1 > q0 && lo[q1 - 1] >= k1) --q1;
  }
  /// The part of block [k0, k1) that query q sees, relative to k0.
  std::int64_t first(std::int64_t q, std::int64_t k0) const { return std::max<std::int64_t>(lo[q] - k0, 0); }
  std::int64_t last(std::int64_t q, std::int64_t k0, std::int64_t k1) const {
    return std::min<std::int64_t>(hi[q], k1) - k0;
  }
};

/// Rows of one head of a [N, heads, dim] tensor, as a matrix of F.
template <class F>
struct HeadRows {
  const F* data;
  std::int64_t ld;
  const F* at(std::int64_t i) const { return data + i * ld; }
  HeadRows from(std::int64_t i) const { return {at(i), ld}; }
};

/// Rows [begin, end) of head h: in place where T is F, else converted into buffer ((end - begin) * dim).
template <class T, class F>
HeadRows<F> head_rows(const Tensor& t, std::int64_t h, std::int64_t begin, std::int64_t end,
                      std::vector<F>& buffer) {
  const std::int64_t dim = t.size(2), ld = t.row_stride();
  const T* from = row<T>(t, begin) + h * dim;
  if constexpr (std::is_same_v<T, F>) {
    return {from, ld};
  } else {
    buffer.resize(static_cast<std::size_t>((end - begin) * dim));
    for (std::int64_t i = 0; i < end - begin; ++i)
      for (std::int64_t j = 0; j < dim; ++j)
        buffer[static_cast<std::size_t>(i * dim + j)] = static_cast<F>(load(from[i * ld + j]));
    return {buffer.data(), dim};
  }
}

/// scores [queries, keys] = q k^T, rounded to Compute<T>. They are not scaled and reach hundreds, where one
/// float32 step is 1e-5 of every probability: the reference rounds them so, and a comparison in float32 has
/// to.
template <class T>
void multiply_scores(const HeadRows<Compute<T>>& q, const HeadRows<Compute<T>>& k, std::int64_t queries,
                     std::int64_t keys, std::int64_t dim, std::vector<Compute<T>>& buffer,
                     AttentionCompute<T>* scores) {
  const auto multiply = [&](Compute<T>* to) {
    blas_gemm(false, true, queries, keys, dim, 1.0, q.data, q.ld, k.data, k.ld, 0.0, to, keys);
  };
  if constexpr (std::is_same_v<Compute<T>, AttentionCompute<T>>) {
    multiply(scores);
  } else {
    buffer.resize(static_cast<std::size_t>(queries * keys));
    multiply(buffer.data());
    std::copy_n(buffer.begin(), queries * keys, scores);
  }
}

}  // namespace lapidary
